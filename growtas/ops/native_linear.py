"""Sliced linear and sliced QKV on the CPU in C++ (csrc/cpu/product.cpp), with their epilogues.

The kernel multiplies fp32; other dtypes, and products too small to be worth a call, go to torch's BLAS.
Functions have the names, shapes and results of ``growtas.ops.reference``.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from growtas.ops import native, native_gelu
from growtas.ops.reference import products, qkv
from growtas.ops.reference.slices import full_size

MIN_OPERATIONS = 1 << 18
"""Multiply-adds of a product that is worth a call."""

_LEVEL = (
    2  # of vector instructions: 2 takes what the processor has; tests ask for AVX2 (1) or the baseline (0)
)


class Finish(IntEnum):
    """Epilogues, by the numbers of csrc/cpu/product.h."""

    PLAIN = 0
    GELU = 1
    RESIDUAL = 2
    GELU_GRADIENT = 3


def fits(*tensors: Tensor | None) -> bool:
    return all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors)


def _worth(m: int, n: int, depth: int) -> bool:
    return m * n * depth >= MIN_OPERATIONS


def _rows(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.data_ptr(), x.stride(0))


def product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    finish: Finish = Finish.PLAIN,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    tokens: int = 1,
    hidden: Tensor | None = None,
    other: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """``out = finish(a @ b)``, or ``finish(out + a @ b)``; see csrc/cpu/product.h for the epilogues.

    Args:
        a: (m, k) fp32 on the CPU, any strides.
        b: (k, n), likewise.
        out: (m, n), written; its columns lie side by side.
        finish: the epilogue.
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
        int(finish),
        0 if bias is None else bias.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        tokens,
        _rows(hidden),
        _rows(other),
        _LEVEL,
    )
    return out


def cpu_linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``x (M, k) @ weight[:n, :k].T + bias[:n]``."""
    (m, k), n = x.shape, out_features
    if not (fits(x, weight, bias) and _worth(m, n, k)):
        return products.linear_forward(x, weight, bias, n)
    return product(x, weight[:n, :k].t(), x.new_empty(m, n), bias=bias)


def cpu_linear_gelu_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int
) -> tuple[Tensor, Tensor]:
    """``gelu(h)`` and ``h``, the sliced linear layer of x."""
    (m, k), n = x.shape, out_features
    if not (fits(x, weight, bias) and _worth(m, n, k)):
        return native_gelu.linear_gelu_forward(x, weight, bias, n)
    h, a = x.new_empty(m, n), x.new_empty(m, n)
    product(x, weight[:n, :k].t(), h, Finish.GELU, bias=bias, other=a)
    return a, h


def cpu_linear_residual_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None, tokens: int
) -> Tensor:
    """``residual + scale * linear(x)``; row r has the scale of image r // tokens."""
    (m, k), n = x.shape, residual.shape[1]
    if not (fits(x, weight, bias, residual, scale) and _worth(m, n, k)):
        return products.linear_residual_forward(x, weight, bias, residual, scale, tokens)
    matrix, out = weight[:n, :k].t(), x.new_empty(m, n)
    return product(x, matrix, out, Finish.RESIDUAL, bias, scale, tokens, other=residual)


def cpu_linear_backward_input(
    dy: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    tokens: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``(scale * dy) (M, n) @ weight[:n, :k]`` in ``dtype``, dy's where None."""
    (m, n), k = dy.shape, in_features
    if dtype not in (None, torch.float32) or not (fits(dy, weight, scale) and _worth(m, n, k)):
        return products.linear_backward_input(dy, weight, k, scale, tokens, dtype)
    return product(dy, weight[:n, :k], dy.new_empty(m, k), scale=scale, tokens=tokens)


def cpu_linear_gelu_backward_input(
    dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradient of ``h`` through ``scale * linear(gelu(h))``, and ``gelu(h)`` again."""
    (m, n), k = dy.shape, h.shape[1]
    if not (fits(dy, weight, h, scale) and _worth(m, n, k)):
        return native_gelu.linear_gelu_backward_input(dy, weight, h, scale, tokens)
    dh, a, h = h.new_empty(m, k), h.new_empty(m, k), h.contiguous()
    product(dy, weight[:n, :k], dh, Finish.GELU_GRADIENT, None, scale, tokens, hidden=h, other=a)
    return dh, a


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Full-size gradient of weight, dy.T @ x in its slice."""
    (m, n), k = dy.shape, x.shape[1]
    dweight, weight_slice = full_size(weight, n, k)
    if fits(dy, x, weight) and _worth(m, n, k):
        product(dy.t(), x, weight_slice)
    else:
        products.product_into(dy.t(), x, weight_slice)
    return dweight


def cpu_linear_backward_weight(
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
        return products.linear_backward_weight(dy, x, weight, bias, scale, tokens, into)
    dy = products.scaled_rows(dy, scale, tokens, x.dtype)
    return _weight_gradient(dy, x, weight), None if bias is None else products.bias_gradient(dy, bias)


def cpu_qkv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
) -> Tensor:
    """Queries, keys and values (3, B, h, N, e) of tokens x (B, N, d), interleaved in memory."""
    rows, n = x.reshape(-1, x.shape[-1]), 3 * num_heads * head_dim
    if not (fits(x, weight, bias) and _worth(*rows.shape, n)):
        return qkv.qkv_forward(x, weight, bias, num_heads, head_dim, bias_layout)
    out = qkv.empty_qkv(x, num_heads, head_dim)
    shift = None if bias is None else qkv.interleaved_bias(bias, n, bias_layout).contiguous()
    product(rows, weight[:n, : rows.shape[1]].t(), qkv.as_rows(out), bias=shift)
    return out


def cpu_qkv_backward_input(dqkv: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Gradient of x (B, N, d)."""
    rows = qkv.as_rows(dqkv)
    return cpu_linear_backward_input(rows, weight, in_features).view(
        dqkv.shape[1], dqkv.shape[3], in_features
    )


def cpu_qkv_backward_weight(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of the interleaved weight and of the bias."""
    rows = qkv.as_rows(dqkv)
    dweight = _weight_gradient(rows, x.reshape(-1, x.shape[-1]), weight)
    return dweight, None if bias is None else qkv.qkv_bias_gradient(rows, bias, bias_layout)
