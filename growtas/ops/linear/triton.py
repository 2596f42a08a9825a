"""Sliced linear in Triton (growtas.kernels.linear), and the gradients of a branch's last layer together."""

from __future__ import annotations

from torch import Tensor

from growtas.kernels.common.rows import in_dtype
from growtas.kernels.linear import (
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_gelu_backward_input,
    linear_gelu_forward,
    linear_residual_forward,
)

__all__ = [
    "linear_backward",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "linear_gelu_backward_input",
    "linear_gelu_forward",
    "linear_residual_forward",
]


def linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All gradients of ``scale * linear(x)``; rows of another dtype are converted once, for both GEMMs."""
    dy, scale = in_dtype(dy, scale, tokens, x.dtype)
    dweight, dbias = linear_backward_weight(dy, x, weight, bias, scale, tokens)
    return linear_backward_input(dy, weight, x.shape[1], scale, tokens, x.dtype), dweight, dbias
