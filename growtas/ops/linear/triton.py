"""Sliced linear in Triton (growtas.kernels.linear), and the gradients of a branch's last layer together."""

from __future__ import annotations

from torch import Tensor

from growtas.kernels.common.rows import in_dtype
from growtas.kernels.linear import (
    WIDEST,
    linear_backward_input,
    linear_backward_weight,
    linear_converting_backward_input,
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
    """All gradients of ``scale * linear(x)``; rows of another dtype are converted once, for both GEMMs.

    Up to :data:`WIDEST` features the launch of the first GEMM converts them, else one of their own does.
    """
    if dy.dtype is not x.dtype and x.shape[1] <= WIDEST:
        dz, dx = linear_converting_backward_input(dy, weight, x.shape[1], scale, tokens, x.dtype)
        return dx, *linear_backward_weight(dz, x, weight, bias)
    dy, scale = in_dtype(dy, scale, tokens, x.dtype)
    dweight, dbias = linear_backward_weight(dy, x, weight, bias, scale, tokens)
    return linear_backward_input(dy, weight, x.shape[1], scale, tokens, x.dtype), dweight, dbias
