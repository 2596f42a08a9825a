"""Row-wise work around GEMMs that another library makes, each with the bias gradient that goes with it.

Shapes (M = rows of the batch, images of ``tokens`` rows):
    scaled   dz (M, N) = scale[image] * dy, in the dtype of the GEMM     dbias[:N] = sum over rows of dz
    gelu     dh (M, N) = da * gelu'(h),  a = gelu(h)                     dbias[:N] = sum over rows of dh

Algorithm: a program walks over a block of consecutive rows of one tile of columns, in fp32, and keeps the sum
of its rows. The last program of a tile adds these sums in order (``split_k``) and writes the bias gradient,
zeros past N included: one launch, no float atomics, the same bits in every run. The column sums therefore
cost no read of their own. Bytes: scaled 6 per element from fp32 to 16 bits, gelu 8. Nothing is saved.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_same_shape, check_scale
from growtas.kernels.common.gelu import gelu_and_slope
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.split_k import add_columns, leave_columns

BLOCK_COLS = 256
BLOCK_ROWS = 8
GROUP = 32  # programs whose sums are added first


@launch.kernel
def _rows(
    dy_ptr,  # (M, N), row stride stride_dy: dy, or gelu: da
    h_ptr,  # gelu: (M, N), row stride stride_h; else None
    scale_ptr,  # scaled: (images,) fp32, or None
    out_ptr,  # (M, N), row stride stride_out: dz, or dh; may be dy
    a_ptr,  # gelu: (M, N), row stride stride_out; else None
    dbias_ptr,  # (N_max,), or None
    partial_ptr,  # (column tiles, programs + groups, 2, BLOCK_COLS) fp32
    counter_ptr,  # (column tiles, 1 + groups) int32 zeros
    M,
    N,
    N_max,
    tokens,  # rows per image
    programs,  # per column tile
    rows_per_program,  # a multiple of BLOCK_ROWS
    stride_dy,
    stride_h,
    stride_out,
    ALIGN: tl.constexpr,  # divides N and the row strides
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Grid: (programs * column tiles,)."""
    N = known_multiple(N, ALIGN)
    stride_dy = known_multiple(stride_dy, ALIGN)
    stride_h = known_multiple(stride_h, ALIGN)
    stride_out = known_multiple(stride_out, ALIGN)
    tile = tl.program_id(0) // programs
    program = tl.program_id(0) % programs
    cols = tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_ok = cols < N
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    for row in range(first, last, BLOCK_ROWS):
        rows = row + tl.arange(0, BLOCK_ROWS)
        row_ok = rows < last
        ok = row_ok[:, None] & col_ok[None, :]
        at = rows.to(tl.int64)[:, None]
        value = tl.load(dy_ptr + at * stride_dy + cols[None, :], mask=ok, other=0.0).to(tl.float32)
        if scale_ptr is not None:
            value *= tl.load(scale_ptr + rows // tokens, mask=row_ok, other=0.0)[:, None]
        if h_ptr is not None:
            h = tl.load(h_ptr + at * stride_h + cols[None, :], mask=ok, other=0.0).to(tl.float32)
            a, slope = gelu_and_slope(h)
            value *= slope
            tl.store(a_ptr + at * stride_out + cols[None, :], a.to(a_ptr.dtype.element_ty), mask=ok)
        tl.store(out_ptr + at * stride_out + cols[None, :], value.to(out_ptr.dtype.element_ty), mask=ok)
        total += value
    if dbias_ptr is not None:
        groups = (programs + GROUP - 1) // GROUP
        partial_ptr += tile.to(tl.int64) * (programs + groups) * (2 * BLOCK_COLS)
        counter_ptr += tile * (1 + groups)
        sums = tl.sum(total, axis=0)
        leave_columns(sums, sums, partial_ptr, program, BLOCK_COLS)
        sums, _, is_last = add_columns(partial_ptr, counter_ptr, program, programs, BLOCK_COLS, GROUP)
        if is_last:
            tl.store(dbias_ptr + cols, sums.to(dbias_ptr.dtype.element_ty), mask=cols < N_max)
            if tile == 0:
                zeros = tl.zeros((BLOCK_COLS,), dbias_ptr.dtype.element_ty)
                for start in range(tl.cdiv(N, BLOCK_COLS) * BLOCK_COLS, N_max, BLOCK_COLS):
                    rest = start + tl.arange(0, BLOCK_COLS)
                    tl.store(dbias_ptr + rest, zeros, mask=rest < N_max)


@planned
def _plan(
    dy: torch.Tensor,
    h: torch.Tensor | None,
    scale: torch.Tensor | None,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    tokens: int,
) -> Plan:
    """Check and plan either form; writes the bias gradient where there is a bias."""
    (m, n), device = dy.shape, launch.check(dy=dy, out=out, bias=bias, h=h, scale=scale)
    check_same_shape("out", out, (m, n), "dy")
    if h is not None:
        check_same_shape("h", h, (m, n), "its gradient")
    check_scale(scale, m, tokens)
    if bias is not None and (bias.ndim != 1 or len(bias) < n):
        raise UsageError(f"A bias of {n} columns or more is needed, but it has shape {tuple(bias.shape)}.")
    column_tiles = ceil(n, BLOCK_COLS)
    programs = max(1, min(4 * launch.multiprocessors(device) // column_tiles, ceil(m, BLOCK_ROWS)))
    rows = max(1, ceil(m, programs * BLOCK_ROWS)) * BLOCK_ROWS
    programs = ceil(m, rows)
    groups = ceil(programs, GROUP)
    strides = dy.stride(0), out.stride(0) if h is None else h.stride(0), out.stride(0)
    return Plan(
        _rows,
        (programs * column_tiles,),
        device,
        (m, n, 0 if bias is None else len(bias), tokens, programs, rows, *strides),
        {
            "ALIGN": tiles.alignment(n, *strides),
            "GROUP": GROUP,
            "BLOCK_ROWS": BLOCK_ROWS,
            "BLOCK_COLS": BLOCK_COLS,
            "num_warps": 4,
        },
        outputs=(None if bias is None else (tuple(bias.shape), bias.dtype),),
        counters=0 if bias is None else column_tiles * (1 + groups),
        partials=0 if bias is None else column_tiles * (programs + groups) * 2 * BLOCK_COLS,
    )


def _run(
    dy: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    h: torch.Tensor | None = None,
    a: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    tokens: int = 1,
) -> torch.Tensor | None:
    """Launch either form; the bias gradient where there is a bias."""
    plan = _plan(dy, h, scale, out, bias, tokens)
    (dbias,) = plan.outputs()
    plan.start(dy, h, scale, out, a, dbias, *(() if plan.counters else (None, None)))
    return dbias


def scaled_rows(
    dy: torch.Tensor,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradient that a GEMM reads, and the gradient of the bias that was added to its result.

    Args:
        dy: (M, N), last stride 1.
        scale: (M / tokens,) fp32 factors of the images, contiguous, or None.
        tokens: rows per image.
        dtype: of the result.
        bias: (N_max,), for size and dtype, or None.

    Returns:
        scale * dy (M, N) in ``dtype``, and its column sums at the bias's size, zero past N, or None.
    """
    dz = torch.empty(dy.shape, dtype=dtype, device=dy.device)
    return dz, _run(dy, dz, bias, scale=scale, tokens=tokens)


def in_dtype(
    dy: torch.Tensor, scale: torch.Tensor | None, tokens: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows of a gradient in the dtype of a GEMM, and the scale that is left to apply.

    A wgmma whose operand is converted on load waits for it, and Triton 3.6 does not compile every such form;
    so rows of another dtype are converted once, and scaled on the way.

    Args:
        dy: (M, N), last stride 1.
        scale, tokens: as of :func:`scaled_rows`.
        dtype: of the GEMM.
    """
    if dy.dtype is dtype:
        return dy, scale
    return scaled_rows(dy, scale, tokens, dtype, None)[0], None


def gelu_backward(
    da: torch.Tensor, h: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The gradient through GELU, written over ``da``, the result of GELU again, and the bias gradient.

    Args:
        da: (M, N), last stride 1; overwritten.
        h: (M, N), last stride 1: the input of GELU.
        bias: (N_max,), for size and dtype, or None.

    Returns:
        dh, which is ``da``; gelu(h), of its strides; and the column sums of dh at the bias's size, or None.
    """
    a = torch.empty_strided(da.shape, da.stride(), dtype=da.dtype, device=da.device)
    return da, a, _run(da, da, bias, h=h, a=a)
