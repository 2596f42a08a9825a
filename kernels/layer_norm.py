"""LayerNorm over the first d channels of super-sized parameters: forward, input and parameter gradients.

Shapes (M = rows of the batch):
    x (M, d), any row stride   weight (D,), bias (D,), of which [:d] is active   y (M, d)
    mean (M,), rstd (M,) fp32

    xhat = (x - mean) * rstd              y = xhat * weight + bias
    g = dy * weight                       dx = rstd * (g - average(g) - xhat * average(g * xhat))
    dweight[:d] = sum over rows of dy * xhat, dbias[:d] = sum over rows of dy, both zero elsewhere
    where x also went past the LayerNorm, the gradient that came that way is added to dx: + dresidual

Everything is computed in fp32 whatever the dtypes of x, y and the parameters, which need not agree. A row
fits into one warp (up to 1024 channels, else into one program), so x is read once and its sums pass no
barrier. Every thread has four consecutive channels of each tensor, whatever its dtype, so no layout is
converted. Warps of a multiprocessor, 16 in the backward pass, are at different places of their loops: that is
what hides the latency of their loads, 2 to 6 KB each. Lanes past d are masked *before* the variance: x - mean
of a padded zero is not zero. Saved for backward: mean and rstd (8 bytes per row); xhat is recomputed from x.
The parameter gradients take no atomics but integer counters: each program of the backward pass keeps the sums
of its own rows and leaves them as fp32 parts, and the last to finish adds these in order and writes the
full-size gradients, zeros included (``parts``). So it is one launch, and the bits are the same in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels import launch, tiles
from growtas.kernels.launch import known_multiple
from growtas.kernels.parts import add_columns, leave_columns, write_columns
from growtas.kernels.plan import Plan, ceil, planned
from growtas.kernels.slices import check_same_shape

#: Whether the rows are the first axis of a tile (rows, pieces of a row, 128 columns), else the second. A warp
#: should have whole rows, so that no sum along a row leaves it. Triton gives warps to the axes in the order
#: of how contiguous their addresses are; rows and pieces are alike, and versions break the tie differently.
ROWS_FIRST = tl.constexpr(tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7))


@triton.jit
def columns(BLOCK_COLS: tl.constexpr):
    """Column numbers, the pieces of a row and the columns of a piece, to lie beside :func:`along_rows`."""
    PIECE: tl.constexpr = BLOCK_COLS if BLOCK_COLS < 128 else 128
    pieces = tl.arange(0, BLOCK_COLS // PIECE) * PIECE
    if ROWS_FIRST:
        at = pieces[None, :, None]
    else:
        at = pieces[:, None, None]
    return at + tl.arange(0, PIECE)[None, None, :]


@triton.jit
def along_rows(x):
    """A vector with one entry per row as a tile with one column."""
    if ROWS_FIRST:
        x = x[:, None, None]
    else:
        x = x[None, :, None]
    return x


@triton.jit
def row_sums(x):
    """Sums along the rows of a tile, one column: first over what a thread holds, then over its warp."""
    return tl.sum(tl.sum(x, axis=1 if ROWS_FIRST else 0, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def column_sums(x, BLOCK_COLS: tl.constexpr):
    """(BLOCK_COLS,) sums over the rows of a tile."""
    return tl.reshape(tl.sum(x, axis=0 if ROWS_FIRST else 1), (BLOCK_COLS,))


@launch.kernel
def _forward(
    x_ptr,  # (M, d), row stride stride_x
    weight_ptr,  # (D,)
    bias_ptr,  # (D,)
    y_ptr,  # (M, d), row stride stride_y
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    M,
    width,  # d
    stride_x,
    stride_y,
    eps,
    ALIGN: tl.constexpr,  # divides d, stride_x and stride_y
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Grid: (tiles over M,)."""
    QUAD: tl.constexpr = ALIGN if ALIGN < 4 else 4
    width = known_multiple(width, ALIGN)
    stride_x = known_multiple(stride_x, QUAD)
    stride_y = known_multiple(stride_y, QUAD)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M
    cols = columns(BLOCK_COLS)
    col_ok = cols < width
    ok = along_rows(row_ok) & col_ok
    at = along_rows(rows.to(tl.int64))
    x = tl.load(x_ptr + at * stride_x + cols, mask=ok, other=0.0).to(tl.float32)
    entries = cols + tl.zeros_like(at).to(tl.int32)  # for every row, so that their layout is that of x
    weight = tl.load(weight_ptr + entries, mask=col_ok, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + entries, mask=col_ok, other=0.0).to(tl.float32)
    mean = row_sums(x) / width
    centred = tl.where(col_ok, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(row_sums(centred * centred) / width + eps)
    y = centred * rstd * weight + bias
    tl.store(y_ptr + at * stride_y + cols, y.to(y_ptr.dtype.element_ty), mask=ok)
    tl.store(mean_ptr + at, mean, mask=along_rows(row_ok))
    tl.store(rstd_ptr + at, rstd, mask=along_rows(row_ok))


@triton.jit
def backward_rows(
    dy_ptr,  # (M, d), row stride stride_dy; may be dx
    x_ptr,  # (M, d), row stride stride_x
    weight_ptr,  # (D,)
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    dx_ptr,  # (M, d), row stride stride_dx
    dresidual_ptr,  # (M, d), row stride stride_dresidual, or None
    first,
    last,
    M,
    width,
    stride_dy,
    stride_x,
    stride_dx,
    stride_dresidual,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    IN_PLACE: tl.constexpr,  # dx is written where dy is read
):
    """Write dx of rows first .. last - 1; return their sums of dy * xhat and of dy, (BLOCK_COLS,) each."""
    cols = columns(BLOCK_COLS)
    col_ok = cols < width
    weight = tl.load(weight_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)
    dweight = along_rows(tl.zeros((BLOCK_ROWS,), tl.float32)) + tl.zeros_like(cols).to(tl.float32)
    dbias = dweight
    last = tl.minimum(last, M)
    for row in range(first, last, BLOCK_ROWS):
        rows = row + tl.arange(0, BLOCK_ROWS)
        row_ok = rows < last
        ok = along_rows(row_ok) & col_ok
        at = along_rows(rows.to(tl.int64))
        x = tl.load(x_ptr + at * stride_x + cols, mask=ok, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at * stride_dy + cols, mask=ok, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + at, mask=along_rows(row_ok), other=0.0)
        rstd = tl.load(rstd_ptr + at, mask=along_rows(row_ok), other=0.0)
        if dresidual_ptr is not None:
            dresidual = tl.load(dresidual_ptr + at * stride_dresidual + cols, mask=ok, other=0.0)
        xhat = tl.where(col_ok, (x - mean) * rstd, 0.0)
        dweight += dy * xhat
        dbias += dy
        g = dy * weight
        g_average = row_sums(g) / width
        g_xhat_average = row_sums(g * xhat) / width
        dx = (g - g_average - xhat * g_xhat_average) * rstd
        if dresidual_ptr is not None:
            dx += dresidual.to(tl.float32)
        if IN_PLACE:
            tl.debug_barrier()  # all of dy has been read, by whichever thread
        tl.store(dx_ptr + at * stride_dx + cols, dx.to(dx_ptr.dtype.element_ty), mask=ok)
    return column_sums(dweight, BLOCK_COLS), column_sums(dbias, BLOCK_COLS)


@launch.kernel
def _backward(
    dy_ptr,  # (M, d), row stride stride_dy
    x_ptr,  # (M, d), row stride stride_x
    weight_ptr,  # (D,)
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    dx_ptr,  # (M, d), row stride stride_dx
    dresidual_ptr,  # (M, d), row stride stride_dresidual, or None
    dweight_ptr,  # (D,)
    dbias_ptr,  # (D,)
    partial_ptr,  # (programs + groups, 2, BLOCK_COLS) fp32: sums of dy * xhat and of dy over some rows
    counter_ptr,  # (1 + groups,) int32 zeros
    M,
    width,  # d
    full_width,  # D
    programs,
    rows_per_program,  # a multiple of BLOCK_ROWS
    stride_dy,
    stride_x,
    stride_dx,
    stride_dresidual,
    ALIGN: tl.constexpr,  # divides d and the four strides
    PARTS: tl.constexpr,  # programs per group
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Grid: (programs,). Each walks over its own block of consecutive rows."""
    QUAD: tl.constexpr = ALIGN if ALIGN < 4 else 4
    width = known_multiple(width, ALIGN)
    stride_dresidual = known_multiple(stride_dresidual, QUAD)
    stride_dy = known_multiple(stride_dy, QUAD)
    stride_x = known_multiple(stride_x, QUAD)
    stride_dx = known_multiple(stride_dx, QUAD)
    program = tl.program_id(0)
    first = program * rows_per_program
    dweight, dbias = backward_rows(
        dy_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dresidual_ptr,
        first, first + rows_per_program, M, width, stride_dy, stride_x, stride_dx, stride_dresidual,
        BLOCK_ROWS, BLOCK_COLS, False,
    )  # fmt: skip
    leave_columns(dweight, dbias, partial_ptr, program, BLOCK_COLS)
    dweight_sum, dbias_sum, last = add_columns(partial_ptr, counter_ptr, program, programs, BLOCK_COLS, PARTS)
    if last:
        write_columns(dweight_sum, dbias_sum, dweight_ptr, dbias_ptr, full_width, BLOCK_COLS)


def check_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Refuse rows that are no matrix, and parameters that are not of one length, at least theirs."""
    if x.ndim != 2:
        raise UsageError(f"x has shape {tuple(x.shape)}, but (M, d) is needed. Flatten the rows first.")
    check_norm_parameters(x.shape[1], weight, bias)


def check_norm_parameters(channels: int, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Refuse parameters that are not of one length, at least ``channels``."""
    width = weight.shape[0] if weight.ndim == 1 else 0
    if weight.ndim != 1 or bias.shape != weight.shape or not 0 < channels <= width:
        raise UsageError(
            f"LayerNorm over {channels} channels needs weight and bias of one length, at least that, "
            f"but theirs are {tuple(weight.shape)} and {tuple(bias.shape)}. Pass the super parameters whole."
        )


@planned
def _plan_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, out_dtype: torch.dtype
) -> Plan:
    """Check and plan; writes y, mean and rstd."""
    check_norm(x, weight, bias)
    device = launch.check(x=x, weight=weight, bias=bias)
    launch.check_dtype("y", out_dtype)
    m, width = x.shape
    tile = tiles.pick_norm(width)
    return Plan(
        _forward,
        (ceil(m, tile.rows),),
        device,
        (m, width, x.stride(0), width, eps),
        {
            "ALIGN": tiles.alignment(width, x.stride(0)),
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLS": tile.cols,
            "num_warps": tile.warps,
        },
        outputs=(((m, width), out_dtype), ((m,), torch.float32), ((m,), torch.float32)),
    )


def layer_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise each row over its d channels, scale and shift by the first d parameters.

    Args:
        x: (M, d), any row stride; copied where the last stride is not 1.
        weight, bias: (D,), D >= d; any of the three dtypes, independent of x.
        eps: added to the variance.
        out_dtype: of y; None means x's.

    Returns:
        y (M, d) contiguous, and mean and rstd, (M,) fp32 each, for the backward pass.

    Raises:
        UsageError: d is over D or over ``tiles.MAX_NORM_WIDTH``, or a tensor cannot be read (see
        ``launch.check``).
    """
    x = launch.activation(x)
    plan = _plan_forward(x, weight, bias, eps, out_dtype or x.dtype)
    y, mean, rstd = plan.outputs()
    plan.start(x, weight, bias, y, mean, rstd)
    return y, mean, rstd


@planned
def _plan_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    dresidual: torch.Tensor | None,
) -> Plan:
    """Check and plan; writes dx, dweight and dbias."""
    check_norm(x, weight, bias)
    device = launch.check(dy=dy, x=x, weight=weight, bias=bias, mean=mean, rstd=rstd, dresidual=dresidual)
    m, width = x.shape
    if dresidual is not None:
        check_same_shape("dresidual", dresidual, (m, width), "x")
    if dy.shape != x.shape or tuple(mean.shape) != (m,) or tuple(rstd.shape) != (m,):
        raise UsageError(
            f"x has shape {tuple(x.shape)} but dy {tuple(dy.shape)}, mean {tuple(mean.shape)} and rstd "
            f"{tuple(rstd.shape)}. All must come from the same forward pass."
        )
    full_width = weight.shape[0]
    tile = tiles.pick_norm_gradient(width)
    programs = tiles.pick_norm_programs(tile, max(m, 1), launch.multiprocessors(device))
    rows_per_program = ceil(ceil(max(m, 1), programs), tile.rows) * tile.rows
    programs = ceil(m, rows_per_program)
    groups = ceil(programs, tiles.NORM_GROUP)
    stride_dresidual = width if dresidual is None else dresidual.stride(0)
    strides = (dy.stride(0), x.stride(0), width, stride_dresidual)
    return Plan(
        _backward,
        (programs,),
        device,
        (m, width, full_width, programs, rows_per_program, *strides),
        {
            "ALIGN": tiles.alignment(*strides),
            "PARTS": tiles.NORM_GROUP,
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLS": tile.cols,
            "num_warps": tile.warps,
        },
        outputs=(((m, width), x.dtype), ((full_width,), weight.dtype), ((full_width,), bias.dtype)),
        counters=1 + groups,
        parts=(programs + groups) * 2 * tile.cols,
    )


def layer_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    dresidual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x and of the super-sized parameters, the latter zero past d, in one launch.

    Args:
        dy: (M, d), any row stride; copied where the last stride is not 1.
        x: (M, d), likewise: the input of the forward pass.
        weight, bias: (D,).
        mean, rstd: (M,) fp32, as the forward pass returned them.
        dresidual: (M, d), any row stride, added to dx; or None.

    Returns:
        dx (M, d) contiguous in x's dtype, dweight and dbias (D,) in the dtypes of weight and bias.

    Raises:
        UsageError: as :func:`layer_norm_forward`, or the shapes of dy, mean and rstd do not fit x.
    """
    dy, x = launch.activation(dy), launch.activation(x)
    dresidual = None if dresidual is None else launch.activation(dresidual)
    plan = _plan_backward(dy, x, weight, bias, mean, rstd, dresidual)
    dx, dweight, dbias = plan.outputs()
    plan.start(dy, x, weight, mean, rstd, dx, dresidual, dweight, dbias)
    return dx, dweight, dbias
