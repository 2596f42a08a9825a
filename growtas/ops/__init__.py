"""Operations on slices of shared weights, one folder each.

A folder holds the public function and the table of its backends (``__init__``), and one module per language:
``reference`` (or ``unfused``, a composition of other operations), ``cpu``, ``cublas``, ``cuda``; Triton
kernels lie in ``kernels/<operation>``. Beside them: ``dispatch`` (which backend), ``registry`` (autograd and
torch.library), ``checks`` (of arguments), ``records`` (of tuning), ``block_stack`` (blocks as one operation).
"""

from growtas.ops.attention_branch import attention_branch
from growtas.ops.block_stack.leaves import direct_gradients
from growtas.ops.dispatch import available, use
from growtas.ops.layer_norm import layer_norm
from growtas.ops.linear import linear
from growtas.ops.mlp import mlp
from growtas.ops.pooled_norm import pooled_norm
from growtas.ops.qkv import qkv
from growtas.ops.relative_attention import relative_attention
from growtas.ops.tokens import tokens

__all__ = [
    "attention_branch",
    "available",
    "direct_gradients",
    "layer_norm",
    "linear",
    "mlp",
    "pooled_norm",
    "qkv",
    "relative_attention",
    "tokens",
    "use",
]
