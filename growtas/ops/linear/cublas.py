"""Sliced linear by cuBLAS on the 16-bit shadows; cast, scale, bias gradient and GELU's gradient in Triton.

Plain GEMMs go to cuBLAS as they lie: activations and shadows by their row strides, weight gradients in fp32
straight into the slice of the full-size gradient. The rest is as many passes over memory as there are
dependencies (growtas.kernels.common.rows).
"""

from __future__ import annotations

from torch import Tensor

from growtas.kernels.common.rows import gelu_backward, scaled_rows
from growtas.ops.linear import reference
from growtas.ops.linear.reference import (
    linear_backward_input,
    linear_forward,
    linear_gelu_forward,
    linear_residual_forward,
    matmul_into,
)
from growtas.ops.slices import full_size

__all__ = [
    "linear_backward",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "linear_gelu_backward_input",
    "linear_gelu_forward",
    "linear_residual_forward",
]


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The full-size gradient of a shared weight, ``dy.T @ x`` in its slice."""
    dweight, weight_slice = full_size(weight, dy.shape[1], x.shape[1])
    matmul_into(dy.t(), x, weight_slice)
    return dweight


def linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All gradients of ``scale * linear(x)``, from one pass over dy: of x, of weight and of bias."""
    dz, dbias = scaled_rows(dy, scale, tokens, x.dtype, bias)
    return linear_backward_input(dz, weight, x.shape[1]), weight_gradient(dz, x, weight), dbias


def linear_backward_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    tokens: int = 1,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As the reference; cast, scale and bias gradient are one pass over dy."""
    if into is not None or not dy.is_cuda:
        return reference.linear_backward_weight(dy, x, weight, bias, scale, tokens, into)
    dy, dbias = scaled_rows(dy, scale, tokens, x.dtype, bias)
    return weight_gradient(dy, x, weight), dbias


def linear_gelu_backward_input(
    dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """As the reference, GELU in one pass."""
    da = linear_backward_input(dy, weight, h.shape[1], scale, tokens, h.dtype)
    dh, a, _ = gelu_backward(da, h, None)
    return dh, a
