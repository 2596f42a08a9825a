"""Gradients of the fused MLP branch: one launch for everything along the rows, one for the weights.

Shapes as in ``fused_forward``; dy, dx (M, d), and:
    dz = scale[image] * dy                  da = dz w2[:d, :m]           dh = da * gelu'(h)
    g  = (dh w1[:m, :d]) * gamma            dx = dy + rstd * (g - average(g) - xhat * average(g * xhat))
    dgamma[:d] = sum over rows of (dh w1) * xhat, dbeta[:d] = sum over rows of dh w1, both zero elsewhere
    dw2[:d, :m] = dz^T gelu(h), db2[:d] = sum of dz     dw1[:m, :d] = dh^T z, db1[:m] = sum of dh

A program owns BLOCK_ROWS whole rows, as in the forward pass. It makes z again from mean and rstd, and per
chunk of the hidden layer h, da, gelu(h) and dh, and adds dh w1_chunk to sums of the whole width. These go to
the memory of dx, in its dtype, from where the same program takes a few rows at a time through LayerNorm's
backward pass. The sums for gamma and beta are added by the last program (``split_k``), without atomics on
floats.

The kernel writes gelu(h), dh, z, and dz unless it is dy itself, for the weight gradients
(``linear_backward_weights``, one launch). h is computed again, gelu(h) and dh are not: for T (d 216, m
864, M = 25,216, 16 bits), h is 44 MB, written once and read once, 20 us at 4.3 TB/s, and 9.4 GFLOP to
compute, 12 us at 790 TFLOP/s; saving it would also cost 340 KB per image and layer for the whole step. This
kernel makes 28 GFLOP (36 us) and moves 33 MB of rows, 22 MB of z and dz, and 87 MB of gelu(h) and dh (33 us
in all). Weight gradients that made gelu(h) and dh again would spare 174 MB of traffic, 40 us, but each chunk
of them would take all rows through both first GEMMs: 38 GFLOP instead of 19, and x and dy once per chunk.

Variants: as ``fused_forward``, twice: with and without dz.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas import shadow
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_same_shape
from growtas.kernels.common.gelu import gelu_and_slope
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.split_k import add_columns, leave_columns, write_columns
from growtas.kernels.linear.backward_pair import linear_backward_weights
from growtas.kernels.mlp import tiles as mlp_tiles
from growtas.kernels.mlp.fused_forward import (
    check_branch,
    load_columns,
    load_entries,
    mlp_constants,
    store_columns,
)


@triton.jit
def _through_norm(
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    gamma_ptr,
    dx_ptr,  # (M, d): dh w1, replaced by dx
    M,
    width,
    stride_dy,
    stride_x,
    row,  # the first of BLOCK_ROWS
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    NORM_ROWS: tl.constexpr,  # taken at a time
):
    """LayerNorm's backward pass and the residual, in place; the sums for gamma and beta over these rows."""
    cols = tl.arange(0, BLOCK_COLS)
    gamma = load_entries(gamma_ptr, cols, width)
    dgamma = tl.zeros((NORM_ROWS, BLOCK_COLS), tl.float32)
    dbeta = tl.zeros((NORM_ROWS, BLOCK_COLS), tl.float32)
    per_channel = 1.0 / width
    for done in range(0, BLOCK_ROWS, NORM_ROWS):
        few = row + done + tl.arange(0, NORM_ROWS)
        few_ok = few < M
        at = few.to(tl.int64)[:, None]
        mean = tl.load(mean_ptr + few, mask=few_ok, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + few, mask=few_ok, other=0.0)[:, None]
        x = load_columns(x_ptr, at * stride_x, few_ok, cols, width).to(tl.float32)
        g = load_columns(dx_ptr, at * width, few_ok, cols, width).to(tl.float32)
        dx = load_columns(dy_ptr, at * stride_dy, few_ok, cols, width).to(tl.float32)
        xhat = tl.where((cols < width)[None, :], (x - mean) * rstd, 0.0)
        dgamma += g * xhat
        dbeta += g
        g *= gamma
        g_average = tl.sum(g, axis=1)[:, None] * per_channel
        g_xhat_average = tl.sum(g * xhat, axis=1)[:, None] * per_channel
        dx += (g - g_average - xhat * g_xhat_average) * rstd
        tl.debug_barrier()  # all of g has been read, by whichever thread
        store_columns(dx_ptr, at * width, few_ok, cols, width, dx)
    return tl.sum(dgamma, axis=0), tl.sum(dbeta, axis=0)


