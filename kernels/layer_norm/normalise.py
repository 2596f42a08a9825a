"""LayerNorm's result once more, from the mean and rstd that the forward pass saved; for weight gradients."""

from __future__ import annotations

import torch
import triton.language as tl

from growtas.kernels.common import launch, tiles
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned


@launch.kernel
def _normalise(
    x_ptr,  # (M, d), row stride stride_x
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    weight_ptr,  # (D,)
    bias_ptr,  # (D,)
    z_ptr,  # (M, d) contiguous
    M,
    width,  # d
    stride_x,
    ALIGN: tl.constexpr,  # divides d and stride_x
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Grid: (tiles over M,)."""
    width = known_multiple(width, ALIGN)
    stride_x = known_multiple(stride_x, ALIGN)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.arange(0, BLOCK_COLS)
    row_ok, col_ok = rows < M, cols < width
    ok = row_ok[:, None] & col_ok[None, :]
    at = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + at * stride_x + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + rows, mask=row_ok, other=0.0)
    rstd = tl.load(rstd_ptr + rows, mask=row_ok, other=0.0)
    weight = tl.load(weight_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)
    z = (x - mean[:, None]) * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(z_ptr + at * width + cols[None, :], z.to(z_ptr.dtype.element_ty), mask=ok)


@planned
def _plan_normalise(
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    dtype: torch.dtype,
) -> Plan:
    """Check and plan; writes z."""
    device = launch.check(x=x, mean=mean, rstd=rstd, norm_weight=norm_weight, norm_bias=norm_bias)
    m, width = x.shape
    tile = tiles.pick_norm(width)
    return Plan(
        _normalise,
        (ceil(m, tile.rows),),
        device,
        (m, width, x.stride(0)),
        {
            "ALIGN": tiles.alignment(width, x.stride(0)),
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLS": tile.cols,
            "num_warps": tile.warps,
        },
        outputs=(((m, width), dtype),),
    )


def normalised(
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """LayerNorm's result once more, from the statistics that were kept.

    Args:
        x: (M, d), any row stride; copied where the last stride is not 1.
        mean, rstd: (M,) fp32.
        norm_weight, norm_bias: (D,), D >= d.
        dtype: of the result.

    Returns:
        (M, d) contiguous.

    Raises:
        UsageError: d is over ``tiles.MAX_NORM_WIDTH``, or a tensor cannot be read (see ``launch.check``).
    """
    x = launch.activation(x)
    plan = _plan_normalise(x, mean, rstd, norm_weight, norm_bias, dtype)
    (z,) = plan.outputs()
    plan.start(x, mean, rstd, norm_weight, norm_bias, z)
    return z
