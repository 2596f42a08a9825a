"""q, k and v of LayerNorm(x): forward. Its gradients are in ``norm_qkv.backward``.

Shapes and layouts as in ``qkv`` and ``layer_norm`` (M = B * N rows):
    xn = LayerNorm(x)[:d]    qkv = xn weight^T + bias    and mean, rstd (M,) fp32 for the backward pass

Saved for backward: x (the residual stream, which is kept anyway), mean and rstd; xn is recomputed. Three
ways:

Held: up to 256 channels, 16-bit matmuls, and rows enough to fill the GPU. A program takes 128 rows and one
of q, k, v, holds its normalised rows on chip, (128, 256) in 16 bits, and passes over the units of its part.
So x is read three times in all. Programs of one output tile each would read it once per tile, 6 to 12 times,
in fp32 under autocast: L2 would bound the kernel.

Apart: wider rows, which would not fit, or be padded to 512 or 1024. LayerNorm is a launch before that of
``qkv_forward`` and leaves xn in memory until this has read it: 4 bytes per element in 16 bits, 10 us for S at
batch 128 (448 channels, 4.3 TB/s). With xn made on load, in whatever tile, ptxas 12.8 and 12.9 serialise the
wgmmas of sm_90, because their operand passes through registers.

Tiled: few rows, where launches count and not the wgmmas; exact fp32, which has none. A program makes one
output tile: it reads its rows once for mean and rstd, and again, from L2, normalised on load as operand of
the matmul. Mean and variance are two-pass within pieces of 64 channels, masked before the variance, and
pieces are joined by the formula of Chan et al. (1979).

Held and tiled write no xn; the statistics of a row tile are written by one program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas import shadow
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_bias, check_norm_parameters, check_slice
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.matmul import load_normalised, load_tile, tile_of
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.variance import rstd_of
from growtas.kernels.layer_norm.forward import layer_norm_forward
from growtas.kernels.qkv.forward import qkv_forward
from growtas.kernels.qkv.layout import (
    bias_steps,
    check_heads,
    even_rows,
    rows_of,
    store_heads,
    weight_rows,
)

#: Channels that the statistics are made of at a time.
PIECE = 64


@triton.jit
def _statistics(row_ptrs, row_ok, width, eps, BLOCK_ROWS: tl.constexpr, PIECE: tl.constexpr):
    """Mean and rstd of rows, each read once: two-pass within a piece, pieces joined by their counts."""
    steps = tl.arange(0, PIECE)
    mean = tl.zeros((BLOCK_ROWS,), tl.float32)
    squares = tl.zeros((BLOCK_ROWS,), tl.float32)  # sum of squared distances from the mean
    for start in range(0, width, PIECE):
        ok = steps < width - start
        x = load_tile(row_ptrs[:, None] + (start + steps)[None, :], row_ok, ok, tl.float32)
        count = tl.minimum(width - start, PIECE)
        piece_mean = tl.sum(x, axis=1) / count
        centred = tl.where(ok[None, :], x - piece_mean[:, None], 0.0)
        distance = piece_mean - mean
        share = count / (start + count)
        mean += distance * share
        squares += tl.sum(centred * centred, axis=1) + distance * distance * share * start
    return mean, rstd_of(squares / width, eps)


@launch.kernel
def _forward_held(
    x_ptr,  # (M, d), row stride stride_x
    norm_weight_ptr,  # (D,)
    norm_bias_ptr,  # (D,)
    weight_ptr,  # (3*E*H, D), row stride stride_weight
    bias_ptr,  # (3*E*H,), or None
    qkv_ptr,  # (3, B, h, N, E) contiguous
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    M,
    K,  # d
    heads,  # h
    eps,
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
    BLOCK_DEPTH: tl.constexpr,  # holds d
):
    """Grid: (tiles over M * 3,)."""
    K = known_multiple(K, ALIGN_K)
    stride_x = known_multiple(stride_x, ALIGN_K)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    part = tl.program_id(0) % 3
    row = tl.program_id(0) // 3 * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    steps = tl.arange(0, BLOCK_DEPTH)
    ok = steps < K
    x_ptrs = x_ptr + row.to(tl.int64) * stride_x + rows[:, None] * stride_x + steps[None, :]
    x = load_tile(x_ptrs, row_ok, ok, tl.float32)
    mean = tl.sum(x, axis=1) / K
    centred = tl.where(ok[None, :], x - mean[:, None], 0.0)
    rstd = rstd_of(tl.sum(centred * centred, axis=1) / K, eps)
    gamma = tl.load(norm_weight_ptr + steps, mask=ok, other=0.0).to(tl.float32)
    beta = tl.load(norm_bias_ptr + steps, mask=ok, other=0.0).to(tl.float32)
    xn = (centred * rstd[:, None] * gamma[None, :] + beta[None, :]).to(DTYPE)
    if part == 0:
        tl.store(mean_ptr + row + rows, mean, mask=row_ok)
        tl.store(rstd_ptr + row + rows, rstd, mask=row_ok)
    units = heads * HEAD_DIM
    weight_ptrs = weight_ptr + steps[:, None]
    for unit in range(0, units, BLOCK_COLS):
        cols = unit + tl.arange(0, BLOCK_COLS)
        rows_of_weight = weight_rows(part, unit, BLOCK_COLS, part_step, unit_step, HEAD_DIM)
        w = load_tile(weight_ptrs + rows_of_weight[None, :] * stride_weight, ok, cols < units, DTYPE)
        acc = tl.dot(xn, w, input_precision=PRECISION)
        store_heads(
            acc, qkv_ptr, bias_ptr, part, row, rows, row_ok, cols, units, M, bias_step_i, bias_step_u,
            TOKENS, HEAD_DIM,
        )  # fmt: skip


@launch.kernel
def _forward_tiled(
    x_ptr,  # (M, d), row stride stride_x
    norm_weight_ptr,  # (D,)
    norm_bias_ptr,  # (D,)
    weight_ptr,  # (3*E*H, D), row stride stride_weight
    bias_ptr,  # (3*E*H,), or None
    qkv_ptr,  # (3, B, h, N, E) contiguous
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    M,
    K,  # d
    heads,  # h
    eps,
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
    PIECE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over M * 3 * tiles over units,)."""
    K = known_multiple(K, ALIGN_K)
    stride_x = known_multiple(stride_x, ALIGN_K)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    units = heads * HEAD_DIM
    unit_tiles = tl.cdiv(units, BLOCK_COLS)
    row_tile, col_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_ROWS), 3 * unit_tiles, GROUP)
    part = col_tile // unit_tiles
    row = row_tile * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    unit = (col_tile - part * unit_tiles) * BLOCK_COLS
    cols = unit + tl.arange(0, BLOCK_COLS)
    col_ok = cols < units
    steps = tl.arange(0, BLOCK_DEPTH)

    row_ptrs = x_ptr + row.to(tl.int64) * stride_x + rows * stride_x
    mean, rstd = _statistics(row_ptrs, row_ok, K, eps, BLOCK_ROWS, PIECE)
    if col_tile == 0:
        tl.store(mean_ptr + row + rows, mean, mask=row_ok)
        tl.store(rstd_ptr + row + rows, rstd, mask=row_ok)
    rows_of_weight = weight_rows(part, unit, BLOCK_COLS, part_step, unit_step, HEAD_DIM)
    weight_ptrs = weight_ptr + rows_of_weight[None, :] * stride_weight + steps[:, None]
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    for start in range(0, K, BLOCK_DEPTH):
        ok = steps < K - start
        gamma = tl.load(norm_weight_ptr + start + steps, mask=ok, other=0.0).to(tl.float32)
        beta = tl.load(norm_bias_ptr + start + steps, mask=ok, other=0.0).to(tl.float32)
        x_ptrs = row_ptrs[:, None] + (start + steps)[None, :]
        xn = load_normalised(x_ptrs, row_ok, ok, mean, rstd, gamma, beta, DTYPE)
        w = load_tile(weight_ptrs + start, ok, col_ok, DTYPE)
        acc = tl.dot(xn, w, acc, input_precision=PRECISION)
    store_heads(
        acc, qkv_ptr, bias_ptr, part, row, rows, row_ok, cols, units, M, bias_step_i, bias_step_u,
        TOKENS, HEAD_DIM,
    )  # fmt: skip


