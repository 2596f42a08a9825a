"""LayerNorm in Triton and QKV by cuBLAS on the 16-bit shadow. Saved and recomputed: as in unfused.

Shapes: x (B, N, d), M = B * N; weights, biases and norms at the full size of the supernet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.kernels.layer_norm import layer_norm_backward, layer_norm_forward, normalised
from growtas.ops.qkv.reference import gradient_layout, qkv_backward_input, qkv_backward_weight, qkv_forward


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
    y, mean, rstd = layer_norm_forward(x.view(-1, x.shape[-1]), norm_weight, norm_bias, eps, dtype)
    return qkv_forward(y.view(x.shape), weight, bias, num_heads, head_dim, bias_layout), mean, rstd


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
    dqkv = gradient_layout(dqkv, weight)
    y = normalised(rows, mean, rstd, norm_weight, norm_bias, dqkv.dtype)
    dweight, dbias = qkv_backward_weight(dqkv, y.view(x.shape), weight, bias, bias_layout)
    dy = qkv_backward_input(dqkv, weight, d)
    dx, dnorm_weight, dnorm_bias = layer_norm_backward(
        dy.view(-1, d),
        rows,
        norm_weight,
        norm_bias,
        mean,
        rstd,
        None if dresidual is None else dresidual.view(-1, d),
    )
    return dx.view(x.shape), dnorm_weight, dnorm_bias, dweight, dbias
