"""Sliced linear layer on a super weight: forward, input gradient, weight and bias gradients.

Shapes (one subnet's layer; M = rows of the batch, B * N tokens):
    x (M, K)   weight (N_max, K_max), of which [:N, :K] is active   bias (N_max,), [:N] active   y (M, N)
    y  = x weight[:N, :K]^T + bias[:N]
    dx = dy weight[:N, :K]
    dweight[:N, :K] = dy^T x, zero elsewhere     dbias[:N] = sum over rows of dy, zero elsewhere

The weight is read where it lies, by its row stride; an fp32 weight under 16-bit activations is converted on
load. Products are made in x's dtype with fp32 sums. Nothing is saved: backward takes x and the weight again.

The weight gradient reduces over M, which is long where the output is small: it is split over M, each part
leaves an fp32 partial sum, and a second pass adds the parts in order (``matmul``). A short M is done in one
pass. Either way each element of the full-size gradient is written exactly once and the bits do not change
from run to run. dbias costs no extra read: the programs of the first column tile add up the dy they hold.

Tensor cores: mma.sync on sm_80, wgmma on sm_90, in 16 bits and in tf32; exact fp32 runs on the FMA units.
tf32 weight gradients on sm_90 copy four bytes at a time: wgmma takes tf32 in one orientation only, and
Triton transposes on the way to shared memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels import launch, tiles
from growtas.kernels.launch import known_multiple
from growtas.kernels.matmul import accumulate, accumulate_over_rows, add_partials, tile_of


@launch.kernel
def _forward(
    x_ptr,  # (M, K), row stride stride_x
    weight_ptr,  # (N_max, K_max), row stride stride_weight
    bias_ptr,  # (N_max,), or None
    y_ptr,  # (M, N), row stride stride_y
    M,
    N,
    K,
    stride_x,
    stride_weight,
    stride_y,
    ALIGN_K: tl.constexpr,  # divides K, stride_x and stride_weight
    ALIGN_N: tl.constexpr,  # divides N and stride_y
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over M * tiles over N,)."""
    K = known_multiple(K, ALIGN_K)
    N = known_multiple(N, ALIGN_N)
    stride_x = known_multiple(stride_x, ALIGN_K)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    stride_y = known_multiple(stride_y, ALIGN_N)
    row_tile, col_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_ROWS), tl.cdiv(N, BLOCK_COLS), GROUP)
    row = row_tile * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    cols = col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_ok = cols < N
    steps = tl.arange(0, BLOCK_DEPTH)

    acc = accumulate(
        tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32),
        x_ptr + row.to(tl.int64) * stride_x + rows[:, None] * stride_x + steps[None, :],
        row_ok,
        BLOCK_DEPTH,
        weight_ptr + cols[None, :] * stride_weight + steps[:, None],
        col_ok,
        BLOCK_DEPTH,
        K,
        x_ptr.dtype.element_ty,
        PRECISION,
        BLOCK_DEPTH,
    )
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + row.to(tl.int64) * stride_y + rows[:, None] * stride_y + cols[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])


