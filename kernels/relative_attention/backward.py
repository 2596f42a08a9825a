"""Gradients of attention with 2-D relative position: the launcher, and the sum of the table gradients.

One kernel computes everything else (``one_pass``), or two do (``two_pass``); ``tiles.one_pass`` picks.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels.common import launch
from growtas.kernels.common.plan import Plan, planned
from growtas.kernels.relative_attention.one_pass import plan_one_pass
from growtas.kernels.relative_attention.places import places
from growtas.kernels.relative_attention.problem import Planned, check
from growtas.kernels.relative_attention.tiles import one_pass
from growtas.kernels.relative_attention.two_pass import plan_two_passes


@launch.kernel
def _add_tables(
    partial_ptr,  # (programs, 2, 4 * SIDE, BLOCK_E) fp32
    dkey_v_ptr,  # (2m + 2, E) contiguous, as the other three
    dkey_h_ptr,
    dvalue_v_ptr,
    dvalue_h_ptr,
    programs,
    rows,
    columns,
    m,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Grid: (2m + 2, 4): one table row each. Distances that no two places have get zeros."""
    row = tl.program_id(0)
    horizontal = tl.program_id(1) % 2
    size = tl.where(horizontal == 1, columns, rows)
    distance = row - m - 1
    # the steps of table space that are clamped to this row: one, or at the ends of the table all beyond
    low = tl.where(distance == -m, -(size - 1), distance)
    high = tl.where(distance == m, size - 1, distance)
    low = tl.maximum(low, -(size - 1)) + size - 1 + horizontal * (2 * SIDE)
    high = tl.minimum(high, size - 1) + size - 1 + horizontal * (2 * SIDE)
    cls_at = (horizontal + 1) * (2 * SIDE) - 1
    low = tl.where(row == 0, cls_at, low)
    high = tl.where(row == 0, cls_at, high)
    cols = tl.arange(0, BLOCK_E)
    parts = tl.arange(0, BLOCK_P)
    total = tl.zeros((BLOCK_P, BLOCK_E), tl.float32)
    stride: tl.constexpr = 2 * 4 * SIDE * BLOCK_E  # elements of one program's sums
    partial_ptr += (tl.program_id(1) // 2) * (4 * SIDE * BLOCK_E) + cols[None, :]
    for at in range(low, high + 1):
        for start in range(0, programs, BLOCK_P):
            part = start + parts
            ptrs = partial_ptr + at * BLOCK_E + part[:, None] * stride
            total += tl.load(ptrs, mask=(part < programs)[:, None], other=0.0)
    result = tl.sum(total, axis=0).to(dkey_v_ptr.dtype.element_ty)
    offsets = row * HEAD_DIM + cols
    ok = cols < HEAD_DIM
    if tl.program_id(1) == 0:
        tl.store(dkey_v_ptr + offsets, result, mask=ok)
    elif tl.program_id(1) == 1:
        tl.store(dkey_h_ptr + offsets, result, mask=ok)
    elif tl.program_id(1) == 2:
        tl.store(dvalue_v_ptr + offsets, result, mask=ok)
    else:
        tl.store(dvalue_h_ptr + offsets, result, mask=ok)


@functools.cache
def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True if elements fill their memory without a gap, in whatever order of the axes."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


@planned
def _plan_backward(
    dout: torch.Tensor,
    qkv: torch.Tensor,
    key_v: torch.Tensor,
    key_h: torch.Tensor,
    value_v: torch.Tensor,
    value_h: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grid: tuple[int, int],
    precision: str,
) -> Planned:
    """Check and plan two or three launches; the first allocates all (``problem.backward_outputs``)."""
    tables = (key_v, key_h, value_v, value_h)
    at = check(qkv, tables, grid, dout=dout, out=out, lse=lse)
    shape = (at.batch, at.tokens, at.heads * at.head_dim)
    if not (tuple(dout.shape) == tuple(out.shape) == shape and tuple(lse.shape) == tuple(qkv.shape[1:4])):
        raise UsageError(
            f"qkv of shape {tuple(qkv.shape)} makes an output {shape}, but dout is {tuple(dout.shape)}, out "
            f"{tuple(out.shape)} and lse {tuple(lse.shape)}. All must come from the same forward pass."
        )
    strides = (*qkv.stride()[:4], *dout.stride()[:2])
    how = plan_one_pass if one_pass(qkv.dtype, at.block_e, at.side, at.device) else plan_two_passes
    plans, programs = how(at, qkv, tables, strides)
    add = Plan(
        _add_tables,
        (key_v.shape[0] if lse.numel() else 0, 4),
        at.device,
        (programs, *grid, at.clamp),
        {"HEAD_DIM": at.head_dim, "BLOCK_E": at.block_e, "SIDE": at.side, "BLOCK_P": 16, "num_warps": 4},
    )
    return Planned((*plans, add), at.places(grid, qkv.dtype))


def relative_attention_backward(
    dout: torch.Tensor,
    qkv: torch.Tensor,
    key_v: torch.Tensor,
    key_h: torch.Tensor,
    value_v: torch.Tensor,
    value_h: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grid: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of qkv and of the four tables.

    Args:
        dout: (B, N, h * E), any strides; copied where the last one is not 1.
        qkv, key_v, key_h, value_v, value_h, grid: as :func:`relative_attention_forward` took them.
        out, lse: as it returned them.

    Returns:
        dqkv (3, B, h, N, E) in qkv's dtype and order of memory, so that a GEMM reads it as it wrote qkv, and
        the gradients of key_v, key_h, value_v and value_h, each contiguous in the tables' dtype.

    Raises:
        UsageError: as :func:`relative_attention_forward`, or dout, out and lse do not fit qkv.
    """
    qkv, dout, out = launch.activation(qkv), launch.activation(dout), out.contiguous()
    if not qkv.is_contiguous() and not _dense(tuple(qkv.shape), qkv.stride()):
        qkv = qkv.clone()  # dense, in the same order
    tables = (key_v, key_h, value_v, value_h)
    precision = launch.dot_precision(qkv.dtype)
    (first, *second, add), of_grid = _plan_backward(dout, qkv, *tables, out, lse, tuple(grid), precision)
    where = places(*of_grid)
    dqkv, *dtables, partial, work, terms = first.outputs()
    if second:
        first.start(qkv, dout, out, lse, *tables, *where, dqkv, work, terms, partial)
        second[0].start(qkv, dout, lse, work, terms, where.hot, dqkv[1:])
    else:
        first.start(qkv, dout, out, lse, *tables, *where, dqkv, partial, work)
    add.start(partial, *dtables)
    return dqkv, *dtables
