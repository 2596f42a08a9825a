"""Partial LayerNorm: the first d channels, with the first d entries of shared scale and shift."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from growtas.errors import UsageError
from growtas.ops import backend
from growtas.ops.registration import call, classic, custom_op


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, out_dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm over the last axis with a prefix of the shared weight and bias.

    Args:
        x: (..., d) activations.
        weight: (D,) shared scale, d <= D.
        bias: (D,) shared shift.
        eps: added to the variance.
        out_dtype: of the result; x's where None. Statistics are kept in fp32 whatever the dtypes.

    Returns:
        (..., d). Gradients of weight and bias have D entries, zero from d on.

    Raises:
        UsageError: x is wider than the shared weight.

    Source: AutoFormer (Chen et al., ICCV 2021), entangled LayerNorm.
    """
    if x.shape[-1] > weight.shape[0]:
        raise UsageError(
            f"layer_norm got {x.shape[-1]} channels, but the shared weight has {weight.shape[0]}; "
            "sample a narrower subnet or build a wider supernet."
        )
    return call(LayerNorm.apply, torch.ops.growtas.layer_norm, x, weight, bias, eps, out_dtype)[0]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    launch = backend.kernel("layer_norm", "layer_norm_forward", x, len(weight))
    y, mean, rstd = launch(x.reshape(-1, x.shape[-1]), weight, bias, eps, out_dtype or x.dtype)
    return y.view(x.shape), mean, rstd


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    width = x.shape[-1]
    launch = backend.kernel("layer_norm", "layer_norm_backward", x, len(weight))
    dx, dweight, dbias = launch(
        dy.reshape(-1, width).contiguous(), x.reshape(-1, width), weight, bias, mean, rstd
    )
    return dx.view(x.shape), dweight, dbias


def _keep(ctx, inputs, output) -> None:
    """Save the tensors and sizes of the backward pass."""
    x, weight, bias, _, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


class LayerNorm(torch.autograd.Function):
    """Saved: x, mean and rstd (fp32, one each per row). The normalised rows are recomputed."""

    forward = classic(_forward, _keep)

    @staticmethod
    def backward(ctx, dy, _dmean, _drstd):
        if dy is None:  # nothing downstream used the result
            return (None,) * 5
        x, weight, bias, mean, rstd = ctx.saved_tensors
        return (
            *call(_backward, torch.ops.growtas.layer_norm_backward, dy, x, weight, bias, mean, rstd),
            None,
            None,
        )


_layer_norm_op = custom_op("growtas::layer_norm", _forward)


@_layer_norm_op.register_fake
def _(x, weight, bias, eps, out_dtype):
    rows = x.numel() // x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.new_empty(x.shape, dtype=out_dtype or x.dtype)
    return y, x.new_empty(rows, dtype=wide), x.new_empty(rows, dtype=wide)


_layer_norm_backward_op = custom_op("growtas::layer_norm_backward", _backward)


@_layer_norm_backward_op.register_fake
def _(dy, x, weight, bias, mean, rstd):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


_layer_norm_op.register_autograd(LayerNorm.backward, setup_context=_keep)


@register_flop_formula(torch.ops.growtas.layer_norm)
def _flops(x_shape, *_args, out_shape=None, **_kwargs) -> int:
    return 0  # torch's counter counts matrix products only; without a formula it would look inside


@register_flop_formula(torch.ops.growtas.layer_norm_backward)
def _backward_flops(*_args, out_shape=None, **_kwargs) -> int:
    return 0
