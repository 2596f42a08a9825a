"""Gradients of q, k and v of LayerNorm(x): of x, of LayerNorm's parameters, of the qkv weight and bias.

Shapes and layouts as in ``qkv`` and ``layer_norm`` (M = B * N rows):
    dxn = sum over i of dqkv[i] weight[i]      dx = dresidual + LayerNorm's backward pass of dxn
    dweight[3u + i] = dqkv[i, u]^T xn, with xn made again while x is loaded (``qkv.backward``)

Up to 256 channels, one program has whole rows of dxn in its fp32 sums, so LayerNorm's backward pass and the
addition of dresidual follow in the same program. Three tiles of 64 x 256 do not fit into the registers beside
each other: it puts its rows of dxn where dx will be, and makes dx of them a few rows at a time, from L1 and
L2, as ``layer_norm`` does. (So a 16-bit dx rounds dxn on the way, and an fp32 one does not.) The sums for
LayerNorm's parameters are added by the last program (``split_k``), without atomics on floats. Wider rows do
not fit into one tile: there, the GEMM writes dxn and ``layer_norm_backward`` follows, and where there are
many of them, xn is made again by a launch of its own, so that both operands of dweight are copied (made on
load, they are waited for in every step).
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas import shadow
from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_norm_parameters, check_same_shape, check_slice
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.split_k import add_columns, leave_columns, write_columns
from growtas.kernels.layer_norm.backward import backward_rows, layer_norm_backward
from growtas.kernels.layer_norm.normalise import normalised
from growtas.kernels.qkv.backward import input_product, qkv_backward_input, weight_gradient
from growtas.kernels.qkv.layout import check_batch, check_gradient, check_heads, even_rows, rows_of


@launch.kernel
def _input(
    dqkv_ptr,  # (3, B, h, N, E) contiguous
    x_ptr,  # (M, d), row stride stride_x
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    norm_weight_ptr,  # (D,)
    weight_ptr,  # (3*E*H, D), row stride stride_weight
    dresidual_ptr,  # (M, d), row stride stride_dresidual, or None
    dx_ptr,  # (M, d) contiguous
    dnorm_weight_ptr,  # (D,)
    dnorm_bias_ptr,  # (D,)
    partial_ptr,  # (row tiles + groups, 2, BLOCK_COLS) fp32: sums of dxn * xhat and of dxn over some rows
    counter_ptr,  # (1 + groups,) int32 zeros
    M,
    K,  # d
    full_width,  # D
    heads,  # h
    stride_x,
    stride_weight,
    stride_dresidual,
    part_step,  # of the weight's rows, see qkv.layout
    unit_step,
    ALIGN_K: tl.constexpr,  # divides d, stride_x, stride_weight and stride_dresidual
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM_GROUP: tl.constexpr,  # programs per group
    STEP_ROWS: tl.constexpr,  # rows of a step of LayerNorm's backward pass
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,  # holds d
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (tiles over M,)."""
    K = known_multiple(K, ALIGN_K)
    stride_x = known_multiple(stride_x, ALIGN_K)
    stride_weight = known_multiple(stride_weight, ALIGN_K)
    stride_dresidual = known_multiple(stride_dresidual, ALIGN_K)
    program = tl.program_id(0)
    row = program * BLOCK_ROWS
    rows = tl.arange(0, BLOCK_ROWS)
    row_ok = rows < M - row
    cols = tl.arange(0, BLOCK_COLS)
    col_ok = cols < K
    dxn = input_product(
        dqkv_ptr, weight_ptr, row, rows, row_ok, cols, col_ok, M, heads, stride_weight, part_step, unit_step,
        TOKENS, HEAD_DIM, PRECISION, BLOCK_ROWS, BLOCK_COLS, BLOCK_DEPTH,
    )  # fmt: skip
    dx_ptrs = dx_ptr + row.to(tl.int64) * K + rows[:, None] * K + cols[None, :]
    tl.store(dx_ptrs, dxn.to(dx_ptr.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])
    tl.debug_barrier()
    dnorm_weight, dnorm_bias = backward_rows(
        dx_ptr, x_ptr, norm_weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dresidual_ptr,
        row, row + BLOCK_ROWS, M, K, K, stride_x, K, stride_dresidual, STEP_ROWS, BLOCK_COLS, True,
    )  # fmt: skip
    leave_columns(dnorm_weight, dnorm_bias, partial_ptr, program, BLOCK_COLS)
    dnorm_weight, dnorm_bias, last = add_columns(
        partial_ptr, counter_ptr, program, tl.cdiv(M, BLOCK_ROWS), BLOCK_COLS, SUM_GROUP
    )
    if last:
        write_columns(dnorm_weight, dnorm_bias, dnorm_weight_ptr, dnorm_bias_ptr, full_width, BLOCK_COLS)


#: The widest rows that the one-launch form takes.
_WIDEST = min(tile.cols for tile in tiles.NORM_BACKWARD.values())


