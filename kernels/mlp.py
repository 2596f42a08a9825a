"""The MLP branch of a block, y = x + scale * fc2(gelu(fc1(LayerNorm(x)))): which form runs, and the wide one.

Shapes (M = B * N rows of the batch; D and m_max are sizes of the super parameters):
    x, y, dy, dx (M, d)   norm_weight, norm_bias (D,)   w1 (m_max, D), b1 (m_max,)   w2 (D, m_max), b2 (D,)
    scale (B,) fp32, the drop-path factor of each image   mean, rstd (M,) fp32   hidden h (M, m) or (0,)

The rule: up to 256 channels (``mlp_tiles.MAX_FUSED_WIDTH``, so all of AutoFormer-T) the fused form, whatever
the dtype: ``mlp_fused``, ``mlp_fused_backward``; 1 and 3 launches, h never in memory. A wider row's sums do
not fit into the registers of one program, and the larger products hide the traffic of h: there LayerNorm, fc1
with GELU and fc2 with the residual are launches of their own (3), h is saved in the products' dtype, and the
backward pass (6) makes LayerNorm's result again from mean and rstd and gelu(h) again from h.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas.kernels import launch, mlp_tiles, tiles
from growtas.kernels.launch import known_multiple
from growtas.kernels.layer_norm import layer_norm_backward, layer_norm_forward
from growtas.kernels.linear import linear_forward, linear_gelu_forward, linear_residual_forward
from growtas.kernels.linear_backward import (
    linear_backward_input,
    linear_backward_weight,
    linear_gelu_backward_input,
)
from growtas.kernels.mlp_fused import check_branch, fused_forward
from growtas.kernels.mlp_fused_backward import check_gradients_of, fused_backward
from growtas.kernels.plan import Plan, ceil, planned
from growtas.kernels.rows import in_dtype
from growtas.kernels.slices import check_same_shape


def mlp_keeps_hidden(width: int, dtype: torch.dtype) -> bool:
    """Whether :func:`mlp_forward` returns the hidden layer for rows of ``width``; of any ``dtype``."""
    return width > mlp_tiles.MAX_FUSED_WIDTH


def mlp_forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    hidden_dim: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """y = x + scale[row // tokens] * (gelu(LayerNorm(x) w1[:m, :d]^T + b1[:m]) w2[:d, :m]^T + b2[:d]).

    Args:
        x: (M, d), any row stride; copied where the last stride is not 1. May be fp32 under 16-bit products.
        norm_weight, norm_bias: (D,), D >= d.
        eps: added to the variance.
        w1, b1: (m_max, D) of any row stride and (m_max,), or None.
        w2, b2: (D, m_max) and (D,), or None.
        hidden_dim: m, active units of the hidden layer.
        scale: (M / tokens,) fp32, the factor of each image's branch; None means 1.
        tokens: rows per image.
        dtype: of the products.

    Returns:
        y (M, d) contiguous in x's dtype, mean and rstd (M,) fp32, and h (M, m) in ``dtype``, or an empty
        tensor where the backward pass computes it again (see :func:`mlp_keeps_hidden`).

    Raises:
        UsageError: a slice is not inside its super parameter, shapes do not fit, a tensor cannot be read (see
            ``launch.check``), or the products are in a dtype there are no kernels for.
    """
    if not mlp_keeps_hidden(x.shape[1], dtype):
        y, mean, rstd = fused_forward(
            x, norm_weight, norm_bias, eps, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype
        )
        return y, mean, rstd, x.new_empty(0, dtype=dtype)
    check_branch(x, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype)
    return wide_forward(x, norm_weight, norm_bias, eps, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype)


def mlp_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    hidden: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    hidden_dim: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor | None,
    torch.Tensor,
    torch.Tensor | None,
]:
    """Gradients of x, residual included, and of the super parameters at full size, zero outside the slice.

    Args:
        dy: (M, d), any row stride; copied where the last stride is not 1.
        x: (M, d), likewise: the input of the forward pass.
        mean, rstd, hidden: as the forward pass returned them. An empty hidden layer is computed again.
        norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype: as :func:`mlp_forward`.

    Returns:
        dx (M, d) contiguous in x's dtype, dnorm_weight, dnorm_bias, dw1, db1 or None, dw2, db2 or None.

    Raises:
        UsageError: as :func:`mlp_forward`, or dy, mean, rstd or hidden are not of the same forward pass.
    """
    if not hidden.numel() and not mlp_keeps_hidden(x.shape[1], dtype):
        return fused_backward(
            dy, x, mean, rstd, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype
        )
    check_branch(x, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype)
    check_gradients_of(dy, x, mean, rstd)
    if hidden.numel():
        check_same_shape("hidden", hidden, (x.shape[0], hidden_dim), "the hidden layer")
    return wide_backward(
        dy, x, mean, rstd, hidden, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype
    )


def wide_forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    hidden_dim: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`mlp_forward` in three launches, for rows of any width; h is returned."""
    z, mean, rstd = layer_norm_forward(x, norm_weight, norm_bias, eps, dtype)
    a, hidden = linear_gelu_forward(z, w1, b1, hidden_dim)
    return linear_residual_forward(a, w2, b2, x, scale, tokens), mean, rstd, hidden


def wide_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    hidden: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    hidden_dim: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor | None, ...]:
    """:func:`mlp_backward` in six launches, for rows of any width.

    There is one more where h was not kept, and one where dy is not in ``dtype``.
    """
    z = normalised(x, mean, rstd, norm_weight, norm_bias, dtype)
    if not hidden.numel():
        hidden = linear_forward(z, w1, b1, hidden_dim)
    dz2, left = in_dtype(launch.activation(dy), scale, tokens, dtype)
    dh, a = linear_gelu_backward_input(dz2, w2, hidden, left, tokens)
    dw2, db2 = linear_backward_weight(dz2, a, w2, b2, left, tokens)
    dw1, db1 = linear_backward_weight(dh, z, w1, b1)
    dz = linear_backward_input(dh, w1, x.shape[1])
    dx, dnorm_weight, dnorm_bias = layer_norm_backward(dz, x, norm_weight, norm_bias, mean, rstd, dy)
    return dx, dnorm_weight, dnorm_bias, dw1, db1, dw2, db2


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
