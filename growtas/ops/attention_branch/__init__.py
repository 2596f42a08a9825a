"""The attention branch of a block: x + scale * proj(attention(qkv(LayerNorm(x)))), as one operation.

One operation rather than four, so that what is saved is chosen and not what autograd happens to keep, and so
that the residual's gradient is added where the branch's is made. It has no backend of its own: its steps are
``norm_qkv``, ``relative_attention`` and ``linear``, each on the one chosen for it; in a small net on a CPU
all of them are one call (one_call.py).

Saved: x, mean and rstd, qkv, the attention's result and its log-sum-exp. Recomputed: the normalised tokens
and the attention matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.ops import checks
from growtas.ops.attention_branch import one_call
from growtas.ops.attention_branch.one_call import AttentionWeights
from growtas.ops.layer_norm import check_norm
from growtas.ops.linear import LINEAR
from growtas.ops.norm_qkv import NORM_QKV
from growtas.ops.qkv import empty_qkv
from growtas.ops.registry import matmul_flops, register
from growtas.ops.relative_attention import attention_backend, attention_flops


def attention_branch(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    qkv: tuple[Tensor, Tensor | None],
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    proj: tuple[Tensor, Tensor | None],
    num_heads: int,
    head_dim: int,
    grid: tuple[int, int],
    *,
    scale: Tensor | None = None,
    bias_layout: str = "interleaved",
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Add self-attention with relative position to the residual stream.

    Args:
        x: (B, N, d) residual stream.
        norm: shared scale and shift (D,) of the LayerNorm before it, d <= D.
        qkv: shared weight (3 * e * H, D) and bias; see :func:`growtas.ops.qkv`.
        tables: key_v, key_h, value_v and value_h; see :func:`growtas.ops.relative_attention`.
        proj: shared weight (D, e * H) and bias (D,).
        num_heads: h <= H.
        head_dim: e, channels per head.
        grid: rows and columns of patches.
        scale: (B,) factor of each image's branch (drop path), or None for 1.
        bias_layout: of the qkv bias.
        eps: of the LayerNorm.
        dtype: of the GEMMs; x's where None.

    Returns:
        (B, N, d) in x's dtype. Gradients of parameters have the shared size, zero outside the slice.

    Raises:
        UsageError: a slice is larger than its shared weight, the grid does not fit the tokens, or an
            argument has another shape, dtype or device.

    Source: AutoFormer (Chen et al., ICCV 2021), pre-norm block.
    """
    x = checks.activation("attention_branch", x, 3, "(B, N, d)").contiguous()
    dtype = dtype or x.dtype
    if dtype is not x.dtype:
        checks.check_dtype("attention_branch", "dtype", dtype, x)
    qkv = checks.qkv("attention_branch", x, *qkv, num_heads, head_dim, bias_layout)
    d, width = x.shape[-1], num_heads * head_dim
    rows, columns = checks.grid(grid, x.shape[1])
    norm = check_norm("attention_branch", x, *norm)
    tables = checks.tables("attention_branch", tables, head_dim, x)
    proj_weight = checks.matrix("attention_branch", "the projection", proj[0], d, width, x)
    proj_bias = checks.vector("attention_branch", "the projection's bias", proj[1], proj[0].shape[0], x)
    scale = checks.images_scale("attention_branch", scale, x)
    layers = (*norm, *qkv, *tables, proj_weight, proj_bias, scale)
    return _attention_branch(x, *layers, num_heads, head_dim, rows, columns, bias_layout, eps, dtype)


