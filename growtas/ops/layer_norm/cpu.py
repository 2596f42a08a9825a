"""Partial LayerNorm in C++ (csrc/cpu); bitwise the same for any number of threads.

Shapes: rows (M, d) in float32, bfloat16 or float16, any row stride; parameters (D,), D >= d, of which the
first d entries are read; mean and rstd (M,) in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas import native
from growtas.ops import addresses
from growtas.ops.addresses import dense_rows, matrix, vector


def layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """y (M, d) in ``out_dtype``, mean and rstd."""
    x = dense_rows(x)
    y = x.new_empty(x.shape, dtype=out_dtype)  # new_empty: half the time of torch.empty
    mean = x.new_empty(len(x), dtype=torch.float32)
    rstd = mean.new_empty(len(x))
    native.load("cpu").layer_norm_forward(
        *matrix(x),
        *vector(weight),
        *vector(bias),
        *matrix(y),
        mean.data_ptr(),
        rstd.data_ptr(),
        *x.shape,
        eps,
        addresses.SIMD_LEVEL,
    )
    return y, mean, rstd


def layer_norm_again(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """The rows y of :func:`layer_norm_forward`, from the mean and rstd that it returned beside them."""
    x = dense_rows(x)
    y = x.new_empty(x.shape, dtype=out_dtype)
    native.load("cpu").layer_norm_again(
        *matrix(x), *vector(weight), *vector(bias), *matrix(y), mean.data_ptr(), rstd.data_ptr(), *x.shape,
        addresses.SIMD_LEVEL,
    )  # fmt: skip
    return y


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dresidual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx in x's dtype, dresidual added; dweight and dbias (D,) in the parameters' dtypes, zero from d on."""
    dy, x = dense_rows(dy), dense_rows(x)
    around = (0, 0)
    if dresidual is not None:
        dresidual = dense_rows(dresidual.to(x.dtype))
        around = (dresidual.data_ptr(), dresidual.stride(0))
    dx, full = x.new_empty(x.shape), len(weight)  # gradients are dense even where the parameters are strided
    dweight, dbias = weight.new_empty(full), bias.new_empty(full)
    native.load("cpu").layer_norm_backward(
        *matrix(dy), *matrix(x), *vector(weight), mean.data_ptr(), rstd.data_ptr(), *around, dx.data_ptr(),
        dx.stride(0), *vector(dweight)[:2], *vector(dbias)[:2], *x.shape, full, addresses.SIMD_LEVEL,
    )  # fmt: skip
    return dx, dweight, dbias
