"""The residual stream's first tokens: cls in front of the patches, and the absolute position added."""

from growtas.kernels.tokens.backward import tokens_backward
from growtas.kernels.tokens.forward import tokens_forward

__all__ = ["tokens_backward", "tokens_forward"]