@planned
def _plan_input(
    dqkv: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight: torch.Tensor,
    row_steps: tuple[int, int],
    dresidual: torch.Tensor | None,
    precision: str,
) -> Plan:
    """Check and plan; writes dx, dnorm_weight and dnorm_bias."""
    check_gradient(dqkv)
    device = launch.check(
        dqkv=dqkv, x=x, mean=mean, rstd=rstd, norm_weight=norm_weight, norm_bias=norm_bias,
        weight=weight, dresidual=dresidual,
    )  # fmt: skip
    _, b, heads, n, head_dim = dqkv.shape
    check_batch(dqkv, x)
    m, d = b * n, x.shape[2]
    check_norm_parameters(d, norm_weight, norm_bias)
    for name, tensor in (("mean", mean), ("rstd", rstd)):
        check_same_shape(name, tensor, (m,), "x")
        if tensor.dtype is not torch.float32:
            raise UsageError(f"{name} is {tensor.dtype}, but float32 is needed. Pass what forward returned.")
    if dresidual is not None:
        check_same_shape("dresidual", dresidual, tuple(x.shape), "x")
    check_heads(weight, head_dim)
    check_slice(weight, 3 * head_dim * heads, d)
    launch.check_matmul(dqkv, weight)
    tile = tiles.pick_norm_backward(tiles.operand_kind(dqkv.dtype, weight.dtype, precision))
    full_width = norm_weight.shape[0]
    programs = ceil(m, tile.rows)
    groups = ceil(programs, tiles.NORM_GROUP)
    strides = (x.stride(1), weight.stride(0), d if dresidual is None else dresidual.stride(1))
    return Plan(
        _input,
        (programs,),
        device,
        (m, d, full_width, heads, *strides, *row_steps),
        {
            "ALIGN_K": tiles.alignment(d, *strides),
            "TOKENS": n,
            "HEAD_DIM": head_dim,
            "PRECISION": precision,
            "SUM_GROUP": tiles.NORM_GROUP,
            "STEP_ROWS": min(tile.rows, tile.warps),
            **tile.constants(),
        },
        outputs=(
            ((b, n, d), x.dtype),
            ((full_width,), norm_weight.dtype),
            ((full_width,), norm_bias.dtype),
        ),
        counters=1 + groups,
        partials=(programs + groups) * 2 * tile.cols,
    )


def norm_qkv_backward(
    dqkv: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    bias_layout: str,
    dresidual: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of all that ``norm_qkv_forward`` took: two launches up to 256 channels, else three or four.

    Args:
        dqkv: (3, B, h, N, E); copied where not contiguous. Its dtype is that of the matmuls.
        x: (B, N, d), as forward took it.
        mean, rstd: (M,) fp32, as forward returned them.
        norm_weight, norm_bias, weight, bias, bias_layout: as forward took them.
        dresidual: (B, N, d), the gradient that bypassed the LayerNorm, added to that of x; or None.

    Returns:
        dx (B, N, d) contiguous in x's dtype, and the gradients of norm_weight, norm_bias, weight and bias at
        full size in their dtypes, zero outside the slice; the last is None where there is no bias.

    Raises:
        UsageError: as ``norm_qkv_forward``, or shapes that do not come from the same forward pass.
    """
    dqkv, x = dqkv.contiguous(), even_rows("x", x)
    dresidual = None if dresidual is None else even_rows("dresidual", dresidual)
    norm, z = (mean, rstd, norm_weight, norm_bias), x
    precision, (b, n, d) = launch.dot_precision(dqkv.dtype), x.shape
    if tiles.norm_apart(dqkv.dtype, precision, b * n, d, launch.multiprocessors(x.device)):
        norm, z = None, normalised(rows_of("x", x), *norm, dqkv.dtype).view(x.shape)
    dweight, dbias = weight_gradient(dqkv, z, norm, weight, bias, bias_layout)
    if d > _WIDEST:
        residual = None if dresidual is None else rows_of("dresidual", dresidual)
        rows = rows_of("x", x)
        dxn = qkv_backward_input(dqkv, weight, d).view(rows.shape)
        dx, dnorm_weight, dnorm_bias = layer_norm_backward(
            dxn, rows, norm_weight, norm_bias, mean, rstd, residual
        )
        return dx.view(x.shape), dnorm_weight, dnorm_bias, dweight, dbias
    read, *row_steps = shadow.read_qkv(weight, dqkv.dtype, dqkv.shape[-1])
    plan = _plan_input(
        dqkv, x, mean, rstd, norm_weight, norm_bias, read, tuple(row_steps), dresidual, precision
    )  # fmt: skip
    dx, dnorm_weight, dnorm_bias = plan.outputs()
    plan.start(dqkv, x, mean, rstd, norm_weight, read, dresidual, dx, dnorm_weight, dnorm_bias)
    return dx, dnorm_weight, dnorm_bias, dweight, dbias
