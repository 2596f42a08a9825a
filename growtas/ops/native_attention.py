"""Attention with 2-D relative position in C++, csrc/cpu/relative_attention.cpp: checks, outputs, pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.errors import UsageError
from growtas.ops import native

MAX_HEAD_DIM = 256

_LEVEL = (
    2  # of vector instructions: 2 takes what the processor has; tests ask for AVX2 (1) or the baseline (0)
)


def cpu_unsupported(head_dim: int, grid: tuple[int, int], dtype: torch.dtype) -> str:
    """Why the kernel cannot take such tensors, as a clause; empty where it can.

    Args:
        head_dim: channels per head.
        grid: rows and columns of patches; any size fits.
        dtype: of qkv.
    """
    if dtype not in native.DTYPE_CODES:
        return f"it takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if head_dim > MAX_HEAD_DIM:
        return f"it takes heads of at most {MAX_HEAD_DIM} channels, not {head_dim}"
    return ""


def cpu_relative_attention_forward(
    qkv: Tensor, key_v: Tensor, key_h: Tensor, value_v: Tensor, value_h: Tensor, grid: tuple[int, int]
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
        UsageError: a dtype, device or shape that does not fit. GrowtasError: the module was not built.
    """
    module = native.load("cpu")
    tables = (key_v, key_h, value_v, value_h)
    sizes = _sizes(qkv, tables, grid)
    _, batch, heads, tokens, head_dim = qkv.shape
    out = qkv.new_empty(batch, tokens, heads * head_dim)
    lse = qkv.new_empty(batch, heads, tokens, dtype=torch.float32)
    tables = [_dense_rows(table) for table in tables]
    module.relative_attention_forward(
        sizes, _view(qkv), [_table(t) for t in tables], _tokens(out), lse.data_ptr(), _LEVEL
    )
    return out, lse


def cpu_relative_attention_backward(
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
    """Gradients of :func:`cpu_relative_attention_forward`, bitwise the same for any number of threads.

    Args:
        dout: gradient of out, (B, N, h * e), float32, bfloat16 or float16.
        qkv, key_v, key_h, value_v, value_h, grid: as in the forward pass.
        out, lse: what it returned.

    Returns:
        dqkv (3, B, h, N, e) with qkv's strides where it is dense, and the tables' gradients at full size.

    Raises:
        UsageError: a dtype, device or shape that does not fit. GrowtasError: the module was not built.
    """
    module = native.load("cpu")
    tables = (key_v, key_h, value_v, value_h)
    sizes = _sizes(qkv, tables, grid)
    _, batch, heads, tokens, head_dim = qkv.shape
    for name, x in (("dout", dout), ("out", out)):
        if x.shape != (batch, tokens, heads * head_dim) or x.device != qkv.device:
            raise UsageError(
                f"{name} is {tuple(x.shape)} on {x.device}, and the output of these heads "
                f"{(batch, tokens, heads * head_dim)} on {qkv.device}."
            )
        native.dtype_code(x, name)
    if lse.shape != (batch, heads, tokens) or lse.dtype != torch.float32 or not lse.is_contiguous():
        raise UsageError(f"lse must be the contiguous float32 {(batch, heads, tokens)} of the forward pass.")
    dout, out = (x if x.stride(2) == 1 else x.contiguous() for x in (dout.to(out.dtype), out))
    dqkv = torch.empty_like(qkv)
    dtables = [table.new_empty(table.shape) for table in tables]
    tables = [_dense_rows(table) for table in tables]
    module.relative_attention_backward(
        sizes, _tokens(dout), _view(qkv), [_table(t) for t in tables], _tokens(out), lse.data_ptr(),
        _view(dqkv), [_table(t) for t in dtables], _LEVEL,
    )  # fmt: skip
    return dqkv, *dtables


def _sizes(qkv: Tensor, tables: tuple[Tensor, ...], grid: tuple[int, int]) -> tuple[int, ...]:
    """B, h, N, e, R, C and the clamp, once everything fits together."""
    if qkv.dim() != 5 or qkv.shape[0] != 3:
        raise UsageError(f"qkv is {tuple(qkv.shape)}, and the kernel takes (3, B, h, N, e).")
    if qkv.device.type != "cpu":
        raise UsageError(f"qkv is on {qkv.device}, and this kernel runs on the CPU.")
    _, batch, heads, tokens, head_dim = qkv.shape
    reason = cpu_unsupported(head_dim, grid, qkv.dtype)
    if reason:
        raise UsageError(f"The C++ attention kernel cannot take this qkv: {reason}.")
    rows, columns = grid
    if tokens - rows * columns not in (0, 1):
        raise UsageError(
            f"qkv has {tokens} tokens, but a {rows} x {columns} grid makes {rows * columns}, or one more "
            "with a cls token."
        )
    for name, table in zip(("key_v", "key_h", "value_v", "value_h"), tables, strict=True):
        native.dtype_code(table, name)
        if table.shape != tables[0].shape or table.shape[1:] != (head_dim,) or table.shape[0] % 2:
            raise UsageError(
                f"{name} is {tuple(table.shape)}: all tables must be (2 * m + 2, {head_dim}) for a clamp m."
            )
        if table.device != qkv.device:
            raise UsageError(f"{name} is on {table.device}, and qkv on {qkv.device}.")
    return batch, heads, tokens, head_dim, rows, columns, tables[0].shape[0] // 2 - 1


def _dense_rows(table: Tensor) -> Tensor:
    return table if table.stride(1) == 1 else table.contiguous()


def _view(qkv: Tensor) -> tuple[int, int, tuple[int, ...]]:
    return qkv.data_ptr(), native.DTYPE_CODES[qkv.dtype], qkv.stride()


def _tokens(x: Tensor) -> tuple[int, int, tuple[int, ...]]:
    return x.data_ptr(), native.DTYPE_CODES[x.dtype], x.stride()[:2]


def _table(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), native.DTYPE_CODES[x.dtype], x.stride(0)
