"""Sliced linear with its epilogues, as compositions of torch calls.

Weights arrive at full size and are read through strided views of the slice: BLAS takes a leading dimension,
so nothing is copied. The one exception is mixed precision, where a slice of another dtype than the
activations is cast first. Weight gradients are full-size, each element written once.

Shapes: M rows of activations, k and n widths of a slice, N_max and K_max of the shared weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.slices import full_size
from growtas.shadow import read


def matmul_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b`` straight into a strided view; through a temporary where BLAS has no such output."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda and out.dtype is torch.float32:  # cuBLAS writes its fp32 sums as they are
        torch.ops.aten.mm.dtype_out(a, b, torch.float32, out=out)
    else:
        out.copy_(torch.mm(a, b))


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``x (M, k) @ weight[:n, :k].T + bias[:n]``."""
    matrix = read(weight, x.dtype)[:out_features, : x.shape[1]].to(x.dtype).t()
    if bias is None:
        return torch.mm(x, matrix)
    return torch.addmm(read(bias, x.dtype)[:out_features].to(x.dtype), x, matrix)


def linear_gelu_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int
) -> tuple[Tensor, Tensor]:
    """``gelu(h)`` and ``h``, the sliced linear layer of x."""
    h = linear_forward(x, weight, bias, out_features)
    return torch.nn.functional.gelu(h), h


def linear_residual_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None, tokens: int
) -> Tensor:
    """``residual + scale * linear(x)``, in residual's dtype; row r has the scale of image r // tokens."""
    width = residual.shape[1]
    if scale is not None:
        shape = len(scale), tokens, width
        branch = linear_forward(x, weight, bias, width).view(shape)
        out = torch.addcmul(residual.view(shape), branch, scale.view(-1, 1, 1))
        return out.to(residual.dtype).view(residual.shape)
    if x.dtype != residual.dtype:
        return residual + linear_forward(x, weight, bias, width)
    out = residual.clone() if bias is None else residual + bias[:width].to(x.dtype)
    return out.addmm_(x, read(weight, x.dtype)[:width, : x.shape[1]].to(x.dtype).t())


def scaled_rows(dy: Tensor, scale: Tensor | None, tokens: int, dtype: torch.dtype) -> Tensor:
    """Rows times the scale of their image, in the dtype of the GEMM."""
    if scale is not None:
        dy = (dy.view(len(scale), tokens, dy.shape[1]) * scale.view(-1, 1, 1)).view(dy.shape)
    return dy.to(dtype)


def linear_backward_input(
    dy: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    tokens: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``(scale * dy) (M, n) @ weight[:n, :k]`` in ``dtype``, dy's where None."""
    dy = scaled_rows(dy, scale, tokens, dtype or dy.dtype)
    return torch.mm(dy, read(weight, dy.dtype)[: dy.shape[1], :in_features].to(dy.dtype))


def linear_gelu_backward_input(
    dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradient of ``h`` through ``scale * linear(gelu(h))``, and ``gelu(h)`` again."""
    da = linear_backward_input(dy, weight, h.shape[1], scale, tokens, h.dtype)
    return torch.ops.aten.gelu_backward(da, h), torch.nn.functional.gelu(h)


def linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All gradients of ``scale * linear(x)``: both GEMMs read one scaled copy of dy."""
    dy = scaled_rows(dy, scale, tokens, x.dtype)
    dweight, dbias = linear_backward_weight(dy, x, weight, bias)
    return linear_backward_input(dy, weight, x.shape[1]), dweight, dbias


def linear_backward_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    tokens: int = 1,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of weight, ``(scale * dy).T @ x`` in its slice, and of bias, the sum of dy.

    Args:
        dy, x: (M, n) and (M, k).
        weight, bias: for their sizes and dtypes.
        scale, tokens: as :func:`linear_residual_forward`.
        into: gradients to add to, in place, instead of new ones.
    """
    n, k = dy.shape[1], x.shape[1]
    if into is not None:
        dweight, dbias = linear_backward_weight(dy, x, weight, bias, scale, tokens)
        into[0][:n, :k] += dweight[:n, :k]
        if bias is not None:
            into[1][:n] += dbias[:n]
        return into
    dy = scaled_rows(dy, scale, tokens, x.dtype)
    dweight, weight_slice = full_size(weight, n, k)
    matmul_into(dy.t(), x, weight_slice)
    return dweight, None if bias is None else bias_gradient(dy, bias)


def bias_gradient(dy: Tensor, bias: Tensor) -> Tensor:
    """The sum over the rows of dy, at the full size of the bias."""
    dbias, bias_slice = full_size(bias, dy.shape[1])
    torch.sum(dy, 0, dtype=bias.dtype, out=bias_slice)
    return dbias
