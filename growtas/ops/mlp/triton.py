"""The MLP branch in Triton (growtas.kernels.mlp), whose launchers take rows."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.kernels import mlp as kernels
from growtas.kernels.mlp import mlp_keeps_hidden
from growtas.ops.mlp.weights import MLPWeights

__all__ = ["mlp_backward", "mlp_forward", "mlp_keeps_hidden"]


def mlp_forward(
    x: Tensor, weights: MLPWeights, hidden_dim: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + scale * fc2(gelu(fc1(LayerNorm(x)))), mean and rstd (M,), and the hidden layer (M, m) or (0,)."""
    norm_weight, norm_bias, *layers, scale = weights
    y, mean, rstd, hidden = kernels.mlp_forward(
        x.view(-1, x.shape[2]), norm_weight, norm_bias, eps, *layers, hidden_dim, scale, x.shape[1], dtype
    )
    return y.view(x.shape), mean, rstd, hidden


def mlp_backward(
    dy: Tensor,
    x: Tensor,
    weights: MLPWeights,
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
    hidden_dim: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """dx and the full-size gradients of the norm, of fc1 and of fc2."""
    *parameters, scale = weights
    rows, dy = x.view(-1, x.shape[2]), dy.view(-1, x.shape[2])
    dx, *gradients = kernels.mlp_backward(
        dy, rows, mean, rstd, hidden, *parameters, hidden_dim, scale, x.shape[1], dtype
    )
    return dx.view(x.shape), *gradients
