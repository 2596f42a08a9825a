"""LayerNorm over the first d channels of shared parameters."""

from growtas.kernels.layer_norm.backward import layer_norm_backward
from growtas.kernels.layer_norm.forward import layer_norm_forward
from growtas.kernels.layer_norm.normalise import normalised

__all__ = ["layer_norm_backward", "layer_norm_forward", "normalised"]
