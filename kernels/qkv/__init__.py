"""Sliced q, k, v projection on an interleaved shared weight."""

from growtas.kernels.qkv.backward import qkv_backward_input, qkv_backward_weight
from growtas.kernels.qkv.forward import qkv_forward
from growtas.kernels.qkv.layout import BIAS_LAYOUTS

__all__ = ["BIAS_LAYOUTS", "qkv_backward_input", "qkv_backward_weight", "qkv_forward"]