@launch.kernel
def _backward_input(
    dy_ptr,  # (M, N), row stride stride_dy
    weight_ptr,  # (N_max, K_max), row stride stride_weight
    dx_ptr,  # (M, K), row stride stride_dx
    M,
    N,
    K,
    stride_dy,
    stride_weight,
    stride_dx,
    ALIGN_N: tl.constexpr,  # divides N and stride_dy
    ALIGN_K: tl.constexpr,  # divides K, stride_weight and stride_dx
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over M * tiles over K,). The reduction runs over the active rows of the weight."""
    N = known_multiple(N, ALIGN_N)
    K = known_multiple(K, ALIGN_K)
    stride_dy = known_multiple(stride_dy, ALIGN_N)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    stride_dx = known_multiple(stride_dx, ALIGN_K)
    row_tile, col_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_ROWS), tl.cdiv(K, BLOCK_COLS), GROUP)
    row = row_tile * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    cols = col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_ok = cols < K
    steps = tl.arange(0, BLOCK_DEPTH)

    acc = accumulate(
        tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32),
        dy_ptr + row.to(tl.int64) * stride_dy + rows[:, None] * stride_dy + steps[None, :],
        row_ok,
        BLOCK_DEPTH,
        weight_ptr + steps[:, None] * stride_weight + cols[None, :],
        col_ok,
        BLOCK_DEPTH * stride_weight,
        N,
        dy_ptr.dtype.element_ty,
        PRECISION,
        BLOCK_DEPTH,
    )
    dx_ptrs = dx_ptr + row.to(tl.int64) * stride_dx + rows[:, None] * stride_dx + cols[None, :]
    tl.store(dx_ptrs, acc.to(dx_ptr.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])


@launch.kernel
def _backward_weight(
    dy_ptr,  # (M, N), row stride stride_dy
    x_ptr,  # (M, K), row stride stride_x
    out_ptr,  # (splits, out_rows, out_cols): the gradient itself, or fp32 partial sums
    bias_out_ptr,  # (splits, bias_rows), or None
    M,
    N,
    K,
    rows_per_split,  # a multiple of BLOCK_DEPTH
    out_rows,
    out_cols,
    bias_rows,
    stride_dy,
    stride_x,
    ALIGN_N: tl.constexpr,  # divides N and stride_dy
    ALIGN_K: tl.constexpr,  # divides K and stride_x
    ALIGN_OUT: tl.constexpr,  # divides out_cols
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over out_rows * tiles over out_cols, splits). Tiles outside the slice write zeros."""
    N = known_multiple(N, ALIGN_N)
    K = known_multiple(K, ALIGN_K)
    stride_dy = known_multiple(stride_dy, ALIGN_N)
    stride_x = known_multiple(stride_x, ALIGN_K)
    out_cols = known_multiple(out_cols, ALIGN_OUT)
    row_tiles = tl.cdiv(out_rows, BLOCK_ROWS)
    row_tile, col_tile = tile_of(tl.program_id(0), row_tiles, tl.cdiv(out_cols, BLOCK_COLS), GROUP)
    split = tl.program_id(1).to(tl.int64)
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    row_ok = rows < N
    col_ok = cols < K
    start = split * rows_per_split
    depth = tl.minimum(M - start, rows_per_split).to(tl.int32)
    depth = tl.where((row_tile * BLOCK_ROWS < N) & (col_tile * BLOCK_COLS < K), depth, 0)

    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    if bias_out_ptr is not None and col_tile == 0:
        acc, total = accumulate_over_rows(
            acc, dy_ptr + rows, row_ok, 0, stride_dy, x_ptr + cols, col_ok, stride_x, start, depth,
            0, True, x_ptr.dtype.element_ty, PRECISION, BLOCK_ROWS, BLOCK_DEPTH,
        )  # fmt: skip
        bias_ptrs = bias_out_ptr + split * bias_rows + rows
        tl.store(bias_ptrs, total.to(bias_out_ptr.dtype.element_ty), mask=rows < bias_rows)
    else:
        acc, total = accumulate_over_rows(
            acc, dy_ptr + rows, row_ok, 0, stride_dy, x_ptr + cols, col_ok, stride_x, start, depth,
            0, False, x_ptr.dtype.element_ty, PRECISION, BLOCK_ROWS, BLOCK_DEPTH,
        )  # fmt: skip
    out_ptrs = out_ptr + (split * out_rows + rows[:, None]) * out_cols + cols[None, :]
    exists = (rows < out_rows)[:, None] & (cols < out_cols)[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=exists)


def _check_matrix(name: str, tensor: torch.Tensor, shape: str) -> None:
    if tensor.ndim != 2:
        raise UsageError(
            f"{name} has shape {tuple(tensor.shape)}, but {shape} is needed. Flatten the rows first."
        )


def check_slice(weight: torch.Tensor, rows: int, cols: int) -> None:
    """Refuse a slice that is not inside its super weight.

    Raises:
        UsageError: with the slice, the super size and what to do.
    """
    if not (0 < rows <= weight.shape[0] and 0 < cols <= weight.shape[1]):
        raise UsageError(
            f"A slice of {rows} x {cols} is not inside a super weight of shape {tuple(weight.shape)}. "
            "Use a subnet of the space the supernet was built for."
        )


def check_bias(bias: torch.Tensor | None, weight: torch.Tensor) -> None:
    """Refuse a bias that does not have one entry per row of the super weight."""
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise UsageError(
            f"The bias has shape {tuple(bias.shape)}, but the super weight has {weight.shape[0]} rows. "
            "Pass the whole bias, not a slice."
        )


def linear_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> torch.Tensor:
    """y = x weight[:N, :K]^T + bias[:N].

    Args:
        x: (M, K), any row stride; copied where the last stride is not 1.
        weight: (N_max, K_max) super weight, any row stride; fp32 or x's dtype, converted to x's dtype on
        load. bias: (N_max,) or None.
        out_features: N.

    Returns:
        (M, N) contiguous, in x's dtype.

    Raises:
        UsageError: the slice is outside the weight, or a tensor cannot be read (see ``launch.check``).
    """
    _check_matrix("x", x, "(M, K)")
    x = launch.activation(x)
    device = launch.check(x=x, weight=weight, bias=bias)
    (m, k), n = x.shape, out_features
    check_slice(weight, n, k)
    check_bias(bias, weight)
    launch.check_products(x, weight)
    y = torch.empty((m, n), dtype=x.dtype, device=device)
    if m == 0:
        return y
    precision = launch.dot_precision(x.dtype)
    tile = tiles.pick(
        tiles.operand_kind(x.dtype, weight.dtype, precision), m, n, launch.multiprocessors(device)
    )
    launch.run(
        _forward,
        (triton.cdiv(m, tile.rows) * triton.cdiv(n, tile.cols),),
        device,
        x,
        weight,
        bias,
        y,
        m,
        n,
        k,
        x.stride(0),
        weight.stride(0),
        n,
        ALIGN_K=tiles.alignment(k, x.stride(0), weight.stride(0)),
        ALIGN_N=tiles.alignment(n),
        PRECISION=precision,
        **tile.constants(),
    )
    return y


