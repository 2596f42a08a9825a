"""Sliced linear, with bias, GELU or residual in its epilogue."""

from growtas.kernels.linear.backward import (
    linear_backward_input,
    linear_backward_weight,
    linear_gelu_backward_input,
)
from growtas.kernels.linear.backward_converting import WIDEST, linear_converting_backward_input
from growtas.kernels.linear.backward_pair import linear_backward_weights
from growtas.kernels.linear.forward import linear_forward, linear_gelu_forward, linear_residual_forward

__all__ = [
    "WIDEST",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_backward_weights",
    "linear_converting_backward_input",
    "linear_forward",
    "linear_gelu_backward_input",
    "linear_gelu_forward",
    "linear_residual_forward",
]
