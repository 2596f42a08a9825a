"""One tile of a weight gradient, which a launch for one layer and a launch for two have in common.

    dweight[:N, :K] = (scale * dy)^T x, zero elsewhere     dbias[:N] = sum over rows of scale * dy, likewise

``linear.backward`` says how the sum over the rows of the batch is split, and what is written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.matmul import accumulate_over_rows, tile_of
from growtas.kernels.common.split_k import leave_gradient, outside_tile


@triton.jit
def weight_tile(
    dy_ptr,  # (M, N), row stride stride_dy
    x_ptr,  # (M, K), row stride stride_x
    grad_ptr,  # (N_max, K_max) contiguous
    grad_bias_ptr,  # (N_max,), or None
    scale_ptr,  # (images,) fp32, or None
    partial_ptr,  # (splits, tiles, BLOCK_ROWS * (BLOCK_COLS + 1)) fp32; not used where splits is 1
    counter_ptr,  # (tiles,) int32 zeros
    program,  # of this layer: its active tiles * splits, then its tiles outside the slice
    base,  # active tiles of the layers before it
    tiles,  # active tiles of all layers
    M,
    N,
    K,
    N_max,
    K_max,
    tokens,  # rows per image
    splits,
    rows_per_split,  # a multiple of BLOCK_DEPTH
    add,  # 1: add to the gradient, 0: write it
    stride_dy,
    stride_x,
    ALIGN_N: tl.constexpr,  # divides N and stride_dy
    ALIGN_K: tl.constexpr,  # divides K and stride_x
    ALIGN_OUT: tl.constexpr,  # divides K_max
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Sum a part of the rows; the last program of a tile adds the parts and writes the gradients."""
    N = known_multiple(N, ALIGN_N)
    K = known_multiple(K, ALIGN_K)
    K_max = known_multiple(K_max, ALIGN_OUT)
    stride_dy = known_multiple(stride_dy, ALIGN_N)
    stride_x = known_multiple(stride_x, ALIGN_K)
    row_tiles = tl.cdiv(N, BLOCK_ROWS)
    col_tiles = tl.cdiv(K, BLOCK_COLS)
    active = row_tiles * col_tiles
    inside = program < active * splits
    tile = program % active
    row_tile, col_tile = tile_of(tile, row_tiles, col_tiles, GROUP)
    far_row, far_col = outside_tile(
        program - active * splits,
        row_tiles,
        col_tiles,
        tl.cdiv(N_max, BLOCK_ROWS),
        tl.cdiv(K_max, BLOCK_COLS),
    )
    row_tile = tl.where(inside, row_tile, far_row)
    col_tile = tl.where(inside, col_tile, far_col)
    split = tl.where(inside, program // active, 0)
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    row_ok = rows < N
    col_ok = cols < K
    start = split.to(tl.int64) * rows_per_split
    depth = tl.where(inside, tl.minimum(M - start, rows_per_split), 0).to(tl.int32)

    # Two ways to the end: where two loops leave their sums in the same registers, ptxas serialises the wgmmas
    # of both (its remark C7515).
    splits = tl.where(inside, splits, 1)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    if grad_bias_ptr is not None and col_tile == 0:
        acc, total = accumulate_over_rows(
            acc, dy_ptr + rows, row_ok, 0, stride_dy, x_ptr + cols, col_ok, stride_x, start, depth,
            0, True, x_ptr.dtype.element_ty, PRECISION, BLOCK_ROWS, BLOCK_DEPTH, scale_ptr, tokens,
        )  # fmt: skip
        leave_gradient(
            acc, total, grad_ptr, grad_bias_ptr, partial_ptr, counter_ptr, base + tile, tiles, split, splits,
            rows, cols, N, K, N_max, K_max, add, BLOCK_ROWS, BLOCK_COLS,
        )  # fmt: skip
    else:
        acc, total = accumulate_over_rows(
            acc, dy_ptr + rows, row_ok, 0, stride_dy, x_ptr + cols, col_ok, stride_x, start, depth,
            0, False, x_ptr.dtype.element_ty, PRECISION, BLOCK_ROWS, BLOCK_DEPTH, scale_ptr, tokens,
        )  # fmt: skip
        leave_gradient(
            acc, total, grad_ptr, None, partial_ptr, counter_ptr, base + tile, tiles, split, splits,
            rows, cols, N, K, N_max, K_max, add, BLOCK_ROWS, BLOCK_COLS,
        )  # fmt: skip
