"""Gradients of the sliced linear: of its input, and of weight and bias.

Shapes (see ``linear``): dy (M, N), weight[:N, :K] of (N_max, K_max), x, h (M, K); images have ``tokens`` rows
    dx = scale[image] * (dy weight[:N, :K])
    dh = the same * gelu'(h), and a = gelu(h) beside it, for the weight gradient of this layer
    dweight[:N, :K] = (scale * dy)^T x, zero elsewhere     dbias[:N] = sum over rows of scale * dy, likewise

The factor of an image is applied to the fp32 sum, so dy is multiplied as it comes; only the weight gradient,
which sums over images, applies it to dy on load, in fp32. dy may be fp32 under 16-bit matmuls: it is
converted on load. Nothing is saved but what forward saved.

The weight gradient reduces over M, which is long where the output is small: it is split over M, and the last
program of a tile adds the fp32 partial sums in order (``split_k``), in the same launch. Each element of the
full-size gradient is written exactly once, the zeros outside the slice by programs of their own, and the bits
do not change from run to run. dbias costs no extra read: the programs of the first column tile add up the dy
they hold. Adding to a gradient that exists touches nothing outside the slice.

tf32 weight gradients on sm_90 copy four bytes at a time: wgmma takes tf32 in one orientation only, and
Triton transposes on the way to shared memory.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas import shadow
from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import (
    check_bias,
    check_gradients,
    check_matrix,
    check_same_shape,
    check_scale,
    check_slice,
)
from growtas.kernels.common.gelu import gelu_and_slope
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.matmul import accumulate, tile_of
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.rows import in_dtype
from growtas.kernels.linear.weight_tile import weight_tile


@launch.kernel
def _input(
    dy_ptr,  # (M, N), row stride stride_dy
    weight_ptr,  # (N_max, K_max), row stride stride_weight
    dx_ptr,  # (M, K) contiguous: dx, or dh
    scale_ptr,  # (images,) fp32, step stride_scale
    h_ptr,  # gelu: (M, K), row stride stride_h; else None
    a_ptr,  # gelu: (M, K) contiguous; else None
    M,
    N,
    K,
    tokens,  # rows per image
    stride_dy,
    stride_weight,
    stride_h,
    stride_scale,  # 0: one factor for all images
    ALIGN_N: tl.constexpr,  # divides N and stride_dy
    ALIGN_K: tl.constexpr,  # divides K, stride_weight and stride_h
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
        dx_ptr.dtype.element_ty,
        PRECISION,
        BLOCK_DEPTH,
    )
    acc *= tl.load(scale_ptr + (row + rows) // tokens * stride_scale, mask=row_ok, other=0.0)[:, None]
    ok = row_ok[:, None] & col_ok[None, :]
    offsets = row.to(tl.int64) * K + rows[:, None] * K + cols[None, :]
    if h_ptr is not None:
        stride_h = known_multiple(stride_h, ALIGN_K)
        h_ptrs = h_ptr + row.to(tl.int64) * stride_h + rows[:, None] * stride_h + cols[None, :]
        a, slope = gelu_and_slope(tl.load(h_ptrs, mask=ok, other=0.0).to(tl.float32))
        tl.store(a_ptr + offsets, a.to(a_ptr.dtype.element_ty), mask=ok)
        acc *= slope
    tl.store(dx_ptr + offsets, acc.to(dx_ptr.dtype.element_ty), mask=ok)


@launch.kernel
def _weight(
    dy_ptr,  # (M, N), row stride stride_dy
    x_ptr,  # (M, K), row stride stride_x
    grad_ptr,  # (N_max, K_max) contiguous
    grad_bias_ptr,  # (N_max,), or None
    scale_ptr,  # (images,) fp32, or None
    partial_ptr,  # (splits, active tiles, BLOCK_ROWS * (BLOCK_COLS + 1)) fp32; not used where splits is 1
    counter_ptr,  # (active tiles,) int32 zeros
    M,
    N,
    K,
    N_max,
    K_max,
    tokens,  # rows per image
    splits,
    rows_per_split,  # a multiple of BLOCK_DEPTH
    add,  # 1: add to the gradient, 0: write it
    stride_dy,
    stride_x,
    ALIGN_N: tl.constexpr,  # divides N and stride_dy
    ALIGN_K: tl.constexpr,  # divides K and stride_x
    ALIGN_OUT: tl.constexpr,  # divides K_max
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (active tiles * splits + tiles outside the slice, which get zeros; not those where added,)."""
    weight_tile(
        dy_ptr, x_ptr, grad_ptr, grad_bias_ptr, scale_ptr, partial_ptr, counter_ptr, tl.program_id(0), 0,
        tl.cdiv(N, BLOCK_ROWS) * tl.cdiv(K, BLOCK_COLS), M, N, K, N_max, K_max, tokens, splits,
        rows_per_split, add, stride_dy, stride_x, ALIGN_N, ALIGN_K, ALIGN_OUT,
        PRECISION, GROUP, BLOCK_ROWS, BLOCK_COLS, BLOCK_DEPTH,
    )  # fmt: skip


