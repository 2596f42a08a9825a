"""LayerNorm over the first d channels of shared parameters: forward.

Shapes (M = rows of the batch):
    x (M, d), any row stride   weight (D,), bias (D,), of which [:d] is active   y (M, d)
    mean (M,), rstd (M,) fp32

    xhat = (x - mean) * rstd              y = xhat * weight + bias

Everything is computed in fp32 whatever the dtypes of x, y and the parameters, which need not agree. A row
fits into one warp (up to 1024 channels, else into one program), so x is read once and its sums pass no
barrier. Every thread has four consecutive channels of each tensor, whatever its dtype, so no layout is
converted. Lanes past d are masked *before* the variance: x - mean of a padded zero is not zero. Saved for
backward: mean and rstd (8 bytes per row); xhat is recomputed from x.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_norm
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.variance import rstd_of
from growtas.kernels.layer_norm.layout import along_rows, columns, row_sums


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
    VECTOR: tl.constexpr = ALIGN if ALIGN < 4 else 4
    width = known_multiple(width, ALIGN)
    stride_x = known_multiple(stride_x, VECTOR)
    stride_y = known_multiple(stride_y, VECTOR)
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
    rstd = rstd_of(row_sums(centred * centred) / width, eps)
    y = centred * rstd * weight + bias
    tl.store(y_ptr + at * stride_y + cols, y.to(y_ptr.dtype.element_ty), mask=ok)
    tl.store(mean_ptr + at, mean, mask=along_rows(row_ok))
    tl.store(rstd_ptr + at, rstd, mask=along_rows(row_ok))


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
