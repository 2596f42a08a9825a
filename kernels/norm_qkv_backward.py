"""Gradients of q, k and v of LayerNorm(x): of x, of LayerNorm's parameters, of the qkv weight and bias.

Shapes and layouts as in ``qkv`` and ``layer_norm`` (M = B * N rows):
    dxn = sum over i of dqkv[i] weight[i]      dx = dresidual + LayerNorm's backward pass of dxn
    dweight[3u + i] = dqkv[i, u]^T xn, with xn made again while x is loaded (``qkv_backward``)

Up to 256 channels, one program has whole rows of dxn in its fp32 sums, so LayerNorm's backward pass and the
addition of dresidual follow in the same program. Three tiles of 64 x 256 do not fit into the registers beside
each other: it puts its rows of dxn where dx will be, and makes dx of them a few rows at a time, from L1 and
L2, as ``layer_norm`` does. (So a 16-bit dx rounds dxn on the way, and an fp32 one does not.) The sums for
LayerNorm's parameters are added by the last program to finish (``parts``), without atomics on floats. Wider
rows do not fit into one tile: there, the product writes dxn and ``layer_norm_backward`` follows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels import launch, tiles
from growtas.kernels.launch import known_multiple
from growtas.kernels.layer_norm import backward_rows, check_norm, layer_norm_backward
from growtas.kernels.parts import add_columns, leave_columns, write_columns
from growtas.kernels.qkv_backward import input_product, qkv_backward_input, weight_gradient
from growtas.kernels.qkv_layout import check_batch, check_heads, gradient, rows_of
from growtas.kernels.slices import check_same_shape, check_slice


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
    ALIGN_K: tl.constexpr,  # divides d, stride_x, stride_weight and stride_dresidual
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,  # programs per group
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
        dqkv_ptr, weight_ptr, row, rows, row_ok, cols, col_ok, M, heads, stride_weight,
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
        partial_ptr, counter_ptr, program, tl.cdiv(M, BLOCK_ROWS), BLOCK_COLS, PARTS
    )
    if last:
        write_columns(dnorm_weight, dnorm_bias, dnorm_weight_ptr, dnorm_bias_ptr, full_width, BLOCK_COLS)


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
    """Gradients of all that ``norm_qkv_forward`` took: two launches up to 256 channels, else three.

    Args:
        dqkv: (3, B, h, N, E); copied where not contiguous. Its dtype is that of the products.
        x: (B, N, d), as forward took it.
        mean, rstd: (M,) fp32, as forward returned them.
        norm_weight, norm_bias, weight, bias, bias_layout: as forward took them.
        dresidual: (B, N, d), added to the gradient of x: what came past the LayerNorm. Or None.

    Returns:
        dx (B, N, d) contiguous in x's dtype, and the gradients of norm_weight, norm_bias, weight and bias at
        full size in their dtypes, zero outside the slice; the last is None where there is no bias.

    Raises:
        UsageError: as ``norm_qkv_forward``, or shapes that do not come from the same forward pass.
    """
    dqkv, rows = gradient(dqkv), rows_of("x", x)
    residual = None if dresidual is None else rows_of("dresidual", dresidual)
    device = launch.check(
        dqkv=dqkv, x=rows, mean=mean, rstd=rstd, norm_weight=norm_weight, norm_bias=norm_bias,
        weight=weight, bias=bias, dresidual=residual,
    )  # fmt: skip
    _, b, heads, n, head_dim = dqkv.shape
    check_batch(dqkv, x)
    check_norm(rows, norm_weight, norm_bias)
    m, d = rows.shape
    for name, tensor in (("mean", mean), ("rstd", rstd)):
        check_same_shape(name, tensor, (m,), "x")
        if tensor.dtype is not torch.float32:
            raise UsageError(f"{name} is {tensor.dtype}, but float32 is needed. Pass what forward returned.")
    if residual is not None:
        check_same_shape("dresidual", dresidual, tuple(x.shape), "x")
    check_heads(weight, head_dim)
    check_slice(weight, 3 * head_dim * heads, d)
    launch.check_products(dqkv, weight)
    dweight, dbias = weight_gradient(dqkv, x, (mean, rstd, norm_weight, norm_bias), weight, bias, bias_layout)
    precision = launch.dot_precision(dqkv.dtype)
    kind = tiles.operand_kind(dqkv.dtype, weight.dtype, precision)
    tile = tiles.pick_norm_backward(kind)
    if m == 0 or d > tile.cols:
        dxn = qkv_backward_input(dqkv, weight, d).view(m, d)
        dx, dnorm_weight, dnorm_bias = layer_norm_backward(
            dxn, rows, norm_weight, norm_bias, mean, rstd, residual
        )
        return dx.view(x.shape), dnorm_weight, dnorm_bias, dweight, dbias
    full_width = norm_weight.shape[0]
    dx = torch.empty((b, n, d), dtype=x.dtype, device=device)
    dnorm_weight = torch.empty((full_width,), dtype=norm_weight.dtype, device=device)
    dnorm_bias = torch.empty((full_width,), dtype=norm_bias.dtype, device=device)
    programs = triton.cdiv(m, tile.rows)
    groups = triton.cdiv(programs, tiles.NORM_GROUP)
    stride_residual = d if residual is None else residual.stride(0)
    launch.run(
        _input,
        (programs,),
        device,
        dqkv,
        rows,
        mean,
        rstd,
        norm_weight,
        weight,
        residual,
        dx,
        dnorm_weight,
        dnorm_bias,
        torch.empty((programs + groups, 2, tile.cols), dtype=torch.float32, device=device),
        launch.counters(device, 1 + groups),
        m,
        d,
        full_width,
        heads,
        rows.stride(0),
        weight.stride(0),
        stride_residual,
        ALIGN_K=tiles.alignment(d, rows.stride(0), weight.stride(0), stride_residual),
        TOKENS=n,
        HEAD_DIM=head_dim,
        PRECISION=precision,
        PARTS=tiles.NORM_GROUP,
        STEP_ROWS=min(tile.rows, tile.warps),
        **tile.constants(),
    )
    return dx, dnorm_weight, dnorm_bias, dweight, dbias
