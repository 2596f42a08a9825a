"""Partial LayerNorm in CUDA C++ (csrc/cuda), without atomics. Shapes: as growtas.ops.layer_norm.cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas import native
from growtas.ops.addresses import dense_rows, matrix, vector


def layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """y (M, d) in ``out_dtype``, mean and rstd (M,) in float32.

    Raises:
        GrowtasError: the module was not built, or the launch failed.
    """
    x = dense_rows(x)
    y = x.new_empty(x.shape, dtype=out_dtype)
    mean = x.new_empty(len(x), dtype=torch.float32)
    rstd = mean.new_empty(len(x))
    if len(x):
        with torch.cuda.device(x.device), native.launching("layer_norm_forward"):
            native.load("cuda").layer_norm_forward(
                *matrix(x), *vector(weight), *vector(bias), *matrix(y), mean.data_ptr(), rstd.data_ptr(),
                *x.shape, eps, *native.cuda_place(x),
            )  # fmt: skip
    return y, mean, rstd


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dresidual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx in x's dtype, dresidual added; dweight and dbias (D,) in the parameters' dtypes, zero from d on.

    Raises:
        GrowtasError: the module was not built, or the launch failed.
    """
    module, dy, x = native.load("cuda"), dense_rows(dy), dense_rows(x)
    rows, width = x.shape
    dx, full = x.new_empty(x.shape), len(weight)
    dweight, dbias = weight.new_empty(full), bias.new_empty(full)
    partial_sums = x.new_empty(module.layer_norm_blocks(rows) * 2 * width, dtype=torch.float32)
    with torch.cuda.device(x.device), native.launching("layer_norm_backward"):
        module.layer_norm_backward(
            *matrix(dy), *matrix(x), *vector(weight), mean.data_ptr(), rstd.data_ptr(), dx.data_ptr(),
            dx.stride(0), *vector(dweight)[:2], *vector(dbias)[:2], partial_sums.data_ptr(), rows, width,
            full, *native.cuda_place(x),
        )  # fmt: skip
    return dx if dresidual is None else dx.add_(dresidual), dweight, dbias