def branch_forward(
    x: Tensor,
    weights: AttentionWeights,
    num_heads: int,
    head_dim: int,
    rows: int,
    columns: int,
    bias_layout: str,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result, and what the backward pass needs: mean, rstd, qkv, attended, lse."""
    grid = (rows, columns)
    if one_call.takes_attention(x, weights, num_heads, head_dim, dtype):
        return one_call.attention_forward(x, weights, num_heads, grid, bias_layout, eps)
    norm_weight, norm_bias, qkv_weight, qkv_bias, *tables, proj_weight, proj_bias, scale = weights
    _, tokens, d = x.shape
    project = NORM_QKV(x, len(norm_weight), dtype).norm_qkv_forward
    qkv, mean, rstd = project(
        x, norm_weight, norm_bias, eps, qkv_weight, qkv_bias, num_heads, head_dim, bias_layout, dtype
    )
    attended, lse = attention_backend(qkv, grid).relative_attention_forward(qkv, *tables, grid)
    merge = LINEAR(attended, proj_weight.shape[1]).linear_residual_forward
    y = merge(attended.view(-1, attended.shape[-1]), proj_weight, proj_bias, x.view(-1, d), scale, tokens)
    return y.view(x.shape), mean, rstd, qkv, attended, lse


def branch_backward(
    dy: Tensor,
    x: Tensor,
    weights: AttentionWeights,
    mean: Tensor,
    rstd: Tensor,
    qkv: Tensor,
    attended: Tensor,
    lse: Tensor,
    rows: int,
    columns: int,
    bias_layout: str,
) -> Sequence[Tensor | None]:
    """Gradients of x and, in order, of the parameters."""
    dy, grid, (num_heads, _, head_dim) = dy.contiguous(), (rows, columns), qkv.shape[2:]
    if (
        one_call.takes_attention(x, weights, num_heads, head_dim, qkv.dtype)
        and one_call.interleaved(qkv)
        and dy.dtype is qkv.dtype
    ):
        saved = (mean, rstd, qkv, attended, lse)
        return one_call.attention_backward(dy, x, weights, saved, grid, bias_layout)
    norm_weight, norm_bias, qkv_weight, qkv_bias, *tables, proj_weight, proj_bias, scale = weights
    tokens, d = x.shape[1:]
    merge_backward = LINEAR(attended, proj_weight.shape[1]).linear_backward
    dattended, *dproj = merge_backward(
        dy.view(-1, d), attended.view(-1, attended.shape[-1]), proj_weight, proj_bias, scale, tokens
    )
    attend_backward = attention_backend(qkv, grid).relative_attention_backward
    dqkv, *dtables = attend_backward(dattended.view(attended.shape), qkv, *tables, attended, lse, grid)
    project_backward = NORM_QKV(x, len(norm_weight), qkv.dtype).norm_qkv_backward
    gradients = project_backward(
        dqkv, x, mean, rstd, norm_weight, norm_bias, qkv_weight, qkv_bias, bias_layout, dy
    )
    return *gradients, *dtables, *dproj


def _shapes(
    x: Tensor,
    weights: AttentionWeights,
    num_heads: int,
    head_dim: int,
    rows: int,
    columns: int,
    bias_layout: str,
    eps: float,
    dtype: torch.dtype,
):
    batch, tokens, _ = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty(batch * tokens, dtype=wide) for _ in range(2))
    qkv = empty_qkv(x, weights.qkv_weight.shape[1], num_heads, head_dim, dtype)
    attended = qkv.new_empty(batch, tokens, num_heads * head_dim)
    lse = qkv.new_empty(batch, num_heads, tokens, dtype=torch.promote_types(dtype, torch.float32))
    return x.new_empty(x.shape), mean, rstd, qkv, attended, lse


def _gemm_flops(x, num_heads: int, head_dim: int) -> int:
    """FLOPs of qkv and the projection for a shape (B, N, d)."""
    return 4 * matmul_flops(x[0] * x[1], x[2], num_heads * head_dim)


def _flops(x, num_heads, head_dim, rows, columns) -> int:
    qkv = (3, x[0], num_heads, x[1], head_dim)
    return _gemm_flops(x, num_heads, head_dim) + 2 * attention_flops(qkv, rows, columns)


def _backward_flops(x, qkv, rows, columns) -> int:
    return 2 * _gemm_flops(x, qkv[2], qkv[4]) + 5 * attention_flops(qkv, rows, columns)


_attention_branch = register(
    "attention_branch",
    branch_forward,
    branch_backward,
    outputs=("y", "mean", "rstd", "qkv", "attended", "lse"),
    gradients=("x", *AttentionWeights._fields[:-1]),
    shapes=_shapes,
    flops=_flops,
    backward_flops=_backward_flops,
)
