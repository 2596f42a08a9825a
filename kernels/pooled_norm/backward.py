"""LayerNorm of tokens and their mean over each image: gradients of input and parameters.

Shapes as in ``pooled_norm.forward``; dpooled (B, d), dx (B, N, d). For pooled tokens dy = dpooled / count:
    g = dy * weight                       dx = rstd * (g - average(g) - xhat * average(g * xhat))
    dweight[:d] = sum over rows of dy * xhat, dbias[:d] = sum over rows of dy, both zero elsewhere
and dx is zero at other tokens.

It is LayerNorm's backward pass (``layer_norm.backward``: one launch, no float atomics, the same bits in every
run), whose rows read their image's dpooled, from the caches: no gradient of all tokens is written or read.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_same_shape
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.split_k import add_columns, leave_columns, write_columns
from growtas.kernels.layer_norm.layout import along_rows, column_sums, columns, row_sums
from growtas.kernels.pooled_norm.forward import check_pooled


@launch.kernel
def _backward(
    dpooled_ptr,  # (B, d) contiguous
    x_ptr,  # (B, N, d) contiguous
    weight_ptr,  # (D,)
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    dx_ptr,  # (B, N, d) contiguous
    dweight_ptr,  # (D,)
    dbias_ptr,  # (D,)
    partial_ptr,  # (programs + groups, 2, BLOCK_COLS) fp32: sums of dy * xhat and of dy over some rows
    counter_ptr,  # (1 + groups,) int32 zeros
    M,
    N,
    width,  # d
    full_width,  # D
    first,
    last,
    programs,
    rows_per_program,  # a multiple of BLOCK_ROWS
    ALIGN: tl.constexpr,  # divides d; up to 4
    SUM_GROUP: tl.constexpr,  # programs per group
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Grid: (programs,). Each walks over its own block of consecutive rows."""
    width = known_multiple(width, ALIGN)
    program = tl.program_id(0)
    cols = columns(BLOCK_COLS)
    col_ok = cols < width
    weight = tl.load(weight_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)
    dweight = along_rows(tl.zeros((BLOCK_ROWS,), tl.float32)) + tl.zeros_like(cols).to(tl.float32)
    dbias = dweight
    begin = program * rows_per_program
    end = tl.minimum(begin + rows_per_program, M)
    for row in range(begin, end, BLOCK_ROWS):
        rows = row + tl.arange(0, BLOCK_ROWS)
        row_ok = rows < end
        tokens = rows % N
        pooled = along_rows(row_ok & (tokens >= first) & (tokens < last))
        ok = pooled & col_ok
        at = along_rows(rows.to(tl.int64))
        image = along_rows((rows // N).to(tl.int64))
        x = tl.load(x_ptr + at * width + cols, mask=ok, other=0.0).to(tl.float32)
        dy = tl.load(dpooled_ptr + image * width + cols, mask=ok, other=0.0).to(tl.float32) / (last - first)
        mean = tl.load(mean_ptr + at, mask=pooled, other=0.0)
        rstd = tl.load(rstd_ptr + at, mask=pooled, other=0.0)
        xhat = tl.where(col_ok, (x - mean) * rstd, 0.0)
        dweight += dy * xhat
        dbias += dy
        g = dy * weight
        g_average = row_sums(g) / width
        g_xhat_average = row_sums(g * xhat) / width
        dx = (g - g_average - xhat * g_xhat_average) * rstd
        tl.store(dx_ptr + at * width + cols, dx.to(dx_ptr.dtype.element_ty), mask=along_rows(row_ok) & col_ok)
    leave_columns(
        column_sums(dweight, BLOCK_COLS), column_sums(dbias, BLOCK_COLS), partial_ptr, program, BLOCK_COLS
    )
    dweight_sum, dbias_sum, is_last = add_columns(
        partial_ptr, counter_ptr, program, programs, BLOCK_COLS, SUM_GROUP
    )
    if is_last:
        write_columns(dweight_sum, dbias_sum, dweight_ptr, dbias_ptr, full_width, BLOCK_COLS)


@planned
def _plan_backward(
    dpooled: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    first: int,
    last: int,
) -> Plan:
    """Check and plan; writes dx, dweight and dbias."""
    check_pooled(x, weight, bias, first, last)
    device = launch.check(dpooled=dpooled, x=x, weight=weight, bias=bias, mean=mean, rstd=rstd)
    batch, count, width = x.shape
    m = batch * count
    check_same_shape("dpooled", dpooled, (batch, width), "x")
    if tuple(mean.shape) != (m,) or tuple(rstd.shape) != (m,):
        raise UsageError(
            f"x has shape {tuple(x.shape)} but mean {tuple(mean.shape)} and rstd {tuple(rstd.shape)}. "
            "All must come from the same forward pass."
        )
    full_width = weight.shape[0]
    tile = tiles.pick_norm_gradient(width)
    programs = tiles.pick_norm_programs(tile, max(m, 1), launch.multiprocessors(device))
    rows_per_program = ceil(ceil(max(m, 1), programs), tile.rows) * tile.rows
    programs = ceil(m, rows_per_program)
    groups = ceil(programs, tiles.NORM_GROUP)
    return Plan(
        _backward,
        (programs,),
        device,
        (m, count, width, full_width, first, last, programs, rows_per_program),
        {
            "ALIGN": min(4, tiles.alignment(width)),
            "SUM_GROUP": tiles.NORM_GROUP,
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLS": tile.cols,
            "num_warps": tile.warps,
        },
        outputs=((tuple(x.shape), x.dtype), ((full_width,), weight.dtype), ((full_width,), bias.dtype)),
        counters=1 + groups,
        partials=(programs + groups) * 2 * tile.cols,
    )


def pooled_norm_backward(
    dpooled: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    first: int,
    last: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x and of the shared parameters at full size, the latter zero past d, in one launch.

    Args:
        dpooled: (B, d); copied where it is not contiguous.
        x: (B, N, d), likewise: the input of the forward pass.
        weight, bias: (D,).
        mean, rstd: (B * N,) fp32, as the forward pass returned them.
        first, last: which tokens were pooled.

    Returns:
        dx (B, N, d) in x's dtype, dweight and dbias (D,) in the dtypes of weight and bias.

    Raises:
        UsageError: as :func:`pooled_norm_forward`, or the shapes of dpooled, mean and rstd do not fit x.
    """
    dpooled, x = dpooled.contiguous(), x.contiguous()
    plan = _plan_backward(dpooled, x, weight, bias, mean, rstd, first, last)
    dx, dweight, dbias = plan.outputs()
    plan.start(dpooled, x, weight, mean, rstd, dx, dweight, dbias)
    return dx, dweight, dbias
