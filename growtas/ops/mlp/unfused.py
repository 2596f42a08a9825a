"""The MLP branch where no fused kernel was chosen: three operations, each on its own backend.

Saved: mean, rstd and the hidden layer
before GELU. The normalised rows are recomputed from mean and rstd.

Shapes: x (B, N, d), M = B * N rows; weights, biases and norms at the full size of the supernet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.layer_norm import LAYER_NORM, layer_norm_again
from growtas.ops.linear import LINEAR, LINEAR_GELU
from growtas.ops.mlp.weights import MLPWeights


def mlp_keeps_hidden(width: int, dtype: torch.dtype) -> bool:
    """Return whether :func:`mlp_forward` returns the hidden layer."""
    return True


def mlp_forward(
    x: Tensor, weights: MLPWeights, hidden_dim: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + scale * fc2(gelu(fc1(LayerNorm(x)))), mean and rstd (M,), and the hidden layer (M, m)."""
    norm_weight, norm_bias, w1, b1, w2, b2, scale = weights
    _, tokens, d = x.shape
    rows = x.view(-1, d)
    normalise = LAYER_NORM(x, len(norm_weight)).layer_norm_forward
    y, mean, rstd = normalise(rows, norm_weight, norm_bias, eps, dtype)
    a, hidden = LINEAR_GELU(y, w1.shape[1]).linear_gelu_forward(y, w1, b1, hidden_dim)
    out = LINEAR(a, w2.shape[1]).linear_residual_forward(a, w2, b2, rows, scale, tokens)
    return out.view(x.shape), mean, rstd, hidden


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
    norm_weight, norm_bias, w1, b1, w2, b2, scale = weights
    _, tokens, d = x.shape
    rows, dy = x.view(-1, d), dy.view(-1, d)
    y = layer_norm_again(rows, norm_weight, norm_bias, mean, rstd, dtype)
    if not hidden.numel():  # the forward pass ran on a kernel that recomputes it
        hidden = LINEAR(y, w1.shape[1]).linear_forward(y, w1, b1, hidden_dim)
    dh, a = LINEAR_GELU(hidden, w1.shape[1]).linear_gelu_backward_input(dy, w2, hidden, scale, tokens)
    dw2, db2 = LINEAR(a, w2.shape[1]).linear_backward_weight(dy, a, w2, b2, scale, tokens)
    fc1 = LINEAR(y, w1.shape[1])
    dw1, db1 = fc1.linear_backward_weight(dh, y, w1, b1)
    dnormalised = fc1.linear_backward_input(dh, w1, d)
    dx, dnorm_weight, dnorm_bias = LAYER_NORM(x, len(norm_weight)).layer_norm_backward(
        dnormalised, rows, norm_weight, norm_bias, mean, rstd, dy
    )
    return dx.view(x.shape), dnorm_weight, dnorm_bias, dw1, db1, dw2, db2
