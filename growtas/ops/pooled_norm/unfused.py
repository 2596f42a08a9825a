"""LayerNorm as it is dispatched, and the mean of the tokens in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.layer_norm import LAYER_NORM


def pooled_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, first: int, last: int, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the normalised tokens, (B, d), and all tokens' mean and rstd, (B * N,)."""
    run = LAYER_NORM(x, len(weight)).layer_norm_forward
    y, mean, rstd = run(x.reshape(-1, x.shape[-1]), weight, bias, eps, out_dtype)
    y = y.view(x.shape)
    return y[:, first] if last - first == 1 else y[:, first:last].mean(1), mean, rstd


def pooled_norm_backward(
    dpooled: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    first: int,
    last: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, N, d), and of weight and bias at full size."""
    width = x.shape[-1]
    dy = dpooled.new_zeros(x.shape)
    dy[:, first:last] = (dpooled / (last - first))[:, None]
    run = LAYER_NORM(x, len(weight)).layer_norm_backward
    dx, dweight, dbias = run(dy.view(-1, width), x.reshape(-1, width), weight, bias, mean, rstd)
    return dx.view(x.shape), dweight, dbias
