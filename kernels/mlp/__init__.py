"""The MLP branch of a block: LayerNorm, fc1, GELU, fc2, drop path and residual."""

from growtas.kernels.mlp.backward import mlp_backward
from growtas.kernels.mlp.forward import mlp_forward, mlp_keeps_hidden

__all__ = ["mlp_backward", "mlp_forward", "mlp_keeps_hidden"]
