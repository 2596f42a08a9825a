"""The end of a net: LayerNorm of the residual stream and the mean of an image's tokens, as one operation.

In Triton the normalised stream is never written, nor its gradient. It runs where ``layer_norm`` runs, which
is raced for both.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from growtas.errors import UsageError
from growtas.ops import checks
from growtas.ops.dispatch import Lazy, Operation
from growtas.ops.layer_norm import check_norm, layer_norm
from growtas.ops.pooled_norm import unfused
from growtas.ops.registry import classic, eager, refuse_second_derivative


class Backend(Protocol):
    """The steps of one language. Shapes: x (B, N, d), parameters (D,), mean and rstd (B * N,)."""

    def pooled_norm_forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        first: int,
        last: int,
        eps: float,
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mean of the normalised tokens first .. last - 1, (B, d), and what the backward pass needs."""

    def pooled_norm_backward(
        self,
        dpooled: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        rstd: Tensor,
        first: int,
        last: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x (B, N, d), and of weight and bias at full size."""


BACKENDS: dict[str, Backend | Lazy] = {"torch": unfused, "triton": Lazy("growtas.kernels.pooled_norm")}

POOLED_NORM: Operation[Backend] = Operation("pooled_norm", BACKENDS, follows="layer_norm")


def pooled_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    tokens: tuple[int, int],
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``layer_norm(x, weight, bias)[:, first:last].mean(1)``.

    Args:
        x: (B, N, d) activations.
        weight: (D,) shared scale, d <= D.
        bias: (D,) shared shift.
        tokens: first and last + 1 of those that are pooled.
        eps: added to the variance.
        out_dtype: of the result; x's where None.

    Returns:
        (B, d). Gradients of weight and bias have D entries, zero from d on.

    Raises:
        UsageError: x is wider than the shared weight or does not have the tokens, or an argument has another
            shape, dtype or device.
    """
    x = checks.activation("pooled_norm", x, 3, "(B, N, d)")
    checks.check_dtype("pooled_norm", "out_dtype", out_dtype or x.dtype, x)
    weight, bias = check_norm("pooled_norm", x, weight, bias)
    first, last = tokens
    if not 0 <= first < last <= x.shape[1]:
        raise UsageError(f"pooled_norm got tokens={tokens} of {x.shape[1]}, and pools one or more of them.")
    if eager():
        return PooledNorm.apply(x, weight, bias, first, last, eps, out_dtype or x.dtype)[0]
    return layer_norm(x, weight, bias, eps, out_dtype)[:, first:last].mean(1)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, first: int, last: int, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    run = POOLED_NORM(x, len(weight)).pooled_norm_forward
    return run(x, weight, bias, first, last, eps, out_dtype)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Saved: x, mean and rstd, which the same backend reads again. The normalised rows are recomputed."""
    x, weight, bias, *ctx.tokens, _, _ = inputs
    ctx.backend = POOLED_NORM(x, len(weight))
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


class PooledNorm(torch.autograd.Function):
    """See the head of the file."""

    forward = classic(_forward, _keep)

    @staticmethod
    def backward(ctx: Any, dpooled: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dpooled is None:  # nothing downstream used the result
            return (None,) * 7
        refuse_second_derivative("pooled_norm")
        run = ctx.backend.pooled_norm_backward
        found = run(checks.values(dpooled), *ctx.saved_tensors, *ctx.tokens)
        gradients = [g if needed else None for g, needed in zip(found, ctx.needs_input_grad, strict=False)]
        return (*gradients, None, None, None, None)
