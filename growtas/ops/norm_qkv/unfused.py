"""LayerNorm and QKV where no fused kernel was chosen: two operations, each on its own backend.

Each function has the signature of the fused kernel it stands for. Saved: mean and rstd. The normalised rows
are recomputed from them.

Shapes: x (B, N, d), M = B * N; weights, biases and norms at the full size of the supernet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.layer_norm import LAYER_NORM, layer_norm_again
from growtas.ops.qkv import QKV, readable_gradient


def norm_qkv_forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    head_dim: int,
    bias_layout: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (3, B, h, N, e) of the normalised tokens, and mean and rstd (M,)."""
    normalise = LAYER_NORM(x, len(norm_weight)).layer_norm_forward
    y, mean, rstd = normalise(x.view(-1, x.shape[-1]), norm_weight, norm_bias, eps, dtype)
    project = QKV(y, weight.shape[1]).qkv_forward
    return project(y.view(x.shape), weight, bias, num_heads, head_dim, bias_layout), mean, rstd


def norm_qkv_backward(
    dqkv: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bias_layout: str,
    dresidual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """dx, with dresidual added, and the full-size gradients of the norm, the weight and the bias."""
    d = x.shape[-1]
    rows = x.view(-1, d)
    dqkv = readable_gradient(dqkv, weight)
    y = layer_norm_again(rows, norm_weight, norm_bias, mean, rstd, dqkv.dtype).view(x.shape)
    dweight, dbias = QKV(y, weight.shape[1]).qkv_backward_weight(dqkv, y, weight, bias, bias_layout)
    dy = QKV(y, weight.shape[1]).qkv_backward_input(dqkv, weight, d)
    dx, dnorm_weight, dnorm_bias = LAYER_NORM(x, len(norm_weight)).layer_norm_backward(
        dy.view(-1, d),
        rows,
        norm_weight,
        norm_bias,
        mean,
        rstd,
        None if dresidual is None else dresidual.view(-1, d),
    )
    return dx.view(x.shape), dnorm_weight, dnorm_bias, dweight, dbias
