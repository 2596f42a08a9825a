"""The attention branch of a block: x + scale * proj(attention(qkv(LayerNorm(x)))), as one operation.

One operation rather than four, so that what is saved is chosen and not what autograd happens to keep, and so
that the residual's gradient is added where the branch's is made.

Saved: x, mean and rstd, qkv, the attention's result and its log-sum-exp. Recomputed: the normalised tokens
and the attention matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from growtas.errors import UsageError
from growtas.ops import backend, native_branch
from growtas.ops.composed import linear_backward
from growtas.ops.qkv import check_qkv, empty_qkv
from growtas.ops.registration import call, classic, custom_op, product_flops
from growtas.ops.relative_attention import attention_flops, attention_kernel, check_grid


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
        x: (B, N, d) residual stream, contiguous.
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
        dtype: in which products are made; x's where None.

    Returns:
        (B, N, d) in x's dtype. Gradients of parameters have the shared size, zero outside the slice.

    Raises:
        UsageError: a slice is larger than its shared weight, or the grid does not fit the tokens.

    Source: AutoFormer (Chen et al., ICCV 2021), pre-norm block.
    """
    check_qkv(x, qkv[0], num_heads, head_dim, bias_layout)
    rows, columns = check_grid(grid, x.shape[1])
    width = num_heads * head_dim
    if x.shape[-1] > proj[0].shape[0] or width > proj[0].shape[1]:
        raise UsageError(
            f"attention_branch needs a ({x.shape[-1]}, {width}) slice of the projection, but the shared "
            f"weight is {tuple(proj[0].shape)}; sample a smaller subnet or build a larger supernet."
        )
    return call(
        AttentionBranch.apply,
        torch.ops.growtas.attention_branch,
        x.contiguous(),
        *norm,
        *qkv,
        *tables,
        *proj,
        scale,
        num_heads,
        head_dim,
        rows,
        columns,
        bias_layout,
        eps,
        dtype or x.dtype,
    )[0]


def _forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    key_v: Tensor,
    key_h: Tensor,
    value_v: Tensor,
    value_h: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    scale: Tensor | None,
    num_heads: int,
    head_dim: int,
    rows: int,
    columns: int,
    bias_layout: str,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result, and what the backward pass needs: mean, rstd, qkv, attended, lse."""
    tables = (key_v, key_h, value_v, value_h)
    weights = (norm_weight, norm_bias, qkv_weight, qkv_bias, *tables, proj_weight, proj_bias, scale)
    grid = (rows, columns)
    if native_branch.takes_attention(x, weights, num_heads, head_dim, dtype):
        return native_branch.attention_forward(x, weights, num_heads, grid, bias_layout, eps)
    _, tokens, d = x.shape
    project = backend.kernel("norm_qkv", "norm_qkv_forward", x, len(norm_weight), dtype)
    qkv, mean, rstd = project(
        x, norm_weight, norm_bias, eps, qkv_weight, qkv_bias, num_heads, head_dim, bias_layout, dtype
    )
    attend = attention_kernel("relative_attention_forward", qkv, grid)
    attended, lse = attend(qkv, *tables, grid)
    merge = backend.kernel("linear", "linear_residual_forward", attended, proj_weight.shape[1])
    y = merge(attended.view(-1, attended.shape[-1]), proj_weight, proj_bias, x.view(-1, d), scale, tokens)
    return y.view(x.shape), mean, rstd, qkv, attended, lse


def _backward(
    dy: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    key_v: Tensor,
    key_h: Tensor,
    value_v: Tensor,
    value_h: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    scale: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    qkv: Tensor,
    attended: Tensor,
    lse: Tensor,
    rows: int,
    columns: int,
    bias_layout: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and, in order, of the parameters; those of missing biases are empty."""
    dy = dy.contiguous()
    tables = (key_v, key_h, value_v, value_h)
    weights = (norm_weight, norm_bias, qkv_weight, qkv_bias, *tables, proj_weight, proj_bias, scale)
    grid, (num_heads, _, head_dim) = (rows, columns), qkv.shape[2:]
    if (
        native_branch.takes_attention(x, weights, num_heads, head_dim, qkv.dtype)
        and native_branch.interleaved(qkv)
        and dy.dtype is qkv.dtype
    ):
        saved = (mean, rstd, qkv, attended, lse)
        gradients = native_branch.attention_backward(dy, x, weights, saved, grid, bias_layout)
        return tuple([x.new_empty(0) if g is None else g for g in gradients])
    tokens, d = x.shape[1:]
    dy_rows, attended_rows = dy.view(-1, d), attended.view(-1, attended.shape[-1])
    dattended, dproj_weight, dproj_bias = linear_backward(
        dy_rows, attended_rows, proj_weight, proj_bias, scale, tokens
    )
    attend_backward = attention_kernel("relative_attention_backward", qkv, grid)
    dqkv, *dtables = attend_backward(dattended.view(attended.shape), qkv, *tables, attended, lse, grid)
    project_backward = backend.kernel("norm_qkv", "norm_qkv_backward", x, len(norm_weight), qkv.dtype)
    dx, dnorm_weight, dnorm_bias, dqkv_weight, dqkv_bias = project_backward(
        dqkv, x, mean, rstd, norm_weight, norm_bias, qkv_weight, qkv_bias, bias_layout, dy
    )
    return (
        dx,
        dnorm_weight,
        dnorm_bias,
        dqkv_weight,
        x.new_empty(0) if dqkv_bias is None else dqkv_bias,
        *dtables,
        dproj_weight,
        x.new_empty(0) if dproj_bias is None else dproj_bias,
    )


