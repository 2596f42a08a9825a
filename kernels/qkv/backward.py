"""Gradients of the sliced q, k, v projection: of its input, and of weight and bias.

Shapes and layouts as in ``qkv`` and ``qkv.layout``:
    dx = sum over i of dqkv[i] weight[i]          dweight[3u + i] = dqkv[i, u]^T x, zero outside the slice

Splitting, determinism and zeros as in ``linear.backward``. Where the input was normalised (``norm_qkv``), the
weight gradient takes x as it was before and normalises it while loading, from the saved mean and rstd: so the
normalised rows are neither kept nor written again. E and N are compile-time constants, as in ``qkv``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas import shadow
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_bias, check_slice
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.matmul import accumulate_over_rows, load_tile, tile_of
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.split_k import add_tiles, outside_tile
from growtas.kernels.qkv.layout import bias_steps, check_batch, check_gradient, check_heads, even_rows


@triton.jit
def input_product(
    dqkv_ptr,  # (3, B, h, N, E) contiguous
    weight_ptr,  # (3*E*H, D), row stride stride_weight
    row,  # first row of the tile
    rows,  # (BLOCK_ROWS,) within the tile
    row_ok,
    cols,  # (BLOCK_COLS,) columns of the weight
    col_ok,
    M,
    heads,
    stride_weight,
    part_step,  # of the weight's rows, see qkv.layout
    unit_step,
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """A tile of dqkv times the weight, fp32. The reduction walks over heads, then units, then q, k, v."""
    DTYPE: tl.constexpr = dqkv_ptr.dtype.element_ty
    CHUNKS: tl.constexpr = (HEAD_DIM + BLOCK_DEPTH - 1) // BLOCK_DEPTH
    steps = tl.arange(0, BLOCK_DEPTH)
    units = heads * HEAD_DIM
    image = ((row + rows) // TOKENS).to(tl.int64)
    token = (row + rows) % TOKENS
    dqkv_ptrs = dqkv_ptr + (image * (TOKENS * units) + token * HEAD_DIM)[:, None] + steps[None, :]
    weight_ptrs = weight_ptr + (steps * unit_step)[:, None] * stride_weight + cols[None, :]
    part_stride = M.to(tl.int64) * units
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    for step in range(0, 3 * CHUNKS * heads):
        part = step % 3
        unit = (step // 3 % CHUNKS) * BLOCK_DEPTH  # first unit of this step within its head
        head = step // (3 * CHUNKS)
        ok = steps < HEAD_DIM - unit
        a = load_tile(dqkv_ptrs + part * part_stride + (head * TOKENS * HEAD_DIM + unit), row_ok, ok, DTYPE)
        weight_row = head * (3 * HEAD_DIM) + part * part_step + unit * unit_step
        b = load_tile(weight_ptrs + weight_row * stride_weight, ok, col_ok, DTYPE)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@launch.kernel
def _input(
    dqkv_ptr,  # (3, B, h, N, E) contiguous
    weight_ptr,  # (3*E*H, D), row stride stride_weight
    dx_ptr,  # (M, d) contiguous
    M,
    K,  # d
    heads,  # h
    stride_weight,
    part_step,
    unit_step,
    ALIGN_K: tl.constexpr,  # divides d and stride_weight
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over M * tiles over d,)."""
    K = known_multiple(K, ALIGN_K)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    row_tile, col_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_ROWS), tl.cdiv(K, BLOCK_COLS), GROUP)
    row = row_tile * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    cols = col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_ok = cols < K
    acc = input_product(
        dqkv_ptr, weight_ptr, row, rows, row_ok, cols, col_ok, M, heads, stride_weight, part_step, unit_step,
        TOKENS, HEAD_DIM, PRECISION, BLOCK_ROWS, BLOCK_COLS, BLOCK_DEPTH,
    )  # fmt: skip
    dx_ptrs = dx_ptr + row.to(tl.int64) * K + rows[:, None] * K + cols[None, :]
    tl.store(dx_ptrs, acc.to(dx_ptr.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])