def linear_backward_input(dy: torch.Tensor, weight: torch.Tensor, in_features: int) -> torch.Tensor:
    """dx = dy weight[:N, :K].

    Args:
        dy: (M, N), any row stride; copied where the last stride is not 1.
        weight: (N_max, K_max) super weight.
        in_features: K.

    Returns:
        (M, K) contiguous, in dy's dtype.

    Raises:
        UsageError: as :func:`linear_forward`.
    """
    _check_matrix("dy", dy, "(M, N)")
    dy = launch.activation(dy)
    device = launch.check(dy=dy, weight=weight)
    (m, n), k = dy.shape, in_features
    check_slice(weight, n, k)
    launch.check_products(dy, weight)
    dx = torch.empty((m, k), dtype=dy.dtype, device=device)
    if m == 0:
        return dx
    precision = launch.dot_precision(dy.dtype)
    tile = tiles.pick(
        tiles.operand_kind(dy.dtype, weight.dtype, precision), m, k, launch.multiprocessors(device)
    )
    launch.run(
        _backward_input,
        (triton.cdiv(m, tile.rows) * triton.cdiv(k, tile.cols),),
        device,
        dy,
        weight,
        dx,
        m,
        n,
        k,
        dy.stride(0),
        weight.stride(0),
        k,
        ALIGN_N=tiles.alignment(n, dy.stride(0)),
        ALIGN_K=tiles.alignment(k, weight.stride(0)),
        PRECISION=precision,
        **tile.constants(),
    )
    return dx


def linear_backward_weight(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Full-size gradients of the super weight and bias, zero outside the slice.

    Args:
        dy: (M, N), any row stride; copied where the last stride is not 1.
        x: (M, K), likewise.
        weight: (N_max, K_max); only its shape, dtype and device are used.
        bias: (N_max,) likewise, or None.

    Returns:
        (N_max, K_max) contiguous in the weight's dtype, and (N_max,) in the bias's dtype or None.

    Raises:
        UsageError: as :func:`linear_forward`, or dy and x differ in rows.
    """
    _check_matrix("dy", dy, "(M, N)")
    _check_matrix("x", x, "(M, K)")
    dy, x = launch.activation(dy), launch.activation(x)
    device = launch.check(dy=dy, x=x, weight=weight, bias=bias)
    (m, n), k = dy.shape, x.shape[1]
    if x.shape[0] != m:
        raise UsageError(f"dy has {m} rows but x has {x.shape[0]}. They must come from the same batch.")
    check_slice(weight, n, k)
    check_bias(bias, weight)
    launch.check_products(dy, x)
    n_max, k_max = weight.shape
    grad = torch.empty((n_max, k_max), dtype=weight.dtype, device=device)
    grad_bias = None if bias is None else torch.empty((n_max,), dtype=bias.dtype, device=device)
    if m == 0:
        return grad.zero_(), None if grad_bias is None else grad_bias.zero_()

    precision = launch.dot_precision(x.dtype)
    multiprocessors = launch.multiprocessors(device)
    tile = tiles.pick(tiles.operand_kind(x.dtype, dy.dtype, precision), n, k, multiprocessors, depth=m)
    row_tiles, col_tiles = triton.cdiv(n, tile.rows), triton.cdiv(k, tile.cols)
    splits = tiles.pick_splits(tile, row_tiles * col_tiles, m, multiprocessors)
    rows_per_split = triton.cdiv(triton.cdiv(m, splits), tile.depth) * tile.depth
    splits = triton.cdiv(m, rows_per_split)
    if splits == 1:
        out, bias_out = grad, grad_bias
        out_rows, out_cols, bias_rows = n_max, k_max, n_max
        row_tiles, col_tiles = triton.cdiv(n_max, tile.rows), triton.cdiv(k_max, tile.cols)
    else:
        out_rows, out_cols, bias_rows = row_tiles * tile.rows, col_tiles * tile.cols, n
        out = torch.empty((splits, out_rows, out_cols), dtype=torch.float32, device=device)
        bias_out = None if bias is None else torch.empty((splits, n), dtype=torch.float32, device=device)
    launch.run(
        _backward_weight,
        (row_tiles * col_tiles, splits),
        device,
        dy,
        x,
        out,
        bias_out,
        m,
        n,
        k,
        rows_per_split,
        out_rows,
        out_cols,
        bias_rows,
        dy.stride(0),
        x.stride(0),
        ALIGN_N=tiles.alignment(n, dy.stride(0)),
        ALIGN_K=tiles.alignment(k, x.stride(0)),
        ALIGN_OUT=tiles.alignment(out_cols),
        PRECISION=precision,
        **tile.constants(),
    )
    if splits > 1:
        add_partials(out, bias_out, grad, grad_bias, n, k)
    return grad, grad_bias