@planned
def _plan_forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    row_steps: tuple[int, int],
    bias: torch.Tensor | None,
    num_heads: int,
    head_dim: int,
    bias_layout: str,
    dtype: torch.dtype,
    precision: str,
) -> Plan:
    """Check, choose between held and tiled, and plan; writes qkv, mean and rstd."""
    device = launch.check(x=x, norm_weight=norm_weight, norm_bias=norm_bias, weight=weight, bias=bias)
    launch.check_dtype("qkv", dtype)
    b, n, d = x.shape
    m = b * n
    check_norm_parameters(d, norm_weight, norm_bias)
    check_heads(weight, head_dim)
    check_slice(weight, 3 * head_dim * num_heads, d)
    check_bias(bias, weight)
    steps = bias_steps(bias_layout, num_heads, head_dim)
    launch.check_matmul(dtype, weight)
    units, multiprocessors = num_heads * head_dim, launch.multiprocessors(device)
    kind = tiles.operand_kind(dtype, weight.dtype, precision)
    tile = tiles.pick_held(kind, m, d, multiprocessors, launch.shared_memory(device))
    if held := tile is not None:
        grid, pieces = ceil(m, tile.rows) * 3, {}
    else:
        # x in fp32 is converted on load like an fp32 weight, and takes as much room.
        kind = tiles.operand_kind(dtype, torch.promote_types(x.dtype, weight.dtype), precision)
        tile = tiles.pick(kind, m, units, multiprocessors, panels=3)
        grid, pieces = ceil(m, tile.rows) * 3 * ceil(units, tile.cols), {"PIECE": PIECE}
    strides = (x.stride(1), weight.stride(0))
    return Plan(
        _forward_held if held else _forward_tiled,
        (grid,),
        device,
        (m, d, num_heads, eps, *strides, *row_steps, *steps),
        {
            "ALIGN_K": tiles.alignment(d, *strides),
            "TOKENS": n,
            "HEAD_DIM": head_dim,
            "PRECISION": precision,
            **pieces,
            **tile.constants(),
        },
        outputs=(((3, b, num_heads, n, head_dim), dtype), ((m,), torch.float32), ((m,), torch.float32)),
    )


