"""A linear layer of a small net in one call of C++ (csrc/cpu); see growtas.ops.one_call for when.

Shapes: x (..., k), dy (..., n); weight and bias at the full size of the supernet; all fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas import native
from growtas.ops.addresses import pointers
from growtas.ops.one_call import dense, small, whole


def takes_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> bool:
    """Return whether :func:`linear_forward` and :func:`linear_backward` run this layer."""
    return (
        small(x, out_features, weight.shape[1], x.dtype)
        and dense(x, weight, bias)
        and whole((bias, weight.shape[0]))
    )


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``x @ weight[:n, :k].T + bias[:n]``, of what :func:`takes_linear` took."""
    inner = x.shape[-1]
    y = x.new_empty(*x.shape[:-1], out_features)
    native.load("cpu").linear_forward(
        (x.numel() // inner, out_features, inner, *weight.shape),
        pointers(weight, bias),
        (x.data_ptr(), y.data_ptr()),
    )
    return y


def linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, needs_x: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """dx, where it is needed, and the full-size gradients of weight and bias.

    Args:
        dy: (..., n), fp32.
        x, weight, bias: as :func:`linear_forward` took them.
        needs_x: whether dx is made.
    """
    dy, inner = dy.contiguous(), x.shape[-1]
    like = (x if needs_x else None, weight, bias)
    found = tuple([None if t is None else torch.empty_like(t) for t in like])
    native.load("cpu").linear_backward(
        (x.numel() // inner, dy.shape[-1], inner, *weight.shape),
        pointers(weight, bias),
        (dy.data_ptr(), x.data_ptr()),
        pointers(*found),
    )
    return found
