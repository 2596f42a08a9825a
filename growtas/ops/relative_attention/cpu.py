"""Attention with 2-D relative position in C++ (csrc/cpu); bitwise the same for any number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas import native
from growtas.ops import addresses
from growtas.ops.addresses import DTYPE_CODES, dense_rows, matrix

MAX_HEAD_DIM = 256


def unsupported(head_dim: int, grid: tuple[int, int], dtype: torch.dtype) -> str:
    """Why the kernel cannot take such tensors, as a clause; empty where it can.

    Args:
        head_dim: channels per head.
        grid: rows and columns of patches; any size fits.
        dtype: of qkv.
    """
    if dtype not in DTYPE_CODES:
        return f"it takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if head_dim > MAX_HEAD_DIM:
        return f"it takes heads of at most {MAX_HEAD_DIM} channels, not {head_dim}"
    return ""


def relative_attention_forward(
    qkv: Tensor,
    key_v: Tensor,
    key_h: Tensor,
    value_v: Tensor,
    value_h: Tensor,
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Attention of every head of every image, on as many threads as torch has.

    Args:
        qkv: (3, B, h, N, e) float32, bfloat16 or float16 in any strides. Fastest where the three values of a
            channel lie side by side, strides (1, N * h * e * 3, e * 3, h * e * 3, 3), or e has stride 1.
        key_v, key_h, value_v, value_h: (2 * m + 2, e) tables of row and column distances.
        grid: rows and columns of patches; their product is N, or N - 1 where token 0 is cls.

    Returns:
        out (B, N, h * e) in qkv's dtype, and the log-sum-exp of the logits (B, h, N) in float32.

    Raises:
        GrowtasError: the module was not built.
    """
    tables = (key_v, key_h, value_v, value_h)
    _, batch, heads, tokens, head_dim = qkv.shape
    out = qkv.new_empty(batch, tokens, heads * head_dim)
    lse = qkv.new_empty(batch, heads, tokens, dtype=torch.float32)
    tables = [dense_rows(table) for table in tables]
    native.load("cpu").relative_attention_forward(
        _sizes(qkv, key_v, grid),
        _view(qkv),
        [matrix(t) for t in tables],
        _tokens(out),
        lse.data_ptr(),
        addresses.SIMD_LEVEL,
    )
    return out, lse


def relative_attention_backward(
    dout: Tensor,
    qkv: Tensor,
    key_v: Tensor,
    key_h: Tensor,
    value_v: Tensor,
    value_h: Tensor,
    out: Tensor,
    lse: Tensor,
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`relative_attention_forward`, bitwise the same for any number of threads.

    Args:
        dout: gradient of out, (B, N, h * e), float32, bfloat16 or float16.
        qkv, key_v, key_h, value_v, value_h, grid: as in the forward pass.
        out, lse: what it returned.

    Returns:
        dqkv (3, B, h, N, e) with qkv's strides where it is dense, and the tables' gradients at full size.

    Raises:
        GrowtasError: the module was not built.
    """
    tables = (key_v, key_h, value_v, value_h)
    dout, out = (x if x.stride(2) == 1 else x.contiguous() for x in (dout.to(out.dtype), out))
    dqkv = torch.empty_like(qkv)
    dtables = [table.new_empty(table.shape) for table in tables]
    tables = [dense_rows(table) for table in tables]
    native.load("cpu").relative_attention_backward(
        _sizes(qkv, key_v, grid), _tokens(dout), _view(qkv), [matrix(t) for t in tables], _tokens(out),
        lse.data_ptr(), _view(dqkv), [matrix(t) for t in dtables], addresses.SIMD_LEVEL,
    )  # fmt: skip
    return dqkv, *dtables


def _sizes(qkv: Tensor, table: Tensor, grid: tuple[int, int]) -> tuple[int, ...]:
    """B, h, N, e, R, C and the clamp."""
    return (*qkv.shape[1:], *grid, table.shape[0] // 2 - 1)


def _view(qkv: Tensor) -> tuple[int, int, tuple[int, ...]]:
    return qkv.data_ptr(), DTYPE_CODES[qkv.dtype], qkv.stride()


def _tokens(x: Tensor) -> tuple[int, int, tuple[int, ...]]:
    return x.data_ptr(), DTYPE_CODES[x.dtype], x.stride()[:2]
