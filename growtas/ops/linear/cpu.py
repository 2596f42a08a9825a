"""Sliced linear on the CPU in C++ (csrc/cpu), with its epilogues.

The GEMM is fp32; other dtypes, and GEMMs too small to be worth a call, go to torch's BLAS, with GELU in C++
around them. Functions have the names, shapes and results of growtas.ops.linear.reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas import native
from growtas.ops import addresses
from growtas.ops.addresses import DTYPE_CODES, Epilogue, pointer
from growtas.ops.linear import reference
from growtas.ops.slices import full_size

MIN_OPERATIONS = 1 << 18
"""Multiply-adds of a GEMM that is worth a call."""


def fits(*tensors: Tensor | None) -> bool:
    """Return whether all tensors are fp32 on the CPU, or absent."""
    return all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors)


def worth(m: int, n: int, k: int) -> bool:
    """Return whether a GEMM is large enough for a call."""
    return m * n * k >= MIN_OPERATIONS


def _rows(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.data_ptr(), x.stride(0))


def gemm(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    epilogue: Epilogue = Epilogue.PLAIN,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    tokens: int = 1,
    hidden: Tensor | None = None,
    other: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """``out = epilogue(a @ b)``, or ``epilogue(out + a @ b)``; csrc/cpu has the epilogues.

    Args:
        a: (m, k) fp32 on the CPU, any strides.
        b: (k, n), likewise.
        out: (m, n), written; its columns lie side by side.
        epilogue: applied to the sums.
        bias: (n,) or longer, or None.
        scale: (images,) factors of the rows of each image, or None.
        tokens: rows of an image.
        hidden: (m, n), the layer before GELU.
        other: (m, n), read or written as the epilogue says.
        accumulate: add to what out holds.

    Returns:
        out.

    Raises:
        ValueError: an impossible size. GrowtasError: the module was not built.
    """
    native.load("cpu").product(
        (a.data_ptr(), *a.stride()),
        (b.data_ptr(), *b.stride()),
        _rows(out),
        (*out.shape, a.shape[1]),
        accumulate,
        int(epilogue),
        pointer(bias),
        pointer(scale),
        tokens,
        _rows(hidden),
        _rows(other),
        addresses.SIMD_LEVEL,
    )
    return out


def gelu(h: Tensor) -> Tensor:
    """Exact GELU of a contiguous CPU tensor."""
    a = torch.empty_like(h)
    native.load("cpu").gelu_forward(
        h.data_ptr(), a.data_ptr(), DTYPE_CODES[h.dtype], h.numel(), addresses.SIMD_LEVEL
    )
    return a


def gelu_backward_(gradient: Tensor, h: Tensor) -> Tensor:
    """Turn the gradient of ``gelu(h)``, in place, into that of h; contiguous CPU tensors of one dtype.

    Returns:
        gelu(h), which the same pass makes.
    """
    a = torch.empty_like(h)
    native.load("cpu").gelu_backward(
        gradient.data_ptr(), h.data_ptr(), a.data_ptr(), DTYPE_CODES[h.dtype], h.numel(), addresses.SIMD_LEVEL
    )
    return a


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``x (M, k) @ weight[:n, :k].T + bias[:n]``."""
    (m, k), n = x.shape, out_features
    if not (fits(x, weight, bias) and worth(m, n, k)):
        return reference.linear_forward(x, weight, bias, n)
    return gemm(x, weight[:n, :k].t(), x.new_empty(m, n), bias=bias)


def linear_gelu_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int
) -> tuple[Tensor, Tensor]:
    """``gelu(h)`` and ``h``, the sliced linear layer of x."""
    (m, k), n = x.shape, out_features
    if not (fits(x, weight, bias) and worth(m, n, k)):
        h = reference.linear_forward(x, weight, bias, n)
        return gelu(h), h
    h, a = x.new_empty(m, n), x.new_empty(m, n)
    gemm(x, weight[:n, :k].t(), h, Epilogue.GELU, bias=bias, other=a)
    return a, h


def linear_residual_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None, tokens: int
) -> Tensor:
    """``residual + scale * linear(x)``; row r has the scale of image r // tokens."""
    (m, k), n = x.shape, residual.shape[1]
    if not (fits(x, weight, bias, residual, scale) and worth(m, n, k)):
        return reference.linear_residual_forward(x, weight, bias, residual, scale, tokens)
    matrix, out = weight[:n, :k].t(), x.new_empty(m, n)
    return gemm(x, matrix, out, Epilogue.RESIDUAL, bias, scale, tokens, other=residual)


def linear_backward_input(
    dy: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    tokens: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``(scale * dy) (M, n) @ weight[:n, :k]`` in ``dtype``, dy's where None."""
    (m, n), k = dy.shape, in_features
    if dtype not in (None, torch.float32) or not (fits(dy, weight, scale) and worth(m, n, k)):
        return reference.linear_backward_input(dy, weight, k, scale, tokens, dtype)
    return gemm(dy, weight[:n, :k], dy.new_empty(m, k), scale=scale, tokens=tokens)


def linear_gelu_backward_input(
    dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradient of ``h`` through ``scale * linear(gelu(h))``, and ``gelu(h)`` again."""
    (m, n), k, h = dy.shape, h.shape[1], h.contiguous()
    if not (fits(dy, weight, h, scale) and worth(m, n, k)):
        dh = reference.linear_backward_input(dy, weight, k, scale, tokens, h.dtype)
        return dh, gelu_backward_(dh, h)
    dh, a = h.new_empty(m, k), h.new_empty(m, k)
    gemm(dy, weight[:n, :k], dh, Epilogue.GELU_GRADIENT, None, scale, tokens, hidden=h, other=a)
    return dh, a


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The full-size gradient of a shared weight, dy.T @ x in its slice."""
    (m, n), k = dy.shape, x.shape[1]
    dweight, weight_slice = full_size(weight, n, k)
    if fits(dy, x, weight) and worth(m, n, k):
        gemm(dy.t(), x, weight_slice)
    else:
        reference.matmul_into(dy.t(), x, weight_slice)
    return dweight


def linear_backward_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    tokens: int = 1,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of weight and bias; added to ``into`` where given."""
    if into is not None:
        return reference.linear_backward_weight(dy, x, weight, bias, scale, tokens, into)
    dy = reference.scaled_rows(dy, scale, tokens, x.dtype)
    return weight_gradient(dy, x, weight), None if bias is None else reference.bias_gradient(dy, bias)


def linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All gradients of ``scale * linear(x)``: of x in its dtype, of weight and bias at full size."""
    dweight, dbias = linear_backward_weight(dy, x, weight, bias, scale, tokens)
    return linear_backward_input(dy, weight, x.shape[1], scale, tokens, x.dtype), dweight, dbias
