"""The MLP branch of a block: x + scale * fc2(gelu(fc1(LayerNorm(x)))), as one operation.

Saved: x, mean and rstd, and the hidden layer before GELU where the chosen kernels do not recompute it (the
fused kernels do). Recomputed: the normalised tokens and the hidden layer after GELU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from growtas.errors import UsageError
from growtas.ops import backend, native_branch
from growtas.ops.registration import call, classic, custom_op, product_flops


def mlp(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    fc1: tuple[Tensor, Tensor | None],
    fc2: tuple[Tensor, Tensor | None],
    hidden_dim: int,
    *,
    scale: Tensor | None = None,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Add the MLP to the residual stream.

    Args:
        x: (B, N, d) residual stream, contiguous.
        norm: shared scale and shift (D,) of the LayerNorm before it, d <= D.
        fc1: shared weight (M, D) and bias (M,).
        fc2: shared weight (D, M) and bias (D,).
        hidden_dim: m <= M.
        scale: (B,) factor of each image's branch (drop path), or None for 1.
        eps: of the LayerNorm.
        dtype: in which products are made; x's where None.

    Returns:
        (B, N, d) in x's dtype. Gradients of parameters have the shared size, zero outside the slice.

    Raises:
        UsageError: a slice is larger than its shared weight.

    Source: AutoFormer (Chen et al., ICCV 2021), pre-norm block; GELU by erf.
    """
    d = x.shape[-1]
    for name, (weight, _), needed in (("fc1", fc1, (hidden_dim, d)), ("fc2", fc2, (d, hidden_dim))):
        if needed[0] > weight.shape[0] or needed[1] > weight.shape[1]:
            raise UsageError(
                f"mlp needs a {needed} slice of {name}, but the shared weight is {tuple(weight.shape)}; "
                "sample a smaller subnet or build a larger supernet."
            )
    return call(
        MLPBranch.apply,
        torch.ops.growtas.mlp,
        x.contiguous(),
        *norm,
        *fc1,
        *fc2,
        scale,
        hidden_dim,
        eps,
        dtype or x.dtype,
    )[0]


def _forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    hidden_dim: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, and what the backward pass needs: mean, rstd and the hidden layer (or an empty tensor)."""
    weights = (norm_weight, norm_bias, w1, b1, w2, b2, scale)
    if native_branch.takes_mlp(x, weights, hidden_dim, dtype):
        return native_branch.mlp_forward(x, weights, hidden_dim, eps)
    _, tokens, d = x.shape
    y, mean, rstd, hidden = backend.kernel("mlp", "mlp_forward", x, len(norm_weight), dtype)(
        x.view(-1, d), norm_weight, norm_bias, eps, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype
    )
    return y.view(x.shape), mean, rstd, hidden


def _backward(
    dy: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
    hidden_dim: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and, in order, of the parameters; those of missing biases are empty."""
    dy, (tokens, d) = dy.contiguous(), x.shape[1:]
    weights = (norm_weight, norm_bias, w1, b1, w2, b2, scale)
    if hidden.numel() and native_branch.takes_mlp(x, weights, hidden_dim, dtype) and dy.dtype is dtype:
        gradients = native_branch.mlp_backward(dy, x, weights, mean, rstd, hidden)
        return tuple([x.new_empty(0) if g is None else g for g in gradients])
    dx, *gradients = backend.kernel("mlp", "mlp_backward", x, len(norm_weight), dtype)(
        dy.view(-1, d),
        x.view(-1, d),
        mean,
        rstd,
        hidden,
        norm_weight,
        norm_bias,
        w1,
        b1,
        w2,
        b2,
        hidden_dim,
        scale,
        tokens,
        dtype,
    )
    return dx.view(x.shape), *(x.new_empty(0) if g is None else g for g in gradients)


def _keep(ctx, inputs, output) -> None:
    """Save the tensors and sizes of the backward pass."""
    tensors, (ctx.hidden_dim, _, ctx.dtype) = inputs[:8], inputs[8:]
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


class MLPBranch(torch.autograd.Function):
    """See the head of the file for what is saved."""

    forward = classic(_forward, _keep)

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:  # nothing downstream used the result
            return (None,) * 11
        saved = ctx.saved_tensors
        gradients = call(_backward, torch.ops.growtas.mlp_backward, dy, *saved, ctx.hidden_dim, ctx.dtype)
        found = [None if like is None else g for like, g in zip(saved[:7], gradients, strict=True)]
        return *found, *(None,) * 4


_operator = custom_op("growtas::mlp", _forward)


@_operator.register_fake
def _(x, norm_weight, norm_bias, w1, b1, w2, b2, scale, hidden_dim, eps, dtype):
    rows = x.shape[0] * x.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty(rows, dtype=wide) for _ in range(2))
    keeps = backend.kernel("mlp", "mlp_keeps_hidden", x, len(norm_weight), dtype)(x.shape[-1], dtype)
    hidden = x.new_empty((rows, hidden_dim) if keeps else 0, dtype=dtype)
    return x.new_empty(x.shape), mean, rstd, hidden


_backward_operator = custom_op("growtas::mlp_backward", _backward)


@_backward_operator.register_fake
def _(dy, x, *rest):
    return x.new_empty(x.shape), *(x.new_empty(0) if p is None else p.new_empty(p.shape) for p in rest[:6])


_operator.register_autograd(MLPBranch.backward, setup_context=_keep)


@register_flop_formula(torch.ops.growtas.mlp)
def _flops(x_shape, *arguments, out_shape=None, **_kwargs) -> int:
    return 2 * product_flops(x_shape[0] * x_shape[1], x_shape[2], arguments[7])


@register_flop_formula(torch.ops.growtas.mlp_backward)
def _backward_flops(dy_shape, x_shape, *arguments, out_shape=None, **_kwargs) -> int:
    """Two products each for the gradients of the inputs and of the weights; recomputation is not counted."""
    return 4 * product_flops(x_shape[0] * x_shape[1], x_shape[2], arguments[10])