def _keep(ctx, inputs, output) -> None:
    """Save the tensors and sizes of the backward pass."""
    tensors, (_, _, ctx.rows, ctx.columns, ctx.bias_layout, _, _) = inputs[:12], inputs[12:]
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


class AttentionBranch(torch.autograd.Function):
    """See the head of the file for what is saved."""

    forward = classic(_forward, _keep)

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:  # nothing downstream used the result
            return (None,) * 19
        saved = ctx.saved_tensors
        gradients = call(
            _backward,
            torch.ops.growtas.attention_branch_backward,
            dy,
            *saved,
            ctx.rows,
            ctx.columns,
            ctx.bias_layout,
        )
        found = [None if like is None else g for like, g in zip(saved[:11], gradients, strict=True)]
        return *found, *(None,) * 8


_operator = custom_op("growtas::attention_branch", _forward)


@_operator.register_fake
def _(x, norm_weight, norm_bias, *rest):
    qkv_weight, num_heads, head_dim, dtype = rest[0], rest[9], rest[10], rest[15]
    batch, tokens, _ = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty(batch * tokens, dtype=wide) for _ in range(2))
    qkv = empty_qkv(x, qkv_weight.shape[1], num_heads, head_dim, dtype)
    attended = qkv.new_empty(batch, tokens, num_heads * head_dim)
    lse = qkv.new_empty(batch, num_heads, tokens, dtype=torch.promote_types(dtype, torch.float32))
    return x.new_empty(x.shape), mean, rstd, qkv, attended, lse


_backward_operator = custom_op("growtas::attention_branch_backward", _backward)


@_backward_operator.register_fake
def _(dy, x, *rest):
    return x.new_empty(x.shape), *(x.new_empty(0) if p is None else p.new_empty(p.shape) for p in rest[:10])


_operator.register_autograd(AttentionBranch.backward, setup_context=_keep)


def _product_flops(x_shape, num_heads: int, head_dim: int) -> int:
    """FLOPs of qkv and the projection."""
    batch, tokens, d = x_shape
    return 4 * product_flops(batch * tokens, d, num_heads * head_dim)


@register_flop_formula(torch.ops.growtas.attention_branch)
def _flops(x_shape, *arguments, out_shape=None, **_kwargs) -> int:
    num_heads, head_dim, rows, columns = arguments[11:15]
    qkv_shape = (3, x_shape[0], num_heads, x_shape[1], head_dim)
    return _product_flops(x_shape, num_heads, head_dim) + 2 * attention_flops(qkv_shape, rows, columns)


@register_flop_formula(torch.ops.growtas.attention_branch_backward)
def _backward_flops(dy_shape, x_shape, *arguments, out_shape=None, **_kwargs) -> int:
    qkv_shape, rows, columns = arguments[13], *arguments[16:18]
    products = _product_flops(x_shape, qkv_shape[2], qkv_shape[4])
    return 2 * products + 5 * attention_flops(qkv_shape, rows, columns)
