"""Sliced linear with its epilogues: forward. Its gradients are in ``linear.backward``.

Shapes (one subnet's layer; M = rows of the batch, images of ``tokens`` rows):
    x (M, K)   weight (N_max, K_max), of which [:N, :K] is active   bias (N_max,), [:N] active   y (M, N)

    plain      y = x weight[:N, :K]^T + bias[:N]
    gelu       h = the same in x's dtype, and y = gelu(h) from the fp32 sum, by the error function
    residual   y = residual + scale[image] * (the same), in residual's dtype

The weight is read where it lies, by its row stride; an fp32 weight under 16-bit activations is converted on
load. Matmuls are in x's dtype with fp32 sums. Saved for backward: the caller's x, and h (2 bytes per element
in 16 bits); the backward pass makes gelu(h) and its slope from h in the epilogue of a GEMM.

Tensor cores: mma.sync on sm_80, wgmma on sm_90, in 16 bits and in tf32; exact fp32 runs on the FMA units.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas import shadow
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_bias, check_matrix, check_same_shape, check_scale, check_slice
from growtas.kernels.common.gelu import gelu
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.matmul import accumulate, tile_of
from growtas.kernels.common.plan import Plan, ceil, planned


@launch.kernel
def _forward(
    x_ptr,  # (M, K), row stride stride_x
    weight_ptr,  # (N_max, K_max), row stride stride_weight
    bias_ptr,  # (N_max,), or None
    y_ptr,  # (M, N) contiguous
    h_ptr,  # gelu: (M, N) contiguous, its input; else None
    residual_ptr,  # residual: (M, N), row stride stride_residual; else None
    scale_ptr,  # residual: (images,) fp32, step stride_scale; else None
    M,
    N,
    K,
    tokens,  # rows per image
    stride_x,
    stride_weight,
    stride_residual,
    stride_scale,  # 0: one factor for all images
    ALIGN_K: tl.constexpr,  # divides K, stride_x and stride_weight
    ALIGN_N: tl.constexpr,  # divides N and stride_residual
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over M * tiles over N,). h_ptr selects the GELU epilogue, residual_ptr the residual."""
    K = known_multiple(K, ALIGN_K)
    N = known_multiple(N, ALIGN_N)
    stride_x = known_multiple(stride_x, ALIGN_K)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    row_tile, col_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_ROWS), tl.cdiv(N, BLOCK_COLS), GROUP)
    row = row_tile * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    cols = col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_ok = cols < N
    steps = tl.arange(0, BLOCK_DEPTH)

    acc = accumulate(
        tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32),
        x_ptr + row.to(tl.int64) * stride_x + rows[:, None] * stride_x + steps[None, :],
        row_ok,
        BLOCK_DEPTH,
        weight_ptr + cols[None, :] * stride_weight + steps[:, None],
        col_ok,
        BLOCK_DEPTH,
        K,
        x_ptr.dtype.element_ty,
        PRECISION,
        BLOCK_DEPTH,
    )
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    ok = row_ok[:, None] & col_ok[None, :]
    offsets = row.to(tl.int64) * N + rows[:, None] * N + cols[None, :]
    if h_ptr is not None:
        tl.store(h_ptr + offsets, acc.to(h_ptr.dtype.element_ty), mask=ok)
        acc = gelu(acc)
    if residual_ptr is not None:
        stride_residual = known_multiple(stride_residual, ALIGN_N)
        scale = tl.load(scale_ptr + (row + rows) // tokens * stride_scale, mask=row_ok, other=0.0)
        residual_ptrs = residual_ptr + row.to(tl.int64) * stride_residual
        residual_ptrs += rows[:, None] * stride_residual + cols[None, :]
        acc = tl.load(residual_ptrs, mask=ok, other=0.0).to(tl.float32) + acc * scale[:, None]
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=ok)


