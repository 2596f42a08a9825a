"""q, k and v of LayerNorm(x)."""

from growtas.kernels.norm_qkv.backward import norm_qkv_backward
from growtas.kernels.norm_qkv.forward import norm_qkv_forward

__all__ = ["norm_qkv_backward", "norm_qkv_forward"]