@triton.jit
def _leave(
    acc,  # (BLOCK_ROWS, BLOCK_COLS) fp32: the partial sum of one tile
    total,  # (BLOCK_ROWS,) fp32: the partial sum of the bias
    grad_ptr,  # (3*E*H, D) contiguous, rows 3*u + i
    grad_bias_ptr,  # (3*E*H,); None: this program writes no gradient of a bias
    partial_ptr,  # and the next: as add_tiles takes them
    counter_ptr,
    tile,
    active,
    split,
    splits,  # of this tile
    part,
    rows,
    row_ok,
    cols,
    all_units,
    K_max,
    bias_step_i,
    bias_step_u,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Add the partial sums of a tile in its last program, and write the tile of the gradient."""
    acc, total, last = add_tiles(
        acc, total, partial_ptr, counter_ptr, tile, active, split, splits, BLOCK_ROWS, BLOCK_COLS
    )
    if last:
        exists = (rows < all_units)[:, None] & (cols < K_max)[None, :]
        grad_ptrs = grad_ptr + (3 * rows + part).to(tl.int64)[:, None] * K_max + cols[None, :]
        tl.store(grad_ptrs, acc.to(grad_ptr.dtype.element_ty), mask=exists)
        if grad_bias_ptr is not None:
            # Inactive entries lie behind the active prefix, in the weight's order whatever the layout.
            entries = tl.where(row_ok, part * bias_step_i + rows * bias_step_u, 3 * rows + part)
            bias_ptrs = grad_bias_ptr + entries
            tl.store(bias_ptrs, total.to(grad_bias_ptr.dtype.element_ty), mask=rows < all_units)


@launch.kernel
def _weight(
    dqkv_ptr,  # (3, B, h, N, E) contiguous
    x_ptr,  # (M, d), row stride stride_x
    mean_ptr,  # (M,) fp32, or None: x is taken as it is
    rstd_ptr,  # (M,) fp32, likewise
    norm_weight_ptr,  # (D,), likewise
    norm_bias_ptr,  # (D,), likewise
    grad_ptr,  # (3*E*H, D) contiguous, rows 3*u + i
    grad_bias_ptr,  # (3*E*H,), or None
    partial_ptr,  # (splits, active tiles, BLOCK_ROWS * (BLOCK_COLS + 1)) fp32; not used where splits is 1
    counter_ptr,  # (active tiles,) int32 zeros
    M,
    K,  # d
    heads,  # h
    all_units,  # E*H
    K_max,  # D
    splits,
    rows_per_split,  # a multiple of BLOCK_DEPTH
    bias_step_i,
    bias_step_u,
    stride_x,
    ALIGN_K: tl.constexpr,  # divides d and stride_x
    ALIGN_OUT: tl.constexpr,  # divides D
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (active tiles * splits + tiles outside the slice, which get zeros,), tiles of all three parts."""
    K = known_multiple(K, ALIGN_K)
    stride_x = known_multiple(stride_x, ALIGN_K)
    K_max = known_multiple(K_max, ALIGN_OUT)
    units = heads * HEAD_DIM
    unit_tiles = tl.cdiv(units, BLOCK_ROWS)
    col_tiles = tl.cdiv(K, BLOCK_COLS)
    active = 3 * unit_tiles * col_tiles
    program = tl.program_id(0)
    inside = program < active * splits
    tile = program % active
    row_tile, col_tile = tile_of(tile, 3 * unit_tiles, col_tiles, GROUP)
    all_unit_tiles = tl.cdiv(all_units, BLOCK_ROWS)
    all_col_tiles = tl.cdiv(K_max, BLOCK_COLS)
    outside = tl.maximum(all_unit_tiles * all_col_tiles - unit_tiles * col_tiles, 1)  # of one part
    index = program - active * splits
    far_unit, far_col = outside_tile(index % outside, unit_tiles, col_tiles, all_unit_tiles, all_col_tiles)
    part = tl.where(inside, row_tile // unit_tiles, index // outside)
    unit = tl.where(inside, row_tile % unit_tiles, far_unit) * BLOCK_ROWS
    col_tile = tl.where(inside, col_tile, far_col)
    split = tl.where(inside, program // active, 0)
    rows = unit + tl.arange(0, BLOCK_ROWS)
    cols = col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    row_ok = rows < units
    col_ok = cols < K
    start = split.to(tl.int64) * rows_per_split
    depth = tl.where(inside, tl.minimum(M - start, rows_per_split), 0).to(tl.int32)

    row_offsets = (rows // HEAD_DIM) * (TOKENS * HEAD_DIM) + rows % HEAD_DIM
    dqkv_ptrs = dqkv_ptr + part * (M.to(tl.int64) * units) + row_offsets
    stride_image = TOKENS * units
    gamma = None
    beta = None
    if mean_ptr is not None:
        gamma = tl.load(norm_weight_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)
        beta = tl.load(norm_bias_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)
    # Two ways to the end, as in ``linear.backward``.
    splits = tl.where(inside, splits, 1)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    if grad_bias_ptr is not None and col_tile == 0:
        acc, total = accumulate_over_rows(
            acc, dqkv_ptrs, row_ok, stride_image, HEAD_DIM, x_ptr + cols, col_ok, stride_x, start, depth,
            TOKENS, True, dqkv_ptr.dtype.element_ty, PRECISION, BLOCK_ROWS, BLOCK_DEPTH,
            None, 1, 1, mean_ptr, rstd_ptr, gamma, beta,
        )  # fmt: skip
        _leave(
            acc, total, grad_ptr, grad_bias_ptr, partial_ptr, counter_ptr, tile, active, split, splits, part,
            rows, row_ok, cols, all_units, K_max, bias_step_i, bias_step_u, BLOCK_ROWS, BLOCK_COLS,
        )  # fmt: skip
    else:
        acc, total = accumulate_over_rows(
            acc, dqkv_ptrs, row_ok, stride_image, HEAD_DIM, x_ptr + cols, col_ok, stride_x, start, depth,
            TOKENS, False, dqkv_ptr.dtype.element_ty, PRECISION, BLOCK_ROWS, BLOCK_DEPTH,
            None, 1, 1, mean_ptr, rstd_ptr, gamma, beta,
        )  # fmt: skip
        _leave(
            acc, total, grad_ptr, None, partial_ptr, counter_ptr, tile, active, split, splits, part, rows,
            row_ok, cols, all_units, K_max, bias_step_i, bias_step_u, BLOCK_ROWS, BLOCK_COLS,
        )  # fmt: skip


@planned
def _plan_input(
    dqkv: torch.Tensor,
    weight: torch.Tensor,
    row_steps: tuple[int, int],
    in_features: int,
    precision: str,
) -> Plan:
    """Check and plan; writes dx."""
    check_gradient(dqkv)
    device = launch.check(dqkv=dqkv, weight=weight)
    _, b, heads, n, head_dim = dqkv.shape
    m, d = b * n, in_features
    check_heads(weight, head_dim)
    check_slice(weight, 3 * head_dim * heads, d)
    launch.check_matmul(dqkv, weight)
    kind = tiles.operand_kind(dqkv.dtype, weight.dtype, precision)
    tile = tiles.pick(kind, m, d, launch.multiprocessors(device))
    return Plan(
        _input,
        (ceil(m, tile.rows) * ceil(d, tile.cols),),
        device,
        (m, d, heads, weight.stride(0), *row_steps),
        {
            "ALIGN_K": tiles.alignment(d, weight.stride(0)),
            "TOKENS": n,
            "HEAD_DIM": head_dim,
            "PRECISION": precision,
            **tile.constants(),
        },
        outputs=(((b, n, d), dqkv.dtype),),
    )


def qkv_backward_input(dqkv: torch.Tensor, weight: torch.Tensor, in_features: int) -> torch.Tensor:
    """Gradient of x.

    Args:
        dqkv: (3, B, h, N, E); copied where not contiguous.
        weight: (3*E*H, D) shared weight.
        in_features: d.

    Returns:
        (B, N, d) contiguous, in dqkv's dtype.

    Raises:
        UsageError: the slice is outside the weight, or a tensor cannot be read (see ``launch.check``).
    """
    dqkv = dqkv.contiguous()
    weight, *row_steps = shadow.read_qkv(weight, dqkv.dtype, dqkv.shape[-1])
    plan = _plan_input(dqkv, weight, tuple(row_steps), in_features, launch.dot_precision(dqkv.dtype))
    (dx,) = plan.outputs()
    plan.start(dqkv, weight, dx)
    return dx


@planned
def _plan_weight(
    dqkv: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    bias_layout: str,
    precision: str,
) -> Plan:
    """Check and plan; writes the gradients of weight and bias."""
    check_gradient(dqkv)
    device = launch.check(
        dqkv=dqkv, x=x, weight=weight, bias=bias, mean=mean, rstd=rstd, norm_weight=norm_weight,
        norm_bias=norm_bias,
    )  # fmt: skip
    _, b, heads, n, head_dim = dqkv.shape
    check_batch(dqkv, x)
    m, d = b * n, x.shape[2]
    check_heads(weight, head_dim)
    check_slice(weight, 3 * head_dim * heads, d)
    check_bias(bias, weight)
    launch.check_matmul(dqkv)
    steps = bias_steps(bias_layout, heads, head_dim)
    n_max, d_max = weight.shape
    multiprocessors = launch.multiprocessors(device)
    units, all_units = heads * head_dim, n_max // 3
    kind = tiles.operand_kind(dqkv.dtype, x.dtype, precision)
    tile = tiles.pick(kind, units, d, multiprocessors, panels=3, depth=max(m, 1))
    active = 3 * ceil(units, tile.rows) * ceil(d, tile.cols)
    every = 3 * ceil(all_units, tile.rows) * ceil(d_max, tile.cols)
    splits, rows_per_split = tiles.split(tile, active, max(m, 1), multiprocessors)
    return Plan(
        _weight,
        (active * splits + every - active if m else 0,),
        device,
        (m, d, heads, all_units, d_max, splits, rows_per_split, *steps, x.stride(1)),
        {
            "ALIGN_K": tiles.alignment(d, x.stride(1)),
            "ALIGN_OUT": tiles.alignment(d_max),
            "TOKENS": n,
            "HEAD_DIM": head_dim,
            "PRECISION": precision,
            **tile.constants(),
        },
        outputs=(((n_max, d_max), weight.dtype), None if bias is None else ((n_max,), bias.dtype)),
        counters=active,
        partials=splits * active * tile.rows * (tile.cols + 1) if splits > 1 else 1,
    )


def weight_gradient(
    dqkv: torch.Tensor,
    x: torch.Tensor,
    norm: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    bias_layout: str,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`qkv_backward_weight`, of x or of LayerNorm(x) where ``norm`` is (mean, rstd, weight, bias)."""
    dqkv, x = dqkv.contiguous(), even_rows("x", x)
    mean, rstd, norm_weight, norm_bias = norm or (None, None, None, None)
    precision = launch.dot_precision(dqkv.dtype)
    plan = _plan_weight(dqkv, x, mean, rstd, norm_weight, norm_bias, weight, bias, bias_layout, precision)
    grad, grad_bias = plan.outputs()
    plan.start(dqkv, x, mean, rstd, norm_weight, norm_bias, grad, grad_bias)
    return grad, grad_bias


def qkv_backward_weight(
    dqkv: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    bias_layout: str = "interleaved",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Full-size gradients of weight (rows interleaved) and bias, zero outside the slice, in one launch.

    Args:
        dqkv: (3, B, h, N, E); copied where not contiguous. Its dtype is that of the matmul.
        x: (B, N, d); copied where its rows have no common stride.
        weight: (3*E*H, D); only its shape, dtype and device are used.
        bias: (3*E*H,) likewise, or None.
        bias_layout: as ``qkv_forward``.

    Returns:
        (3*E*H, D) contiguous in the weight's dtype, and (3*E*H,) in the bias's dtype or None.

    Raises:
        UsageError: as :func:`qkv_backward_input`, or dqkv and x differ in images or tokens.
    """
    return weight_gradient(dqkv, x, None, weight, bias, bias_layout)
