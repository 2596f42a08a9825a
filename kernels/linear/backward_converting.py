"""Gradient of the sliced linear's input from a dy in another dtype, with dy in that of the GEMM beside it.

Shapes (see ``linear.backward``): dy (M, N), weight[:N, :K] of (N_max, K_max); images have ``tokens`` rows
    dz = scale[image] * dy, in the dtype of the GEMM, for the weight gradient        dx = dz weight[:N, :K]

A wgmma whose operand is converted on load waits for it, so dy is converted before the main loop: a program
owns whole rows of dx, up to 256 columns (``tiles.NORM_BACKWARD``), writes its rows of dz, and reads them back
from L1 and L2 by the copies of an ordinary main loop. Every row of dy is read once, by one program, where a
launch of its own (``common.rows``) would write dz, and this one read it again: for T (d 216, 256 columns, M =
25,216, fp32 to 16 bits) 46 MB are moved instead of 57, in one launch instead of two. Saved: nothing.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas import shadow
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_matrix, check_scale, check_slice
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.matmul import accumulate
from growtas.kernels.common.plan import Plan, ceil, planned


@launch.kernel
def _input(
    dy_ptr,  # (M, N), row stride stride_dy
    weight_ptr,  # (N_max, K_max), row stride stride_weight
    scale_ptr,  # (images,) fp32, step stride_scale
    dz_ptr,  # (M, N) contiguous
    dx_ptr,  # (M, K) contiguous
    M,
    N,
    K,
    tokens,  # rows per image
    stride_dy,
    stride_weight,
    stride_scale,  # 0: one factor for all images
    ALIGN_N: tl.constexpr,  # divides N and stride_dy
    ALIGN_K: tl.constexpr,  # divides K and stride_weight
    PRECISION: tl.constexpr,
    STEP_COLS: tl.constexpr,  # columns of dy that are converted at a time
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,  # holds K
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over M,)."""
    DTYPE: tl.constexpr = dz_ptr.dtype.element_ty
    N = known_multiple(N, ALIGN_N)
    K = known_multiple(K, ALIGN_K)
    stride_dy = known_multiple(stride_dy, ALIGN_N)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    row = tl.program_id(0) * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    dy_ptr += row.to(tl.int64) * stride_dy
    dz_ptr += row.to(tl.int64) * N
    scale = tl.load(scale_ptr + (row + rows) // tokens * stride_scale, mask=row_ok, other=0.0)[:, None]
    for first in range(0, N, STEP_COLS):
        units = first + tl.arange(0, STEP_COLS)
        ok = row_ok[:, None] & (units < N)[None, :]
        dy = tl.load(dy_ptr + rows[:, None] * stride_dy + units[None, :], mask=ok, other=0.0)
        tl.store(dz_ptr + rows[:, None] * N + units[None, :], (dy.to(tl.float32) * scale).to(DTYPE), mask=ok)
    tl.debug_barrier()  # dz of all these rows is there for all threads of the program

    cols = tl.arange(0, BLOCK_COLS)
    col_ok = cols < K
    steps = tl.arange(0, BLOCK_DEPTH)
    dx = accumulate(
        tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32),
        dz_ptr + rows[:, None] * N + steps[None, :],
        row_ok,
        BLOCK_DEPTH,
        weight_ptr + steps[:, None] * stride_weight + cols[None, :],
        col_ok,
        BLOCK_DEPTH * stride_weight,
        N,
        DTYPE,
        PRECISION,
        BLOCK_DEPTH,
    )
    dx_ptrs = dx_ptr + row.to(tl.int64) * K + rows[:, None] * K + cols[None, :]
    tl.store(dx_ptrs, dx.to(DTYPE), mask=row_ok[:, None] & col_ok[None, :])


#: The most input features that :func:`linear_converting_backward_input` takes.
WIDEST = min(tile.cols for tile in tiles.NORM_BACKWARD.values())


@planned
def _plan_input(
    dy: torch.Tensor,
    weight: torch.Tensor,
    in_features: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
    precision: str,
) -> Plan:
    """Check and plan; writes dz and dx."""
    check_matrix("dy", dy, "(M, N)")
    device = launch.check(dy=dy, weight=weight, scale=scale)
    launch.check_dtype("dx", dtype)
    (m, n), k = dy.shape, in_features
    check_slice(weight, n, k)
    check_scale(scale, m, tokens)
    launch.check_matmul(dtype, weight)
    tile = tiles.pick_norm_backward(tiles.operand_kind(dtype, weight.dtype, precision))
    stride_scale = 0 if scale is None else scale.stride(0)
    return Plan(
        _input,
        (ceil(m, tile.rows),),
        device,
        (m, n, k, tokens, dy.stride(0), weight.stride(0), stride_scale),
        {
            "ALIGN_N": tiles.alignment(n, dy.stride(0)),
            "ALIGN_K": tiles.alignment(k, weight.stride(0)),
            "PRECISION": precision,
            "STEP_COLS": 128,
            **tile.constants(),
        },
        outputs=(((m, n), dtype), ((m, k), dtype)),
    )


def linear_converting_backward_input(
    dy: torch.Tensor,
    weight: torch.Tensor,
    in_features: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dz = scale[row // tokens] * dy in another dtype, and dx = dz weight[:N, :K], in one launch.

    Args:
        dy: (M, N), any row stride; copied where the last stride is not 1.
        weight: (N_max, K_max) shared weight.
        in_features: K, at most :data:`WIDEST`.
        scale: (M / tokens,) fp32, the factor of each image; None means 1.
        tokens: rows per image.
        dtype: of the GEMM, dz and dx.

    Returns:
        dz (M, N) and dx (M, K), contiguous.

    Raises:
        UsageError: as :func:`.linear_backward_input`.
    """
    dy, weight = launch.activation(dy), shadow.read(weight, dtype)
    plan = _plan_input(dy, weight, in_features, scale, tokens, dtype, launch.dot_precision(dtype))
    dz, dx = plan.outputs()
    plan.start(dy, weight, launch.one(plan.device) if scale is None else scale, dz, dx)
    return dz, dx