@planned
def _plan(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    out_dtype: torch.dtype,
    gelu_input: bool,
    residual: torch.Tensor | None,
    scale: torch.Tensor | None,
    tokens: int,
    precision: str,
) -> Plan:
    """Check and plan any of the forms; writes y, and the input of GELU where it is wanted."""
    check_matrix("x", x, "(M, K)")
    device = launch.check(x=x, weight=weight, bias=bias, residual=residual, scale=scale)
    (m, k), n = x.shape, out_features
    check_slice(weight, n, k)
    check_bias(bias, weight)
    launch.check_matmul(x, weight)
    stride_residual = n
    if residual is not None:
        check_same_shape("residual", residual, (m, n), "the output")
        check_scale(scale, m, tokens)
        stride_residual = residual.stride(0)
    tile = tiles.pick(
        tiles.operand_kind(x.dtype, weight.dtype, precision), m, n, launch.multiprocessors(device)
    )
    stride_scale = 0 if residual is None or scale is None else scale.stride(0)
    return Plan(
        _forward,
        (ceil(m, tile.rows) * ceil(n, tile.cols),),
        device,
        (m, n, k, tokens, x.stride(0), weight.stride(0), stride_residual, stride_scale),
        {
            "ALIGN_K": tiles.alignment(k, x.stride(0), weight.stride(0)),
            "ALIGN_N": tiles.alignment(n, stride_residual),
            "PRECISION": precision,
            **tile.constants(),
        },
        outputs=(((m, n), out_dtype), ((m, n), x.dtype) if gelu_input else None),
    )


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    out_dtype: torch.dtype,
    gelu_input: bool = False,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    tokens: int = 1,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Launch any of the forms: y, and the input of GELU where it is wanted."""
    x, weight = launch.activation(x), shadow.read(weight, x.dtype)
    precision = launch.dot_precision(x.dtype)
    plan = _plan(x, weight, bias, out_features, out_dtype, gelu_input, residual, scale, tokens, precision)
    y, h = plan.outputs()
    if residual is not None and scale is None:
        scale = launch.one(plan.device)
    plan.start(x, weight, bias, y, h, residual, scale)
    return y, h


def linear_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> torch.Tensor:
    """y = x weight[:N, :K]^T + bias[:N].

    Args:
        x: (M, K), any row stride; copied where the last stride is not 1.
        weight: (N_max, K_max) shared weight, any row stride; fp32 or x's dtype, converted to x's dtype on
            load.
        bias: (N_max,) or None.
        out_features: N.

    Returns:
        (M, N) contiguous, in x's dtype.

    Raises:
        UsageError: the slice is outside the weight, or a tensor cannot be read (see ``launch.check``).
    """
    return _run(x, weight, bias, out_features, x.dtype)[0]


def linear_gelu_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """gelu(h) and h = x weight[:N, :K]^T + bias[:N], in one launch.

    Args:
        x, weight, bias, out_features: as :func:`linear_forward`.

    Returns:
        a and h, (M, N) contiguous each, in x's dtype: a by the exact GELU from the fp32 sum, h for backward.

    Raises:
        UsageError: as :func:`linear_forward`.
    """
    a, h = _run(x, weight, bias, out_features, x.dtype, gelu_input=True)
    return a, h


def linear_residual_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    scale: torch.Tensor | None,
    tokens: int,
) -> torch.Tensor:
    """y = residual + scale[row // tokens] * (x weight[:N, :K]^T + bias[:N]), in one launch.

    Args:
        x, weight, bias: as :func:`linear_forward`.
        residual: (M, N), any row stride; copied where the last stride is not 1. May be fp32 under 16-bit x.
        scale: (M / tokens,) fp32, the drop-path factor of each image; None means 1.
        tokens: rows per image.

    Returns:
        (M, N) contiguous, in residual's dtype.

    Raises:
        UsageError: as :func:`linear_forward`, or residual or scale do not fit.
    """
    check_matrix("residual", residual, "(M, N)")
    residual = launch.activation(residual)
    y, _ = _run(
        x, weight, bias, residual.shape[1], residual.dtype, residual=residual, scale=scale, tokens=tokens
    )
    return y
