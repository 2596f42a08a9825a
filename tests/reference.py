"""The reference of every operation under one name: in fp64 the truth, in other dtypes a rival."""

from growtas.ops.layer_norm.reference import *  # noqa: F403
from growtas.ops.linear.reference import *  # noqa: F403
from growtas.ops.qkv.reference import *  # noqa: F403
from growtas.ops.relative_attention.reference import *  # noqa: F403
from growtas.ops.slices import full_size  # noqa: F401
