"""Sliced linear: a product with the upper left corner of a shared weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from growtas.errors import UsageError
from growtas.ops import backend, native_branch
from growtas.ops.registration import call, classic, custom_op, product_flops


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``x @ weight[:n, :k].T + bias[:n]`` without copying the slice.

    Args:
        x: (..., k) activations.
        weight: (N_max, K_max) shared weight, k <= K_max; of x's dtype or a wider one, cast on load.
        bias: (N_max,) shared bias, or None.
        out_features: n, at most N_max.

    Returns:
        (..., n). Gradients of weight and bias have the shared size, zero outside the slice.

    Raises:
        UsageError: the slice is larger than the shared weight.

    Source: AutoFormer (Chen et al., ICCV 2021), weight entanglement.
    """
    if out_features > weight.shape[0] or x.shape[-1] > weight.shape[1]:
        raise UsageError(
            f"linear needs a ({out_features}, {x.shape[-1]}) slice, but the shared weight is "
            f"{tuple(weight.shape)}; sample a narrower subnet or build a wider supernet."
        )
    return call(Linear.apply, torch.ops.growtas.linear, x, weight, bias, out_features)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    if native_branch.takes_linear(x, weight, bias, out_features):
        return native_branch.linear_forward(x, weight, bias, out_features)
    run = backend.kernel("linear", "linear_forward", x, weight.shape[1])
    y = run(x.reshape(-1, x.shape[-1]), weight, bias, out_features)
    return y.view(*x.shape[:-1], out_features)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, needs_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (empty where not needed), full-size dweight and dbias (empty where there is no bias)."""
    if native_branch.takes_linear(x, weight, bias, dy.shape[-1]) and dy.dtype is x.dtype:
        gradients = native_branch.linear_backward(dy, x, weight, bias, needs_dx)
        return tuple([x.new_empty(0) if g is None else g for g in gradients])
    rows, dy_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = None
    if needs_dx:
        dx = backend.kernel("linear", "linear_backward_input", x, weight.shape[1])(
            dy_rows, weight, x.shape[-1]
        ).view(x.shape)
    dweight, dbias = backend.kernel("linear", "linear_backward_weight", x, weight.shape[1])(
        dy_rows, rows, weight, bias
    )
    return x.new_empty(0) if dx is None else dx, dweight, x.new_empty(0) if dbias is None else dbias


def _keep(ctx, inputs, output) -> None:
    """Save the tensors and sizes of the backward pass."""
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias)


class Linear(torch.autograd.Function):
    """Saved: x. Nothing is recomputed."""

    forward = classic(_forward, _keep)

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        dx, dweight, dbias = call(
            _backward, torch.ops.growtas.linear_backward, dy, x, weight, bias, ctx.needs_input_grad[0]
        )
        return (
            dx if ctx.needs_input_grad[0] else None,
            dweight,
            None if bias is None else dbias,
            None,
        )


_linear_op = custom_op("growtas::linear", _forward)


@_linear_op.register_fake
def _(x, weight, bias, out_features):
    return x.new_empty(*x.shape[:-1], out_features)


_linear_backward_op = custom_op("growtas::linear_backward", _backward)


@_linear_backward_op.register_fake
def _(dy, x, weight, bias, needs_dx):
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape if needs_dx else 0), weight.new_empty(weight.shape), dbias


_linear_op.register_autograd(Linear.backward, setup_context=_keep)


@register_flop_formula(torch.ops.growtas.linear)
def _flops(x_shape, weight_shape, bias_shape, out_features, *_args, out_shape=None, **_kwargs) -> int:
    return product_flops(torch.Size(x_shape[:-1]).numel(), x_shape[-1], out_features)


@register_flop_formula(torch.ops.growtas.linear_backward)
def _backward_flops(
    dy_shape, x_shape, weight_shape, bias_shape, needs_dx, *_args, out_shape=None, **_kwargs
) -> int:
    product = product_flops(torch.Size(x_shape[:-1]).numel(), x_shape[-1], dy_shape[-1])
    return product * (2 if needs_dx else 1)
