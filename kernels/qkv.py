"""Sliced q, k, v projection on an interleaved super weight: forward, and gradients of input, weight, bias.

Shapes (one subnet's layer; E = head_dim, h of H heads, d of D channels, M = B * N rows):
    x (B, N, d)   weight (3*E*H, D), of which [:3*E*h, :d] is active   bias (3*E*H,) or None
    qkv (3, B, h, N, E) contiguous: what attention reads, written directly, never transposed

Row 3*u + i of the weight belongs to part i (0 q, 1 k, 2 v) and unit u = j*E + e of head j, as AutoFormer
publishes it (Chen et al., ICCV 2021; released code, "change_qkv"). So each part is a strided view, row step
3*D, and nothing is gathered: a program takes one part and a block of units. A smaller head count is a prefix
of a larger one. The bias of (i, u) is entry i*bias_step_i + u*bias_step_u: (1, 3) follows the weight
("interleaved"), (E*h, 1) is what the published code does. In both, the active entries are the first 3*E*h.

Products, edges, splitting and determinism as in ``linear``. E and N are compile-time constants: a supernet
has one of each, and dividing by them (row -> image and token, unit -> head) then costs a multiplication.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas.errors import UsageError, nearest
from growtas.kernels import launch, tiles
from growtas.kernels.launch import known_multiple
from growtas.kernels.matmul import accumulate, accumulate_over_rows, add_partials, load_tile, tile_of
from growtas.kernels.slices import check_bias, check_slice

BIAS_LAYOUTS = ("interleaved", "published")


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
    cols = (col_tile - part * unit_tiles) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_ok = cols < units
    steps = tl.arange(0, BLOCK_DEPTH)

    acc = accumulate(
        tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32),
        x_ptr + row.to(tl.int64) * stride_x + rows[:, None] * stride_x + steps[None, :],
        row_ok,
        BLOCK_DEPTH,
        weight_ptr + part * stride_weight + (cols * 3)[None, :] * stride_weight + steps[:, None],
        col_ok,
        BLOCK_DEPTH,
        K,
        x_ptr.dtype.element_ty,
        PRECISION,
        BLOCK_DEPTH,
    )
    if bias_ptr is not None:
        bias_ptrs = bias_ptr + part * bias_step_i + cols * bias_step_u
        acc += tl.load(bias_ptrs, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    image = ((row + rows) // TOKENS).to(tl.int64)
    token = (row + rows) % TOKENS
    row_offsets = part.to(tl.int64) * M * units + image * (TOKENS * units) + token * HEAD_DIM
    col_offsets = (cols // HEAD_DIM) * (TOKENS * HEAD_DIM) + cols % HEAD_DIM
    qkv_ptrs = qkv_ptr + row_offsets[:, None] + col_offsets[None, :]
    tl.store(qkv_ptrs, acc.to(qkv_ptr.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])


@launch.kernel
def _backward_input(
    dqkv_ptr,  # (3, B, h, N, E) contiguous
    weight_ptr,  # (3*E*H, D), row stride stride_weight
    dx_ptr,  # (M, d) contiguous
    M,
    K,  # d
    heads,  # h
    stride_weight,
    ALIGN_K: tl.constexpr,  # divides d and stride_weight
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over M * tiles over d,). The reduction walks over heads, then units, then q, k, v."""
    K = known_multiple(K, ALIGN_K)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    row_tile, col_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_ROWS), tl.cdiv(K, BLOCK_COLS), GROUP)
    row = row_tile * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    cols = col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_ok = cols < K
    steps = tl.arange(0, BLOCK_DEPTH)

    DTYPE: tl.constexpr = dqkv_ptr.dtype.element_ty
    CHUNKS: tl.constexpr = (HEAD_DIM + BLOCK_DEPTH - 1) // BLOCK_DEPTH
    units = heads * HEAD_DIM
    image = ((row + rows) // TOKENS).to(tl.int64)
    token = (row + rows) % TOKENS
    dqkv_ptrs = dqkv_ptr + (image * (TOKENS * units) + token * HEAD_DIM)[:, None] + steps[None, :]
    weight_ptrs = weight_ptr + (steps * 3)[:, None] * stride_weight + cols[None, :]
    part_stride = M.to(tl.int64) * units
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    for step in range(0, 3 * CHUNKS * heads):
        part = step % 3
        unit = (step // 3 % CHUNKS) * BLOCK_DEPTH  # first unit of this step within its head
        head = step // (3 * CHUNKS)
        ok = steps < HEAD_DIM - unit
        a = load_tile(dqkv_ptrs + part * part_stride + (head * TOKENS * HEAD_DIM + unit), row_ok, ok, DTYPE)
        weight_row = 3 * (head * HEAD_DIM + unit) + part
        b = load_tile(weight_ptrs + weight_row * stride_weight, ok, col_ok, DTYPE)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    dx_ptrs = dx_ptr + row.to(tl.int64) * K + rows[:, None] * K + cols[None, :]
    tl.store(dx_ptrs, acc.to(dx_ptr.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])


@launch.kernel
def _backward_weight(
    dqkv_ptr,  # (3, B, h, N, E) contiguous
    x_ptr,  # (M, d), row stride stride_x
    out_ptr,  # (splits, out_rows, out_cols), rows 3*u + i: the gradient itself, or fp32 partial sums
    bias_out_ptr,  # (splits, bias_rows), or None
    M,
    K,  # d
    heads,  # h
    rows_per_split,  # a multiple of BLOCK_DEPTH
    out_units,  # out_rows / 3
    out_cols,
    bias_rows,
    bias_step_i,
    bias_step_u,
    stride_x,
    ALIGN_K: tl.constexpr,  # divides d and stride_x
    ALIGN_OUT: tl.constexpr,  # divides out_cols
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (3 * tiles over out_units * tiles over out_cols, splits). Tiles outside the slice write zeros."""
    K = known_multiple(K, ALIGN_K)
    stride_x = known_multiple(stride_x, ALIGN_K)
    out_cols = known_multiple(out_cols, ALIGN_OUT)
    unit_tiles = tl.cdiv(out_units, BLOCK_ROWS)
    row_tile, col_tile = tile_of(tl.program_id(0), 3 * unit_tiles, tl.cdiv(out_cols, BLOCK_COLS), GROUP)
    part = row_tile // unit_tiles
    unit = (row_tile - part * unit_tiles) * BLOCK_ROWS
    split = tl.program_id(1).to(tl.int64)
    units = heads * HEAD_DIM
    rows = unit + tl.arange(0, BLOCK_ROWS)
    cols = col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    row_ok = rows < units
    col_ok = cols < K
    start = split * rows_per_split
    depth = tl.minimum(M - start, rows_per_split).to(tl.int32)
    depth = tl.where((unit < units) & (col_tile * BLOCK_COLS < K), depth, 0)

    row_offsets = (rows // HEAD_DIM) * (TOKENS * HEAD_DIM) + rows % HEAD_DIM
    dqkv_ptrs = dqkv_ptr + part * (M.to(tl.int64) * units) + row_offsets
    stride_image = TOKENS * units
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    if bias_out_ptr is not None and col_tile == 0:
        acc, total = accumulate_over_rows(
            acc, dqkv_ptrs, row_ok, stride_image, HEAD_DIM, x_ptr + cols, col_ok, stride_x, start, depth,
            TOKENS, True, x_ptr.dtype.element_ty, PRECISION, BLOCK_ROWS, BLOCK_DEPTH,
        )  # fmt: skip
        # Inactive entries lie behind the active prefix, in the weight's own order whatever the layout.
        entries = tl.where(row_ok, part * bias_step_i + rows * bias_step_u, 3 * rows + part)
        bias_ptrs = bias_out_ptr + split * bias_rows + entries
        tl.store(bias_ptrs, total.to(bias_out_ptr.dtype.element_ty), mask=entries < bias_rows)
    else:
        acc, total = accumulate_over_rows(
            acc, dqkv_ptrs, row_ok, stride_image, HEAD_DIM, x_ptr + cols, col_ok, stride_x, start, depth,
            TOKENS, False, x_ptr.dtype.element_ty, PRECISION, BLOCK_ROWS, BLOCK_DEPTH,
        )  # fmt: skip
    out_ptrs = out_ptr + (split * 3 * out_units + (3 * rows + part)[:, None]) * out_cols + cols[None, :]
    exists = (rows < out_units)[:, None] & (cols < out_cols)[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=exists)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(B, N, d) as (B*N, d): a view where one row stride serves, else a copy, made once here at the edge."""
    if x.ndim != 3:
        raise UsageError(f"x has shape {tuple(x.shape)}, but (B, N, d) is needed.")
    x = launch.activation(x)
    b, n, d = x.shape
    if x.stride(0) == n * x.stride(1) or b == 1:
        return x.as_strided((b * n, d), (x.stride(1), x.stride(2)))
    return x.reshape(b * n, d)


def _check_heads(weight: torch.Tensor, num_heads: int, head_dim: int) -> None:
    if weight.ndim != 2 or weight.shape[0] % (3 * head_dim):
        raise UsageError(
            f"The qkv weight has shape {tuple(weight.shape)}, but its rows must be a multiple of "
            f"3 * head_dim = {3 * head_dim}. Pass the super weight of the supernet's own head_dim."
        )


def _gradient(dqkv: torch.Tensor) -> torch.Tensor:
    if dqkv.ndim != 5 or dqkv.shape[0] != 3:
        raise UsageError(f"dqkv has shape {tuple(dqkv.shape)}, but (3, B, h, N, head_dim) is needed.")
    return dqkv.contiguous()


def _bias_steps(layout: str, num_heads: int, head_dim: int) -> tuple[int, int]:
    if layout not in BIAS_LAYOUTS:
        raise UsageError(f"Unknown bias layout {layout!r}.{nearest(layout, BIAS_LAYOUTS)}")
    return (1, 3) if layout == "interleaved" else (head_dim * num_heads, 1)


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
        weight: (3*head_dim*H, D) super weight, rows 3*u + i; fp32 or x's dtype.
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
    rows = _rows(x)
    device = launch.check(x=rows, weight=weight, bias=bias)
    (b, n, d), m = x.shape, rows.shape[0]
    _check_heads(weight, num_heads, head_dim)
    check_slice(weight, 3 * head_dim * num_heads, d)
    check_bias(bias, weight)
    launch.check_products(x, weight)
    bias_steps = _bias_steps(bias_layout, num_heads, head_dim)
    qkv = torch.empty((3, b, num_heads, n, head_dim), dtype=x.dtype, device=device)
    if m == 0:
        return qkv
    precision = launch.dot_precision(x.dtype)
    units = num_heads * head_dim
    kind = tiles.operand_kind(x.dtype, weight.dtype, precision)
    tile = tiles.pick(kind, m, units, launch.multiprocessors(device), panels=3)
    launch.run(
        _forward,
        (triton.cdiv(m, tile.rows) * 3 * triton.cdiv(units, tile.cols),),
        device,
        rows,
        weight,
        bias,
        qkv,
        m,
        d,
        num_heads,
        rows.stride(0),
        weight.stride(0),
        *bias_steps,
        ALIGN_K=tiles.alignment(d, rows.stride(0), weight.stride(0)),
        TOKENS=n,
        HEAD_DIM=head_dim,
        PRECISION=precision,
        **tile.constants(),
    )
    return qkv


def qkv_backward_input(dqkv: torch.Tensor, weight: torch.Tensor, in_features: int) -> torch.Tensor:
    """Gradient of x.

    Args:
        dqkv: (3, B, h, N, E); copied where not contiguous.
        weight: (3*E*H, D) super weight.
        in_features: d.

    Returns:
        (B, N, d) contiguous, in dqkv's dtype.

    Raises:
        UsageError: as :func:`qkv_forward`.
    """
    dqkv = _gradient(dqkv)
    device = launch.check(dqkv=dqkv, weight=weight)
    _, b, heads, n, head_dim = dqkv.shape
    m, d = b * n, in_features
    _check_heads(weight, heads, head_dim)
    check_slice(weight, 3 * head_dim * heads, d)
    launch.check_products(dqkv, weight)
    dx = torch.empty((b, n, d), dtype=dqkv.dtype, device=device)
    if m == 0:
        return dx
    precision = launch.dot_precision(dqkv.dtype)
    kind = tiles.operand_kind(dqkv.dtype, weight.dtype, precision)
    tile = tiles.pick(kind, m, d, launch.multiprocessors(device))
    launch.run(
        _backward_input,
        (triton.cdiv(m, tile.rows) * triton.cdiv(d, tile.cols),),
        device,
        dqkv,
        weight,
        dx,
        m,
        d,
        heads,
        weight.stride(0),
        ALIGN_K=tiles.alignment(d, weight.stride(0)),
        TOKENS=n,
        HEAD_DIM=head_dim,
        PRECISION=precision,
        **tile.constants(),
    )
    return dx


def qkv_backward_weight(
    dqkv: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    bias_layout: str = "interleaved",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Full-size gradients of the super weight (rows interleaved) and bias, zero outside the slice.

    Args:
        dqkv: (3, B, h, N, E); copied where not contiguous.
        x: (B, N, d); copied where its rows have no common stride.
        weight: (3*E*H, D); only its shape, dtype and device are used.
        bias: (3*E*H,) likewise, or None.
        bias_layout: as :func:`qkv_forward`.

    Returns:
        (3*E*H, D) contiguous in the weight's dtype, and (3*E*H,) in the bias's dtype or None.

    Raises:
        UsageError: as :func:`qkv_forward`, or dqkv and x differ in images or tokens.
    """
    dqkv, rows = _gradient(dqkv), _rows(x)
    device = launch.check(dqkv=dqkv, x=rows, weight=weight, bias=bias)
    _, b, heads, n, head_dim = dqkv.shape
    if tuple(x.shape[:2]) != (b, n):
        raise UsageError(
            f"dqkv is for {b} images of {n} tokens but x has shape {tuple(x.shape)}. "
            "They must come from the same batch."
        )
    m, d = rows.shape
    _check_heads(weight, heads, head_dim)
    check_slice(weight, 3 * head_dim * heads, d)
    check_bias(bias, weight)
    launch.check_products(dqkv, x)
    bias_steps = _bias_steps(bias_layout, heads, head_dim)
    n_max, d_max = weight.shape
    grad = torch.empty((n_max, d_max), dtype=weight.dtype, device=device)
    grad_bias = None if bias is None else torch.empty((n_max,), dtype=bias.dtype, device=device)
    if m == 0:
        return grad.zero_(), None if grad_bias is None else grad_bias.zero_()

    precision = launch.dot_precision(x.dtype)
    multiprocessors = launch.multiprocessors(device)
    units = heads * head_dim
    kind = tiles.operand_kind(x.dtype, dqkv.dtype, precision)
    tile = tiles.pick(kind, units, d, multiprocessors, panels=3, depth=m)
    unit_tiles, col_tiles = triton.cdiv(units, tile.rows), triton.cdiv(d, tile.cols)
    splits = tiles.pick_splits(tile, 3 * unit_tiles * col_tiles, m, multiprocessors)
    rows_per_split = triton.cdiv(triton.cdiv(m, splits), tile.depth) * tile.depth
    splits = triton.cdiv(m, rows_per_split)
    if splits == 1:
        out, bias_out = grad, grad_bias
        out_units, out_cols, bias_rows = n_max // 3, d_max, n_max
        unit_tiles, col_tiles = triton.cdiv(out_units, tile.rows), triton.cdiv(d_max, tile.cols)
    else:
        out_units, out_cols, bias_rows = unit_tiles * tile.rows, col_tiles * tile.cols, 3 * units
        out = torch.empty((splits, 3 * out_units, out_cols), dtype=torch.float32, device=device)
        bias_out = (
            None if bias is None else torch.empty((splits, bias_rows), dtype=torch.float32, device=device)
        )
    launch.run(
        _backward_weight,
        (3 * unit_tiles * col_tiles, splits),
        device,
        dqkv,
        rows,
        out,
        bias_out,
        m,
        d,
        heads,
        rows_per_split,
        out_units,
        out_cols,
        bias_rows,
        *bias_steps,
        rows.stride(0),
        ALIGN_K=tiles.alignment(d, rows.stride(0)),
        ALIGN_OUT=tiles.alignment(out_cols),
        TOKENS=n,
        HEAD_DIM=head_dim,
        PRECISION=precision,
        **tile.constants(),
    )
    if splits > 1:
        add_partials(out, bias_out, grad, grad_bias, 3 * units, d)
    return grad, grad_bias
