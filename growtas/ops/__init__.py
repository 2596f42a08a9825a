"""Operations on slices of shared weights: each with its autograd, registration and back ends."""

from growtas.ops.attention_branch import attention_branch
from growtas.ops.backend import available, use
from growtas.ops.layer_norm import layer_norm
from growtas.ops.linear import linear
from growtas.ops.mlp import mlp
from growtas.ops.qkv import qkv
from growtas.ops.relative_attention import relative_attention
from growtas.ops.tokens import tokens

__all__ = [
    "attention_branch",
    "available",
    "layer_norm",
    "linear",
    "mlp",
    "qkv",
    "relative_attention",
    "tokens",
    "use",
]