@launch.kernel
def _backward(
    dy_ptr,  # (M, d), row stride stride_dy
    x_ptr,  # (M, d), row stride stride_x
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    gamma_ptr,  # (D,)
    beta_ptr,  # (D,)
    w1_ptr,  # (m_max, D), row stride stride_w1
    b1_ptr,  # (m_max,), or None
    w2_ptr,  # (D, m_max), row stride stride_w2
    scale_ptr,  # (images,) fp32, step stride_scale
    dx_ptr,  # (M, d) contiguous; holds dh w1 until dx is written
    z_ptr,  # (M, d) contiguous, of DTYPE
    dz_ptr,  # (M, d) contiguous, of DTYPE; None: it is dy, whose dtype is DTYPE
    a_ptr,  # (M, m) contiguous, of DTYPE: gelu(h)
    dh_ptr,  # (M, m) contiguous, of DTYPE
    dgamma_ptr,  # (D,)
    dbeta_ptr,  # (D,)
    partial_ptr,  # (programs + groups, 2, BLOCK_COLS) fp32: sums for gamma and beta over some rows
    counter_ptr,  # (1 + groups,) int32 zeros
    M,
    width,  # d
    full_width,  # D
    hidden,  # m
    tokens,  # rows per image
    stride_dy,
    stride_x,
    stride_w1,
    stride_w2,
    stride_scale,  # 0: one factor for all images
    ALIGN_D: tl.constexpr,  # divides d and the row strides of dy, x and w1
    ALIGN_H: tl.constexpr,  # divides m and stride_w2
    DTYPE: tl.constexpr,  # of the matmuls: "bf16", "fp16", "fp32"
    PRECISION: tl.constexpr,
    SUM_GROUP: tl.constexpr,  # programs per group
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,  # the power of two that holds d
    LO: tl.constexpr,  # columns of the first piece of a row
    HI: tl.constexpr,  # columns of the second piece, or 0
    BLOCK_HIDDEN: tl.constexpr,
):
    """Grid: (tiles over M,)."""
    dtype: tl.constexpr = tl.dtype(DTYPE)
    # fp32 rows take twice the registers: half as many at a time
    LOAD_ROWS: tl.constexpr = BLOCK_ROWS * 8 // x_ptr.dtype.element_ty.primitive_bitwidth
    NORM_ROWS: tl.constexpr = LOAD_ROWS // 2
    all_cols, step_dy, step_x = width, stride_dy, stride_x
    width = known_multiple(width, ALIGN_D)
    hidden = known_multiple(hidden, ALIGN_H)
    stride_dy = known_multiple(stride_dy, ALIGN_D)
    stride_x = known_multiple(stride_x, ALIGN_D)
    stride_w1 = known_multiple(stride_w1, ALIGN_D)
    stride_w2 = known_multiple(stride_w2, ALIGN_H)
    program = tl.program_id(0)
    row = program * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    cols = tl.arange(0, BLOCK_COLS)
    lo = tl.arange(0, LO)
    lo_width = LO if HI else width
    units = tl.arange(0, BLOCK_HIDDEN)
    row_ok = rows < M - row
    z_ptr += row.to(tl.int64) * width
    a_ptr += row.to(tl.int64) * hidden
    dh_ptr += row.to(tl.int64) * hidden
    if dz_ptr is not None:
        dz_ptr += row.to(tl.int64) * width

    for done in range(0, BLOCK_ROWS, LOAD_ROWS):
        some = done + tl.arange(0, LOAD_ROWS)
        some_ok = some < M - row
        x_at = some[:, None] * stride_x
        x = load_columns(x_ptr + row.to(tl.int64) * stride_x, x_at, some_ok, cols, width).to(tl.float32)
        mean = tl.load(mean_ptr + row + some, mask=some_ok, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row + some, mask=some_ok, other=0.0)[:, None]
        z = (x - mean) * rstd * load_entries(gamma_ptr, cols, width) + load_entries(beta_ptr, cols, width)
        store_columns(z_ptr, some[:, None] * width, some_ok, cols, width, z)
        if dz_ptr is not None:
            dy_at = some[:, None] * stride_dy
            dz = load_columns(dy_ptr + row.to(tl.int64) * stride_dy, dy_at, some_ok, cols, width)
            factor = tl.load(scale_ptr + (row + some) // tokens * stride_scale, mask=some_ok, other=0.0)
            dz = dz.to(tl.float32) * factor[:, None]
            store_columns(dz_ptr, some[:, None] * width, some_ok, cols, width, dz)
    tl.debug_barrier()  # z and dz of all these rows are there for all threads of the program

    z_at = rows[:, None] * width
    if dz_ptr is not None:
        dz_at = z_at
    else:
        dz_ptr = dy_ptr + row.to(tl.int64) * stride_dy
        dz_at = rows[:, None] * stride_dy
    z_lo = load_columns(z_ptr, z_at, row_ok, lo, lo_width)
    dz_lo = load_columns(dz_ptr, dz_at, row_ok, lo, lo_width)
    acc_lo = tl.zeros((BLOCK_ROWS, LO), tl.float32)
    w1_lo_at = units[:, None] * stride_w1 + lo[None, :]
    w2_lo_at = lo[:, None] * stride_w2 + units[None, :]
    if HI:
        hi = LO + tl.arange(0, HI)
        z_hi = load_columns(z_ptr, z_at, row_ok, hi, width)
        dz_hi = load_columns(dz_ptr, dz_at, row_ok, hi, width)
        acc_hi = tl.zeros((BLOCK_ROWS, HI), tl.float32)
        w1_hi_at = units[:, None] * stride_w1 + tl.arange(0, HI)[None, :]
        w2_hi_at = tl.arange(0, HI)[:, None] * stride_w2 + units[None, :]
    out_at = rows[:, None] * hidden
    for first in range(0, hidden, BLOCK_HIDDEN):
        unit_ok = units < hidden - first
        w1_lo = tl.load(w1_ptr + w1_lo_at, mask=unit_ok[:, None] & (lo < lo_width)[None, :], other=0.0)
        w1_lo = w1_lo.to(dtype)
        h = tl.dot(z_lo, tl.trans(w1_lo), input_precision=PRECISION)
        w2 = tl.load(w2_ptr + w2_lo_at, mask=(lo < lo_width)[:, None] & unit_ok[None, :], other=0.0)
        da = tl.dot(dz_lo, w2.to(dtype), input_precision=PRECISION)
        if HI:
            w1_hi = tl.load(w1_ptr + LO + w1_hi_at, mask=unit_ok[:, None] & (hi < width)[None, :], other=0.0)
            w1_hi = w1_hi.to(dtype)
            h = tl.dot(z_hi, tl.trans(w1_hi), h, input_precision=PRECISION)
            w2 = tl.load(
                w2_ptr + LO * stride_w2 + w2_hi_at, mask=(hi < width)[:, None] & unit_ok[None, :], other=0.0
            )
            da = tl.dot(dz_hi, w2.to(dtype), da, input_precision=PRECISION)
        if b1_ptr is not None:
            h += load_entries(b1_ptr, first + units, hidden)
        a, slope = gelu_and_slope(h)
        dh = (da * slope).to(dtype)
        store_columns(a_ptr, out_at, row_ok, first + units, hidden, a)
        store_columns(dh_ptr, out_at, row_ok, first + units, hidden, dh)
        acc_lo = tl.dot(dh, w1_lo, acc_lo, input_precision=PRECISION)
        if HI:
            acc_hi = tl.dot(dh, w1_hi, acc_hi, input_precision=PRECISION)
        w1_ptr += BLOCK_HIDDEN * stride_w1
        w2_ptr += BLOCK_HIDDEN

    # num_programs(1) is 1, which the compiler cannot know: below, it computes anew what it would otherwise
    # hold in registers through the loop above.
    anew = tl.num_programs(1) - 1
    program = tl.program_id(0) + anew
    row = program * BLOCK_ROWS
    width = known_multiple(all_cols + anew, ALIGN_D)
    dx_at = (row + rows).to(tl.int64)[:, None] * width
    store_columns(dx_ptr, dx_at, rows < M - row, lo, LO if HI else width, acc_lo)
    if HI:
        store_columns(dx_ptr, dx_at, rows < M - row, LO + tl.arange(0, HI), width, acc_hi)
    tl.debug_barrier()
    dgamma, dbeta = _through_norm(
        dy_ptr, x_ptr, mean_ptr, rstd_ptr, gamma_ptr, dx_ptr, M, width,
        known_multiple(step_dy + anew, ALIGN_D), known_multiple(step_x + anew, ALIGN_D), row,
        BLOCK_ROWS, BLOCK_COLS, NORM_ROWS,
    )  # fmt: skip
    leave_columns(dgamma, dbeta, partial_ptr, program, BLOCK_COLS)
    one, two, last = add_columns(partial_ptr, counter_ptr, program, tl.num_programs(0), BLOCK_COLS, SUM_GROUP)
    if last:
        write_columns(one, two, dgamma_ptr, dbeta_ptr, full_width, BLOCK_COLS)


def check_gradients_of(dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor) -> None:
    """Refuse tensors that are not of the forward pass of x (M, d)."""
    check_same_shape("dy", dy, tuple(x.shape), "the gradient")
    check_same_shape("mean", mean, (x.shape[0],), "LayerNorm")
    check_same_shape("rstd", rstd, (x.shape[0],), "LayerNorm")


@planned
def _plan_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
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
    precision: str,
) -> Plan:
    """Check and plan; writes dx, z, gelu(h), dh, dz where it is not dy, dnorm_weight and dnorm_bias."""
    check_branch(x, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype)
    check_gradients_of(dy, x, mean, rstd)
    device = launch.check(
        dy=dy, x=x, mean=mean, rstd=rstd, norm_weight=norm_weight, norm_bias=norm_bias, w1=w1, b1=b1, w2=w2,
        b2=b2, scale=scale,
    )  # fmt: skip
    launch.check_matmul(dtype)
    m, width = x.shape
    whole = mlp_tiles.one_piece("backward", dtype, device)
    kind, constants = mlp_constants(dtype, w1, w2, width, precision, whole)
    tile = mlp_tiles.pick("backward", kind, m, launch.multiprocessors(device), device)
    programs = ceil(m, tile.rows)
    groups = ceil(programs, mlp_tiles.SUM_GROUP)
    full_width = norm_weight.shape[0]
    stride_scale = 0 if scale is None else scale.stride(0)
    strides = (dy.stride(0), x.stride(0), w1.stride(0))
    return Plan(
        _backward,
        (programs,),
        device,
        (m, width, full_width, hidden_dim, tokens, *strides, w2.stride(0), stride_scale),
        {
            "ALIGN_D": tiles.alignment(width, *strides),
            "ALIGN_H": tiles.alignment(hidden_dim, w2.stride(0)),
            "SUM_GROUP": mlp_tiles.SUM_GROUP,
            **constants,
            **tile.constants(),
        },
        outputs=(
            ((m, width), x.dtype),
            ((m, width), dtype),
            ((m, hidden_dim), dtype),
            ((m, hidden_dim), dtype),
            None if scale is None and dy.dtype is dtype else ((m, width), dtype),
            ((full_width,), norm_weight.dtype),
            ((full_width,), norm_bias.dtype),
        ),
        counters=1 + groups,
        partials=(programs + groups) * 2 * constants["BLOCK_COLS"],
    )


def fused_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
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
    """All gradients in two launches; arguments and results as ``mlp.mlp_backward``, which checks them.

    Raises:
        UsageError: a tensor cannot be read (see ``launch.check``), or bfloat16 is interpreted.
    """
    dy, x = launch.activation(dy), launch.activation(x)
    read1, read2 = shadow.read(w1, dtype), shadow.read(w2, dtype)
    plan = _plan_backward(
        dy, x, mean, rstd, norm_weight, norm_bias, read1, b1, read2, b2, hidden_dim, scale, tokens, dtype,
        launch.dot_precision(dtype),
    )  # fmt: skip
    dx, z, a, dh, dz, dnorm_weight, dnorm_bias = plan.outputs()
    factor = launch.one(plan.device) if scale is None else scale
    plan.start(
        dy, x, mean, rstd, norm_weight, norm_bias, read1, b1, read2, factor, dx, z, dz, a, dh,
        dnorm_weight, dnorm_bias,
    )  # fmt: skip
    dw2, db2, dw1, db1 = linear_backward_weights((dy if dz is None else dz, a, w2, b2), (dh, z, w1, b1))
    return dx, dnorm_weight, dnorm_bias, dw1, db1, dw2, db2
