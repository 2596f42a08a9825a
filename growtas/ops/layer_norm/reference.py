"""Partial LayerNorm, as a composition of torch calls."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.slices import full_size


def layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise rows (M, d) with the first d entries of weight and bias; also mean and rstd, (M,)."""
    d = x.shape[-1]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    y, mean, rstd = torch.native_layer_norm(x, (d,), weight[:d].to(x.dtype), bias[:d].to(x.dtype), eps)
    return y.to(out_dtype), mean.view(-1), rstd.view(-1)


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dresidual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (M, d), plus dresidual where given, and of weight and bias at full size."""
    d, dtype = x.shape[-1], x.dtype
    wide = torch.promote_types(dtype, torch.float32)
    mean, rstd = mean.to(wide).view(-1, 1), rstd.to(wide).view(-1, 1)
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(
        dy.to(wide), x.to(wide), (d,), mean, rstd, weight[:d].to(wide), bias[:d].to(wide), [True, True, True]
    )
    dweight, weight_slice = full_size(weight, d)
    dbias, bias_slice = full_size(bias, d)
    weight_slice.copy_(dw)
    bias_slice.copy_(db)
    if dresidual is not None:
        dx += dresidual
    return dx.to(dtype), dweight, dbias


def layer_norm_again(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """The rows y of :func:`layer_norm_forward` for rows x (M, d), from their mean and rstd."""
    d, wide = x.shape[-1], mean.dtype
    normalised = (x.to(wide) - mean.view(-1, 1)) * rstd.view(-1, 1)
    return torch.addcmul(bias[:d].to(wide), normalised, weight[:d].to(wide)).to(out_dtype)
