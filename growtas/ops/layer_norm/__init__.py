"""Partial LayerNorm: the first d channels, with the first d entries of shared scale and shift."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from growtas.errors import UsageError
from growtas.ops import checks, dispatch
from growtas.ops.dispatch import Lazy, Operation
from growtas.ops.layer_norm import cpu, cuda, reference
from growtas.ops.registry import register


class Backend(Protocol):
    """The steps of one language. Shapes: rows (M, d), parameters (D,), mean and rstd (M,)."""

    def layer_norm_forward(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y, mean and rstd."""

    def layer_norm_backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        rstd: Tensor,
        dresidual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dx, plus dresidual where given, and the gradients of weight and bias at full size."""


BACKENDS: dict[str, Backend | Lazy] = {
    "torch": reference,
    "cpu": cpu,
    "triton": Lazy("growtas.kernels.layer_norm"),
    "cuda": cuda,
}

LAYER_NORM: Operation[Backend] = Operation("layer_norm", BACKENDS)


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
        UsageError: x is wider than the shared weight, or an argument has another shape, dtype or device.

    Source: AutoFormer (Chen et al., ICCV 2021), entangled LayerNorm.
    """
    x = checks.activation("layer_norm", x, 0, "(..., d)")
    checks.check_dtype("layer_norm", "out_dtype", out_dtype or x.dtype, x)
    weight, bias = check_norm("layer_norm", x, weight, bias)
    return _layer_norm(x, weight, bias, eps, out_dtype)


def check_norm(op: str, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of a LayerNorm, dense; refused where x is wider."""
    channels, (full,) = x.shape[-1], checks.shared(op, "weight", weight, 1, x)
    if channels > full:
        raise UsageError(
            f"{op} got {channels} channels, but the shared weight has {full}; sample a narrower subnet or "
            "build a wider supernet."
        )
    return checks.vector(op, "weight", weight, full, x), checks.vector(op, "bias", bias, full, x)


def layer_norm_again(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, dtype: torch.dtype
) -> Tensor:
    """The rows (M, d) that LayerNorm gave in the forward pass, once more from their mean and rstd."""
    again = cpu if dispatch.choose("layer_norm", x.device, x.dtype, len(weight)) == "cpu" else reference
    return again.layer_norm_again(x, weight, bias, mean, rstd, dtype)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Saved: x, mean and rstd (fp32, one each per row). The normalised rows are recomputed."""
    run = LAYER_NORM(x, len(weight)).layer_norm_forward
    y, mean, rstd = run(x.reshape(-1, x.shape[-1]), weight, bias, eps, out_dtype or x.dtype)
    return y.view(x.shape), mean, rstd


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    width = x.shape[-1]
    run = LAYER_NORM(x, len(weight)).layer_norm_backward
    dx, dweight, dbias = run(
        dy.reshape(-1, width).contiguous(), x.reshape(-1, width), weight, bias, mean, rstd
    )
    return dx.view(x.shape), dweight, dbias


def _shapes(x, weight, bias, eps, out_dtype):
    rows = x.numel() // x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.new_empty(x.shape, dtype=out_dtype or x.dtype)
    return y, x.new_empty(rows, dtype=wide), x.new_empty(rows, dtype=wide)


_layer_norm = register(
    "layer_norm",
    _forward,
    _backward,
    outputs=("y", "mean", "rstd"),
    gradients=("x", "weight", "bias"),
    shapes=_shapes,
    flops=lambda: 0,  # torch's counter counts matmuls only
    backward_flops=lambda: 0,
)
