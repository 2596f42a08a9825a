"""Sliced QKV: queries, keys and values of the first h heads, from an interleaved shared weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from growtas.errors import UsageError, nearest
from growtas.ops import backend, reference
from growtas.ops.composed import qkv_gradient
from growtas.ops.registration import call, classic, custom_op, product_flops

BIAS_LAYOUTS = ("interleaved", "published")


def check_qkv(x: Tensor, weight: Tensor, num_heads: int, head_dim: int, bias_layout: str) -> None:
    """Refuse a slice that is larger than the shared weight, and an unknown layout."""
    if 3 * num_heads * head_dim > weight.shape[0] or x.shape[-1] > weight.shape[1]:
        raise UsageError(
            f"qkv needs a ({3 * num_heads * head_dim}, {x.shape[-1]}) slice for {num_heads} heads of "
            f"{head_dim}, but the shared weight is {tuple(weight.shape)}; sample a smaller subnet or build a "
            "larger supernet."
        )
    if bias_layout not in BIAS_LAYOUTS:
        raise UsageError(f"There is no qkv bias layout {bias_layout!r}.{nearest(bias_layout, BIAS_LAYOUTS)}")


def qkv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    head_dim: int,
    bias_layout: str = "interleaved",
) -> Tensor:
    """Project tokens to the queries, keys and values of the first heads, split by head.

    Row ``3 * u + i`` of the shared weight makes channel u of q (i = 0), k (1) or v (2), and head j owns the
    channels from ``j * head_dim`` on: a subnet with fewer heads uses a prefix of the rows.

    Args:
        x: (B, N, d) tokens.
        weight: (3 * head_dim * H, D) shared weight, d <= D; of x's dtype or a wider one, cast on load.
        bias: (3 * head_dim * H,) shared bias, or None.
        num_heads: h, at most H.
        head_dim: e, channels per head.
        bias_layout: ``interleaved`` (as the weight; subnets nest) or ``published`` (a contiguous prefix of
            3 * e * h entries, q then k then v, as AutoFormer's code reads its weights).

    Returns:
        (3, B, h, N, e): a view of (B, N, h, e, 3) from the torch back end, contiguous from the GPU's kernels.
        Gradients of weight and bias have the shared size, zero outside the slice.

    Raises:
        UsageError: the slice is larger than the shared weight, or the layout is unknown.

    Source: AutoFormer's published code, setting ``change_qkv``; the bias layouts are in docs/supernet.md.
    """
    check_qkv(x, weight, num_heads, head_dim, bias_layout)
    return call(QKV.apply, torch.ops.growtas.qkv, x, weight, bias, num_heads, head_dim, bias_layout)


def empty_qkv(
    x: Tensor, width: int, num_heads: int, head_dim: int, dtype: torch.dtype | None = None
) -> Tensor:
    """A result for tokens x (B, N, d) of a (.., width) weight, with the strides its back end gives it."""
    x = x if dtype is None else x.to(dtype)
    if backend.choose("qkv", x.device, x.dtype, width) in ("torch", "cublas", "cpu"):
        return reference.empty_qkv(x, num_heads, head_dim)
    return x.new_empty(3, x.shape[0], num_heads, x.shape[1], head_dim)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
) -> Tensor:
    run = backend.kernel("qkv", "qkv_forward", x, weight.shape[1])
    return run(x.contiguous(), weight, bias, num_heads, head_dim, bias_layout)


def _backward(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, full-size dweight and dbias (empty where there is no bias)."""
    x, dqkv = x.contiguous(), qkv_gradient(dqkv, weight)
    dx = backend.kernel("qkv", "qkv_backward_input", x, weight.shape[1])(dqkv, weight, x.shape[-1])
    dweight, dbias = backend.kernel("qkv", "qkv_backward_weight", x, weight.shape[1])(
        dqkv, x, weight, bias, bias_layout
    )
    return dx, dweight, x.new_empty(0) if dbias is None else dbias


def _keep(ctx, inputs, output) -> None:
    """Save the tensors and sizes of the backward pass."""
    x, weight, bias, _, _, ctx.bias_layout = inputs
    ctx.save_for_backward(x, weight, bias)


class QKV(torch.autograd.Function):
    """Saved: x. Nothing is recomputed."""

    forward = classic(_forward, _keep)

    @staticmethod
    def backward(ctx, dqkv):
        x, weight, bias = ctx.saved_tensors
        dx, dweight, dbias = call(
            _backward, torch.ops.growtas.qkv_backward, dqkv, x, weight, bias, ctx.bias_layout
        )
        return dx, dweight, None if bias is None else dbias, None, None, None


_qkv_op = custom_op("growtas::qkv", _forward)


@_qkv_op.register_fake
def _(x, weight, bias, num_heads, head_dim, bias_layout):
    return empty_qkv(x, weight.shape[1], num_heads, head_dim)


_qkv_backward_op = custom_op("growtas::qkv_backward", _backward)


@_qkv_backward_op.register_fake
def _(dqkv, x, weight, bias, bias_layout):
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


_qkv_op.register_autograd(QKV.backward, setup_context=_keep)


@register_flop_formula(torch.ops.growtas.qkv)
def _flops(x_shape, weight_shape, bias_shape, num_heads, head_dim, *_args, out_shape=None, **_kwargs) -> int:
    return product_flops(x_shape[0] * x_shape[1], x_shape[2], 3 * num_heads * head_dim)


@register_flop_formula(torch.ops.growtas.qkv_backward)
def _backward_flops(dqkv_shape, x_shape, *_args, out_shape=None, **_kwargs) -> int:
    columns = dqkv_shape[0] * dqkv_shape[2] * dqkv_shape[4]
    return 2 * product_flops(x_shape[0] * x_shape[1], x_shape[2], columns)