@planned
def _plan_input(
    dy: torch.Tensor,
    weight: torch.Tensor,
    in_features: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
    h: torch.Tensor | None,
    precision: str,
) -> Plan:
    """Check and plan: dx, or dh and a where h is given."""
    check_matrix("dy", dy, "(M, N)")
    device = launch.check(dy=dy, weight=weight, scale=scale, h=h)
    launch.check_dtype("dx", dtype)
    (m, n), k = dy.shape, in_features
    if h is not None:
        check_same_shape("h", h, (m, k), "dy")
    check_slice(weight, n, k)
    check_scale(scale, m, tokens)
    launch.check_matmul(dtype, weight)
    stride_h = k if h is None else h.stride(0)
    wider = torch.float32 if torch.float32 in (dy.dtype, weight.dtype) else dtype
    kind = tiles.operand_kind(dtype, wider, precision) + ("" if h is None else "+gelu")
    tile = tiles.pick(kind, m, k, launch.multiprocessors(device))
    stride_scale = 0 if scale is None else scale.stride(0)
    return Plan(
        _input,
        (ceil(m, tile.rows) * ceil(k, tile.cols),),
        device,
        (m, n, k, tokens, dy.stride(0), weight.stride(0), stride_h, stride_scale),
        {
            "ALIGN_N": tiles.alignment(n, dy.stride(0)),
            "ALIGN_K": tiles.alignment(k, weight.stride(0), stride_h),
            "PRECISION": precision,
            **tile.constants(),
        },
        outputs=(((m, k), dtype), None if h is None else ((m, k), dtype)),
    )