def norm_qkv_forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    head_dim: int,
    bias_layout: str,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v of LayerNorm(x), of the first ``num_heads`` heads, split by head: one launch, or two apart.

    Args:
        x: (B, N, d); copied where its rows have no common stride. May be fp32 under a 16-bit ``dtype``.
        norm_weight, norm_bias: (D,) of the LayerNorm.
        eps: added to the variance.
        weight: (3*head_dim*H, D) shared weight, rows 3*u + i; fp32 or ``dtype``.
        bias: (3*head_dim*H,) or None.
        num_heads, head_dim, bias_layout: as ``qkv_forward``.
        dtype: of the matmuls and of the result.

    Returns:
        (3, B, h, N, E) contiguous in ``dtype``, and mean and rstd, (M,) fp32 each, for the backward pass.

    Raises:
        UsageError: the slice is outside the weight, or a tensor cannot be read (see ``launch.check``).
    """
    x = even_rows("x", x)
    precision = launch.dot_precision(dtype)
    b, n, d = x.shape
    if tiles.norm_apart(dtype, precision, b * n, d, launch.multiprocessors(x.device)):
        xn, mean, rstd = layer_norm_forward(rows_of("x", x), norm_weight, norm_bias, eps, dtype)
        heads = qkv_forward(xn.view(b, n, d), weight, bias, num_heads, head_dim, bias_layout)
        return heads, mean, rstd
    weight, *row_steps = shadow.read_qkv(weight, dtype, head_dim)
    plan = _plan_forward(
        x, norm_weight, norm_bias, eps, weight, tuple(row_steps), bias, num_heads, head_dim, bias_layout,
        dtype, precision,
    )  # fmt: skip
    heads, mean, rstd = plan.outputs()
    plan.start(x, norm_weight, norm_bias, weight, bias, heads, mean, rstd)
    return heads, mean, rstd
