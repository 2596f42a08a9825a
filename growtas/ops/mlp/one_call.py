"""The MLP branch of a small net in one call of C++ (csrc/cpu); see growtas.ops.one_call for when.

Shapes: x, dy (B, N, d); weights, biases at the full size of the supernet; all fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas import native
from growtas.ops.addresses import pointers
from growtas.ops.mlp.weights import MLPWeights
from growtas.ops.one_call import dense, gradients, small, whole


def takes_mlp(x: Tensor, weights: MLPWeights, hidden_dim: int, dtype: torch.dtype) -> bool:
    """Return whether :func:`mlp_forward` and :func:`mlp_backward` run this branch.

    Args:
        x: (B, N, d).
        weights: of the branch.
        hidden_dim: m.
        dtype: of the GEMMs.
    """
    if not (small(x, hidden_dim, len(weights.norm_weight), dtype) and dense(x, *weights)):
        return False
    hidden, width = weights.w1.shape
    return weights.w2.shape == (width, hidden) and whole(
        (weights.norm_weight, width),
        (weights.norm_bias, width),
        (weights.b1, hidden),
        (weights.b2, width),
        (weights.scale, x.shape[0]),
    )


def mlp_sizes(x: Tensor, weights: MLPWeights, hidden_dim: int) -> tuple[int, ...]:
    full_hidden, full = weights.w1.shape
    return (*x.shape, hidden_dim, full, full_hidden, full, full_hidden)


def mlp_forward(
    x: Tensor, weights: MLPWeights, hidden_dim: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``x + scale * fc2(gelu(fc1(LayerNorm(x))))``, mean and rstd (B * N,), the hidden layer (B * N, m).

    Args:
        x, weights, hidden_dim: as :func:`takes_mlp` took them.
        eps: of the norm.
    """
    rows = x.shape[0] * x.shape[1]
    y, mean, rstd, hidden = (
        torch.empty_like(x),
        x.new_empty(rows),
        x.new_empty(rows),
        x.new_empty(rows, hidden_dim),
    )
    tensors = (x.data_ptr(), y.data_ptr(), mean.data_ptr(), rstd.data_ptr(), hidden.data_ptr())
    sizes = mlp_sizes(x, weights, hidden_dim)
    native.load("cpu").mlp_forward(sizes, pointers(*weights), tensors, eps)
    return y, mean, rstd, hidden


def mlp_backward(
    dy: Tensor,
    x: Tensor,
    weights: MLPWeights,
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
) -> list[Tensor | None]:
    """dx and the full-size gradients of the weights, in their order and without the images' scale.

    Args:
        dy: (B, N, d), contiguous.
        x, weights: as :func:`mlp_forward` took them.
        mean, rstd, hidden: what it returned.
    """
    found = gradients(x, weights)
    tensors = (dy.data_ptr(), x.data_ptr(), mean.data_ptr(), rstd.data_ptr(), hidden.data_ptr())
    native.load("cpu").mlp_backward(
        mlp_sizes(x, weights, hidden.shape[1]),
        pointers(*weights),
        tensors,
        pointers(*found),
    )
    return found
