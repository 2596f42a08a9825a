"""The MLP branch of a block in one launch, for widths up to 256; the hidden layer stays on chip.

Shapes (M = B * N rows of the batch; D and m_max are sizes of the shared parameters):
    x, y (M, d)   gamma, beta (D,)   w1 (m_max, D), b1 (m_max,)   w2 (D, m_max), b2 (D,)   scale (B,) fp32
    z = (x - mean) * rstd * gamma[:d] + beta[:d]         h = z w1[:m, :d]^T + b1[:m]
    y = x + scale[image] * (gelu(h) w2[:d, :m]^T + b2[:d])

A program owns BLOCK_ROWS whole rows. It computes their statistics in fp32 (two passes over registers, padding
masked before the variance), normalises them, and walks over the hidden layer in chunks: h = z w1_chunk^T,
gelu in fp32, acc += gelu(h) w2_chunk^T. acc has the whole width of the rows, in fp32 registers.

z goes through memory for a moment: Triton keeps an operand of wgmma in shared memory if it was loaded, and in
registers if it was computed, and acc leaves too few of these. It is written to where y will be, in the dtype
of the matmuls; y overwrites it while it is still in L2, so it costs no trip to DRAM. With an fp32 residual
stream acc takes the same way to the epilogue; nothing is rounded that would not be otherwise.

Saved for backward: mean and rstd (8 bytes per row). h (2 or 4 * m bytes per row) is computed again there. For
T (d 216, m 864, M = 25,216, 16 bits) the branch moves 22 MB where fc1, GELU, fc2, LayerNorm and residual as
kernels of their own move 216 MB: 5 us instead of 50 us at 4.3 TB/s, beside 18.8 GFLOP, 24 us at 790 TFLOP/s.
A program reads the weights from L2, 0.75 MB per tile of rows in 16 bits and twice that in fp32: 147 MB for
197 tiles of 128 rows, which is why 128 rows are taken where they can.

There is one program per tile of rows: 394 for batch 128 fill 132 multiprocessors, 25 for batch 8 do not. The
hidden layer is not split over programs for that: it would take partial sums and a second pass.

Variants: 4 pairs of pieces x 3 x 3 alignments x the dtypes x at most 2 tiles x biases present or not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas import shadow
from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_bias, check_matrix, check_norm, check_scale, check_slice
from growtas.kernels.common.gelu import gelu
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.variance import rstd_of
from growtas.kernels.mlp import tiles as mlp_tiles


@triton.jit
def load_columns(ptr, at, row_ok, cols, width):
    """The columns ``cols`` of rows that begin at the offsets ``at``; zero where there is none."""
    return tl.load(ptr + at + cols[None, :], mask=row_ok[:, None] & (cols < width)[None, :], other=0.0)


@triton.jit
def store_columns(ptr, at, row_ok, cols, width, value):
    """Write such columns, in the dtype of the pointer."""
    ok = row_ok[:, None] & (cols < width)[None, :]
    tl.store(ptr + at + cols[None, :], value.to(ptr.dtype.element_ty), mask=ok)


@triton.jit
def load_entries(ptr, at, width):
    """Entries ``at`` of a parameter as a row (1, n) of fp32; zero where there is none."""
    return tl.load(ptr + at, mask=at < width, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _finish(
    acc, b2_ptr, scale_ptr, x_ptr, y_ptr, row, M, tokens, stride_scale, stride_x, stride_y, cols, width
):
    """y = x + scale * (acc + b2) for some columns of the rows ``row``."""
    row_ok = row < M
    if b2_ptr is not None:
        acc += load_entries(b2_ptr, cols, width)
    acc *= tl.load(scale_ptr + row // tokens * stride_scale, mask=row_ok, other=0.0)[:, None]
    at = row.to(tl.int64)[:, None]
    acc += load_columns(x_ptr, at * stride_x, row_ok, cols, width).to(tl.float32)
    store_columns(y_ptr, at * stride_y, row_ok, cols, width, acc)


@launch.kernel
def _forward(
    x_ptr,  # (M, d), row stride stride_x
    gamma_ptr,  # (D,)
    beta_ptr,  # (D,)
    w1_ptr,  # (m_max, D), row stride stride_w1
    b1_ptr,  # (m_max,), or None
    w2_ptr,  # (D, m_max), row stride stride_w2
    b2_ptr,  # (D,), or None
    scale_ptr,  # (images,) fp32, step stride_scale
    y_ptr,  # (M, d), row stride stride_y
    z_ptr,  # (M, d) of DTYPE, row stride stride_z: the memory of y, until y is written
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    M,
    width,  # d
    hidden,  # m
    tokens,  # rows per image
    eps,
    stride_x,
    stride_w1,
    stride_w2,
    stride_scale,  # 0: one factor for all images
    stride_y,
    stride_z,
    ALIGN_D: tl.constexpr,  # divides d and the row strides of x, w1, y and z
    ALIGN_H: tl.constexpr,  # divides m and stride_w2
    DTYPE: tl.constexpr,  # of the matmuls: "bf16", "fp16", "fp32"
    PRECISION: tl.constexpr,
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
    all_cols, step_x = width, stride_x
    width = known_multiple(width, ALIGN_D)
    hidden = known_multiple(hidden, ALIGN_H)
    stride_x = known_multiple(stride_x, ALIGN_D)
    stride_w1 = known_multiple(stride_w1, ALIGN_D)
    stride_w2 = known_multiple(stride_w2, ALIGN_H)
    stride_z = known_multiple(stride_z, ALIGN_D)
    row = tl.program_id(0) * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    cols = tl.arange(0, BLOCK_COLS)
    lo = tl.arange(0, LO)
    lo_width = LO if HI else width
    units = tl.arange(0, BLOCK_HIDDEN)
    row_ok = rows < M - row
    per_channel = 1.0 / width

    z_ptr += row.to(tl.int64) * stride_z
    for done in range(0, BLOCK_ROWS, LOAD_ROWS):
        some = done + tl.arange(0, LOAD_ROWS)
        some_ok = some < M - row
        x_at = some[:, None] * stride_x
        x = load_columns(x_ptr + row.to(tl.int64) * stride_x, x_at, some_ok, cols, width).to(tl.float32)
        mean = tl.sum(x, axis=1) * per_channel
        x = tl.where((cols < width)[None, :], x - mean[:, None], 0.0)
        rstd = rstd_of(tl.sum(x * x, axis=1) * per_channel, eps)
        tl.store(mean_ptr + row + some, mean, mask=some_ok)
        tl.store(rstd_ptr + row + some, rstd, mask=some_ok)
        z = x * rstd[:, None] * load_entries(gamma_ptr, cols, width) + load_entries(beta_ptr, cols, width)
        store_columns(z_ptr, some[:, None] * stride_z, some_ok, cols, width, z)
    tl.debug_barrier()

    z_at = rows[:, None] * stride_z
    z_lo = load_columns(z_ptr, z_at, row_ok, lo, lo_width)
    acc_lo = tl.zeros((BLOCK_ROWS, LO), tl.float32)
    w1_lo_at = units[None, :] * stride_w1 + lo[:, None]
    w2_lo_at = lo[None, :] * stride_w2 + units[:, None]
    if HI:
        hi = LO + tl.arange(0, HI)
        z_hi = load_columns(z_ptr, z_at, row_ok, hi, width)
        acc_hi = tl.zeros((BLOCK_ROWS, HI), tl.float32)
        w1_hi_at = units[None, :] * stride_w1 + tl.arange(0, HI)[:, None]
        w2_hi_at = tl.arange(0, HI)[None, :] * stride_w2 + units[:, None]
    for first in range(0, hidden, BLOCK_HIDDEN):
        unit_ok = units < hidden - first
        w1 = tl.load(w1_ptr + w1_lo_at, mask=(lo < lo_width)[:, None] & unit_ok[None, :], other=0.0)
        h = tl.dot(z_lo, w1.to(dtype), input_precision=PRECISION)
        if HI:
            w1 = tl.load(w1_ptr + LO + w1_hi_at, mask=(hi < width)[:, None] & unit_ok[None, :], other=0.0)
            h = tl.dot(z_hi, w1.to(dtype), h, input_precision=PRECISION)
        if b1_ptr is not None:
            h += load_entries(b1_ptr, first + units, hidden)
        a = gelu(h).to(dtype)
        w2 = tl.load(w2_ptr + w2_lo_at, mask=unit_ok[:, None] & (lo < lo_width)[None, :], other=0.0)
        acc_lo = tl.dot(a, w2.to(dtype), acc_lo, input_precision=PRECISION)
        if HI:
            w2 = tl.load(
                w2_ptr + LO * stride_w2 + w2_hi_at, mask=unit_ok[:, None] & (hi < width)[None, :], other=0.0
            )
            acc_hi = tl.dot(a, w2.to(dtype), acc_hi, input_precision=PRECISION)
        w1_ptr += BLOCK_HIDDEN * stride_w1
        w2_ptr += BLOCK_HIDDEN

    tl.debug_barrier()  # z has been read: from here its memory is y
    # num_programs(1) is 1, which the compiler cannot know: below, it computes anew what it would otherwise
    # hold in registers through the loop above.
    anew = tl.num_programs(1) - 1
    row = (tl.program_id(0) + anew) * BLOCK_ROWS
    width = known_multiple(all_cols + anew, ALIGN_D)
    stride_x = known_multiple(step_x + anew, ALIGN_D)
    stride_y = known_multiple(stride_y, ALIGN_D)
    if y_ptr.dtype.element_ty == tl.float32:
        y_at = (row + rows).to(tl.int64)[:, None] * stride_y
        store_columns(y_ptr, y_at, rows < M - row, lo, LO if HI else width, acc_lo)
        if HI:
            store_columns(y_ptr, y_at, rows < M - row, LO + tl.arange(0, HI), width, acc_hi)
        tl.debug_barrier()
        for done in range(0, BLOCK_ROWS, LOAD_ROWS):
            some = row + done + tl.arange(0, LOAD_ROWS)
            acc = load_columns(y_ptr, some.to(tl.int64)[:, None] * stride_y, some < M, cols, width)
            tl.debug_barrier()  # all of it has been read, by whichever thread
            _finish(
                acc, b2_ptr, scale_ptr, x_ptr, y_ptr, some, M, tokens, stride_scale, stride_x, stride_y, cols,
                width,
            )  # fmt: skip
    else:
        _finish(
            acc_lo, b2_ptr, scale_ptr, x_ptr, y_ptr, row + rows, M, tokens, stride_scale, stride_x, stride_y,
            lo, LO if HI else width,
        )  # fmt: skip
        if HI:
            _finish(
                acc_hi, b2_ptr, scale_ptr, x_ptr, y_ptr, row + rows, M, tokens, stride_scale, stride_x,
                stride_y, LO + tl.arange(0, HI), width,
            )  # fmt: skip


@planned
def check_branch(
    x: torch.Tensor,
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
) -> bool:
    """Refuse arguments of ``mlp.mlp_forward`` that do not fit each other."""
    check_matrix("x", x, "(M, d)")
    check_norm(x, norm_weight, norm_bias)
    check_slice(w1, hidden_dim, x.shape[1])
    check_slice(w2, x.shape[1], hidden_dim)
    check_bias(b1, w1)
    check_bias(b2, w2)
    check_scale(scale, x.shape[0], tokens)
    if dtype not in launch.DTYPES:
        raise UsageError(
            f"dtype is {str(dtype).removeprefix('torch.')}, but the Triton kernels multiply in float32, "
            "bfloat16 and float16. Use one of these, or the 'torch' backend."
        )
    return True


@planned
def _plan_forward(
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
    precision: str,
) -> Plan:
    """Check and plan; writes y, mean, rstd and, where y has no room for it, z."""
    check_branch(x, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype)
    device = launch.check(
        x=x, norm_weight=norm_weight, norm_bias=norm_bias, w1=w1, b1=b1, w2=w2, b2=b2, scale=scale
    )
    launch.check_matmul(dtype)
    m, width = x.shape
    # (M, d) of the matmuls' dtype at the beginning of each row of y, where that is large enough
    wider = x.element_size() // dtype.itemsize
    kind, constants = mlp_constants(dtype, w1, w2, width, precision)
    tile = mlp_tiles.pick("forward", kind, m, launch.multiprocessors(device), device)
    stride_scale = 0 if scale is None else scale.stride(0)
    weight_strides = (w1.stride(0), w2.stride(0))
    return Plan(
        _forward,
        (ceil(m, tile.rows),),
        device,
        (
            m, width, hidden_dim, tokens, eps, x.stride(0), *weight_strides, stride_scale, width,
            width * max(wider, 1),
        ),
        {
            "ALIGN_D": tiles.alignment(width, x.stride(0), w1.stride(0)),
            "ALIGN_H": tiles.alignment(hidden_dim, w2.stride(0)),
            **constants,
            **tile.constants(),
        },
        outputs=(
            ((m, width), x.dtype),
            ((m,), torch.float32),
            ((m,), torch.float32),
            None if wider else ((m, width), dtype),
        ),
    )  # fmt: skip


def fused_forward(
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, mean and rstd in one launch; arguments as ``mlp.mlp_forward``, which checks them.

    Raises:
        UsageError: a tensor cannot be read (see ``launch.check``), or bfloat16 is interpreted.
    """
    x, w1, w2 = launch.activation(x), shadow.read(w1, dtype), shadow.read(w2, dtype)
    precision = launch.dot_precision(dtype)
    plan = _plan_forward(
        x, norm_weight, norm_bias, eps, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype, precision
    )
    y, mean, rstd, z = plan.outputs()
    if z is None:
        z = y if y.dtype is dtype else y.view(dtype)
    factor = launch.one(plan.device) if scale is None else scale
    plan.start(x, norm_weight, norm_bias, w1, b1, w2, b2, factor, y, z, mean, rstd)
    return y, mean, rstd


def mlp_constants(
    dtype: torch.dtype, w1: torch.Tensor, w2: torch.Tensor, width: int, precision: str, whole: bool = False
) -> tuple[str, dict[str, str | int]]:
    """The kind of operands, and the constexpr arguments that both passes share but for their tiles.

    Args:
        dtype: of the matmuls.
        w1, w2: the weights, for their dtypes.
        width: channels of a row.
        precision: of the matmuls, as ``launch.dot_precision`` names it.
        whole: as ``mlp.tiles.pieces``.
    """
    weights = torch.float32 if torch.float32 in (w1.dtype, w2.dtype) else dtype
    lo, hi = mlp_tiles.pieces(width, whole)
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    constants = {"DTYPE": names[dtype], "PRECISION": precision}
    constants |= {"BLOCK_COLS": triton.next_power_of_2(lo + hi), "LO": lo, "HI": hi}
    return tiles.operand_kind(dtype, weights, precision), constants
