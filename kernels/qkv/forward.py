"""Sliced q, k, v projection on an interleaved shared weight: forward; its gradients are in ``qkv.backward``.

Shapes (one subnet's layer; E = head_dim, h of H heads, d of D channels, M = B * N rows):
    x (B, N, d)   weight (3*E*H, D), of which [:3*E*h, :d] is active   bias (3*E*H,) or None
    qkv (3, B, h, N, E) contiguous: as attention reads it, written directly, never transposed

The layouts are described in ``qkv.layout``; the form with LayerNorm folded in is ``norm_qkv``. Matmuls and
edges as in ``linear``; nothing is saved. E and N are compile-time constants: a supernet has one of each, and
dividing by them (row -> image and token, unit -> head) then costs a multiplication.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas import shadow
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_bias, check_slice
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.matmul import accumulate, tile_of
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.qkv.layout import (
    bias_steps,
    check_heads,
    even_rows,
    store_heads,
    weight_rows,
)


@launch.kernel
def _forward(
    x_ptr,  # (M, d), row stride stride_x
    weight_ptr,  # (3*E*H, D), row stride stride_weight
    bias_ptr,  # (3*E*H,), or None
    qkv_ptr,  # (3, B, h, N, E) contiguous
    M,
    K,  # d
    heads,  # h
    stride_x,
    stride_weight,
    part_step,  # of the weight's rows, see qkv.layout
    unit_step,
    bias_step_i,
    bias_step_u,
    ALIGN_K: tl.constexpr,  # divides d, stride_x and stride_weight
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over M * 3 * tiles over units,)."""
    K = known_multiple(K, ALIGN_K)
    stride_x = known_multiple(stride_x, ALIGN_K)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    units = heads * HEAD_DIM
    unit_tiles = tl.cdiv(units, BLOCK_COLS)
    row_tile, col_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_ROWS), 3 * unit_tiles, GROUP)
    part = col_tile // unit_tiles
    row = row_tile * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    unit = (col_tile - part * unit_tiles) * BLOCK_COLS
    cols = unit + tl.arange(0, BLOCK_COLS)
    steps = tl.arange(0, BLOCK_DEPTH)

    acc = accumulate(
        tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32),
        x_ptr + row.to(tl.int64) * stride_x + rows[:, None] * stride_x + steps[None, :],
        row_ok,
        BLOCK_DEPTH,
        weight_ptr
        + weight_rows(part, unit, BLOCK_COLS, part_step, unit_step, HEAD_DIM)[None, :] * stride_weight
        + steps[:, None],
        cols < units,
        BLOCK_DEPTH,
        K,
        x_ptr.dtype.element_ty,
        PRECISION,
        BLOCK_DEPTH,
    )
    store_heads(
        acc, qkv_ptr, bias_ptr, part, row, rows, row_ok, cols, units, M, bias_step_i, bias_step_u,
        TOKENS, HEAD_DIM,
    )  # fmt: skip


@planned
def _plan_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    row_steps: tuple[int, int],
    bias: torch.Tensor | None,
    num_heads: int,
    head_dim: int,
    bias_layout: str,
    precision: str,
) -> Plan:
    """Check and plan; writes qkv."""
    device = launch.check(x=x, weight=weight, bias=bias)
    b, n, d = x.shape
    m = b * n
    check_heads(weight, head_dim)
    check_slice(weight, 3 * head_dim * num_heads, d)
    check_bias(bias, weight)
    launch.check_matmul(x, weight)
    steps = bias_steps(bias_layout, num_heads, head_dim)
    units = num_heads * head_dim
    kind = tiles.operand_kind(x.dtype, weight.dtype, precision)
    tile = tiles.pick(kind, m, units, launch.multiprocessors(device), panels=3)
    strides = (x.stride(1), weight.stride(0))
    return Plan(
        _forward,
        (ceil(m, tile.rows) * 3 * ceil(units, tile.cols),),
        device,
        (m, d, num_heads, *strides, *row_steps, *steps),
        {
            "ALIGN_K": tiles.alignment(d, *strides),
            "TOKENS": n,
            "HEAD_DIM": head_dim,
            "PRECISION": precision,
            **tile.constants(),
        },
        outputs=(((3, b, num_heads, n, head_dim), x.dtype),),
    )


def qkv_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    head_dim: int,
    bias_layout: str = "interleaved",
) -> torch.Tensor:
    """Project to q, k and v of the first ``num_heads`` heads, split by head.

    Args:
        x: (B, N, d); copied where its rows have no common stride.
        weight: (3*head_dim*H, D) shared weight, rows 3*u + i; fp32 or x's dtype.
        bias: (3*head_dim*H,) or None.
        num_heads: h.
        head_dim: E, any.
        bias_layout: ``"interleaved"`` (as the weight) or ``"published"`` (q, k, v one after the other).

    Returns:
        (3, B, h, N, E) contiguous, in x's dtype.

    Raises:
        UsageError: the slice is outside the weight, or a tensor cannot be read (see ``launch.check``).

    Source:
        AutoFormer (Chen et al., ICCV 2021), attention with shared qkv weights.
    """
    x = even_rows("x", x)
    weight, *row_steps = shadow.read_qkv(weight, x.dtype, head_dim)
    precision = launch.dot_precision(x.dtype)
    plan = _plan_forward(x, weight, tuple(row_steps), bias, num_heads, head_dim, bias_layout, precision)
    (qkv,) = plan.outputs()
    plan.start(x, weight, bias, qkv)
    return qkv