def _input_gradient(
    dy: torch.Tensor,
    weight: torch.Tensor,
    in_features: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
    h: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Launch: dx, or dh and a where h is given."""
    dy, weight = launch.activation(dy), shadow.read(weight, dtype)
    plan = _plan_input(dy, weight, in_features, scale, tokens, dtype, h, launch.dot_precision(dtype))
    dx, a = plan.outputs()
    plan.start(dy, weight, dx, launch.one(plan.device) if scale is None else scale, h, a)
    return dx, a


def linear_backward_input(
    dy: torch.Tensor,
    weight: torch.Tensor,
    in_features: int,
    scale: torch.Tensor | None = None,
    tokens: int = 1,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """dx = scale[row // tokens] * (dy weight[:N, :K]).

    Args:
        dy: (M, N), any row stride; copied where the last stride is not 1.
        weight: (N_max, K_max) shared weight.
        in_features: K.
        scale: (M / tokens,) fp32, the factor of each image; None means 1.
        tokens: rows per image.
        dtype: of the matmul and of dx; None means dy's.

    Returns:
        (M, K) contiguous, in ``dtype``.

    Raises:
        UsageError: the slice is outside the weight, scale does not fit, or a tensor cannot be read.
    """
    return _input_gradient(dy, weight, in_features, scale, tokens, dtype or dy.dtype)[0]


def linear_gelu_backward_input(
    dy: torch.Tensor,
    weight: torch.Tensor,
    h: torch.Tensor,
    scale: torch.Tensor | None = None,
    tokens: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Through a linear whose input was gelu(h): gradient of h, and gelu(h) again, in one launch.

    Args:
        dy: (M, N), any row stride; copied where the last stride is not 1.
        weight: (N_max, K_max) shared weight.
        h: (M, K) as ``linear_gelu_forward`` returned it; its dtype is that of the matmul.
        scale, tokens: as :func:`linear_backward_input`.

    Returns:
        dh = scale * (dy weight[:N, :K]) * gelu'(h) and a = gelu(h), (M, K) contiguous each, in h's dtype.

    Raises:
        UsageError: as :func:`linear_backward_input`, or h does not fit dy.
    """
    check_matrix("h", h, "(M, K)")
    h = launch.activation(h)
    dh, a = _input_gradient(dy, weight, h.shape[1], scale, tokens, h.dtype, h)
    return dh, a


@planned
def plan_weight(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    tokens: int,
    grad: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    precision: str,
) -> Plan:
    """Check and plan; writes new gradients where there is none to add to."""
    check_matrix("dy", dy, "(M, N)")
    check_matrix("x", x, "(M, K)")
    device = launch.check(dy=dy, x=x, weight=weight, bias=bias, scale=scale, grad=grad, grad_bias=grad_bias)
    (m, n), k = dy.shape, x.shape[1]
    if x.shape[0] != m:
        raise UsageError(f"dy has {m} rows but x has {x.shape[0]}. They must come from the same batch.")
    check_slice(weight, n, k)
    check_bias(bias, weight)
    check_scale(scale, m, tokens)
    launch.check_matmul(x)
    n_max, k_max = weight.shape
    if grad is not None:
        check_gradients((grad, grad_bias), weight, bias is not None)
    multiprocessors = launch.multiprocessors(device)
    kind = tiles.operand_kind(x.dtype, dy.dtype, precision)
    tile = tiles.pick(kind, n, k, multiprocessors, depth=max(m, 1))
    active = ceil(n, tile.rows) * ceil(k, tile.cols)
    every = ceil(n_max, tile.rows) * ceil(k_max, tile.cols)
    splits, rows_per_split = tiles.split(tile, active, max(m, 1), multiprocessors)
    new = grad is None
    return Plan(
        _weight,
        (active * splits + (every - active if new else 0) if m else 0,),
        device,
        (
            m, n, k, n_max, k_max, tokens, splits, rows_per_split, 0 if new else 1, dy.stride(0), x.stride(0),
        ),
        {
            "ALIGN_N": tiles.alignment(n, dy.stride(0)),
            "ALIGN_K": tiles.alignment(k, x.stride(0)),
            "ALIGN_OUT": tiles.alignment(k_max),
            "PRECISION": precision,
            **tile.constants(),
        },
        outputs=(
            ((n_max, k_max), weight.dtype) if new else None,
            None if bias is None or not new else ((n_max,), bias.dtype),
        ),
        counters=active,
        partials=splits * active * tile.rows * (tile.cols + 1) if splits > 1 else 1,
    )  # fmt: skip


def linear_backward_weight(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None = None,
    tokens: int = 1,
    into: tuple[torch.Tensor, torch.Tensor | None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Full-size gradients of the shared weight and bias, zero outside the slice, in one launch.

    A dy of another dtype than x is converted in a launch before.

    Args:
        dy: (M, N), any row stride; copied where the last stride is not 1.
        x: (M, K), likewise; its dtype is that of the matmul.
        weight: (N_max, K_max); only its shape, dtype and device are used.
        bias: (N_max,) likewise, or None.
        scale: (M / tokens,) fp32, the factor of each image's dy; None means 1.
        tokens: rows per image.
        into: gradients as this function returns them, to add to in place instead of making new ones. What
            lies outside the slice is neither read nor written.

    Returns:
        (N_max, K_max) contiguous in the weight's dtype, and (N_max,) in the bias's dtype or None; with
        ``into``, its tensors.

    Raises:
        UsageError: as :func:`linear_backward_input`, dy and x differ in rows, or ``into`` does not fit.
    """
    dy, x = launch.activation(dy), launch.activation(x)
    dy, scale = in_dtype(dy, scale, tokens, x.dtype)
    grad, grad_bias = into or (None, None)
    precision = launch.dot_precision(x.dtype)
    plan = plan_weight(dy, x, weight, bias, scale, tokens, grad, grad_bias, precision)
    if into is None:
        grad, grad_bias = plan.outputs()
    plan.start(dy, x, grad, grad_bias, scale)
    return grad, grad_bias
