"""LayerNorm of an image's tokens and their mean, in one: the end of a net."""

from growtas.kernels.pooled_norm.backward import pooled_norm_backward
from growtas.kernels.pooled_norm.forward import pooled_norm_forward

__all__ = ["pooled_norm_backward", "pooled_norm_forward"]
