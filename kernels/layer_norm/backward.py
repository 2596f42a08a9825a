"""LayerNorm over the first d channels of shared parameters: gradients of input and parameters.

Shapes as in ``layer_norm.forward``; dy, dx (M, d), and:
    g = dy * weight                       dx = rstd * (g - average(g) - xhat * average(g * xhat))
    dweight[:d] = sum over rows of dy * xhat, dbias[:d] = sum over rows of dy, both zero elsewhere
    where x also went past the LayerNorm, the gradient that came that way is added to dx: + dresidual

The 16 warps of a multiprocessor are at different places of their loops, which hides the latency of their
loads, 2 to 6 KB each. The parameter gradients take integer counters instead of float atomics: each program
keeps the sums of its own rows and stores them as fp32 partial sums, and the last program to finish adds these
in order and writes the full-size gradients, zeros included (``split_k``). So it is one launch, and the bits
are the same in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_norm, check_same_shape
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.split_k import add_columns, leave_columns, write_columns
from growtas.kernels.layer_norm.layout import along_rows, column_sums, columns, row_sums


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
    SUM_GROUP: tl.constexpr,  # programs per group
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Grid: (programs,). Each walks over its own block of consecutive rows."""
    VECTOR: tl.constexpr = ALIGN if ALIGN < 4 else 4
    width = known_multiple(width, ALIGN)
    stride_dresidual = known_multiple(stride_dresidual, VECTOR)
    stride_dy = known_multiple(stride_dy, VECTOR)
    stride_x = known_multiple(stride_x, VECTOR)
    stride_dx = known_multiple(stride_dx, VECTOR)
    program = tl.program_id(0)
    first = program * rows_per_program
    dweight, dbias = backward_rows(
        dy_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dresidual_ptr,
        first, first + rows_per_program, M, width, stride_dy, stride_x, stride_dx, stride_dresidual,
        BLOCK_ROWS, BLOCK_COLS, False,
    )  # fmt: skip
    leave_columns(dweight, dbias, partial_ptr, program, BLOCK_COLS)
    dweight_sum, dbias_sum, last = add_columns(
        partial_ptr, counter_ptr, program, programs, BLOCK_COLS, SUM_GROUP
    )
    if last:
        write_columns(dweight_sum, dbias_sum, dweight_ptr, dbias_ptr, full_width, BLOCK_COLS)


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
            "SUM_GROUP": tiles.NORM_GROUP,
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLS": tile.cols,
            "num_warps": tile.warps,
        },
        outputs=(((m, width), x.dtype), ((full_width,), weight.dtype), ((full_width,), bias.dtype)),
        counters=1 + groups,
        partials=(programs + groups) * 2 * tile.cols,
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
    """Gradients of x and of the shared parameters at full size, the latter zero past d, in one launch.

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
