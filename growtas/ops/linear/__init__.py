"""Sliced linear: a GEMM with the upper left corner of a shared weight, and the epilogues of branches."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from growtas.ops import checks
from growtas.ops.dispatch import Lazy, Operation
from growtas.ops.linear import cpu, cuda, one_call, reference
from growtas.ops.registry import matmul_flops, register


class Backend(Protocol):
    """The steps of one language. Shapes: x (M, k), dy (M, n), weight (N_max, K_max), bias (N_max,).

    ``scale`` (images,) multiplies the rows of each image, ``tokens`` rows; None stands for 1.
    """

    def linear_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
        """``x @ weight[:n, :k].T + bias[:n]``."""

    def linear_gelu_forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int
    ) -> tuple[Tensor, Tensor]:
        """``gelu(h)`` and ``h``, the sliced linear layer of x."""

    def linear_residual_forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor,
        scale: Tensor | None,
        tokens: int,
    ) -> Tensor:
        """``residual + scale * linear(x)``, in residual's dtype."""

    def linear_backward_input(
        self,
        dy: Tensor,
        weight: Tensor,
        in_features: int,
        scale: Tensor | None = None,
        tokens: int = 1,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """``(scale * dy) @ weight[:n, :k]`` in ``dtype``, dy's where None."""

    def linear_gelu_backward_input(
        self, dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The gradient of ``h`` through ``scale * linear(gelu(h))``, and ``gelu(h)`` again."""

    def linear_backward_weight(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None = None,
        tokens: int = 1,
        into: tuple[Tensor, Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``(scale * dy).T @ x`` and the sum of ``scale * dy`` at full size; added to ``into`` if given."""

    def linear_backward(
        self, dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, tokens: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All gradients of ``scale * linear(x)``: of x in its dtype, of weight and bias at full size."""


BACKENDS: dict[str, Backend | Lazy] = {
    "torch": reference,
    "cpu": cpu,
    "cublas": Lazy("growtas.ops.linear.cublas"),
    "triton": Lazy("growtas.ops.linear.triton"),
    "cuda": cuda,
}

LINEAR: Operation[Backend] = Operation("linear", BACKENDS)
LINEAR_GELU: Operation[Backend] = Operation("linear_gelu", BACKENDS)
"""fc1 with GELU is measured and chosen for itself."""


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
        UsageError: the slice is larger than the shared weight, or an argument has another shape, dtype or
            device.

    Source: AutoFormer (Chen et al., ICCV 2021), weight entanglement.
    """
    x = checks.activation("linear", x, 0, "(..., k)")
    if out_features.__class__ is not int:
        checks.whole("linear", "out_features", out_features)
    weight = checks.matrix("linear", "weight", weight, out_features, x.shape[-1], x)
    return _linear(x, weight, checks.vector("linear", "bias", bias, weight.shape[0], x), out_features)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """Saved: x. Nothing is recomputed."""
    if one_call.takes_linear(x, weight, bias, out_features):
        return one_call.linear_forward(x, weight, bias, out_features)
    run = LINEAR(x, weight.shape[1]).linear_forward
    return run(x.reshape(-1, x.shape[-1]), weight, bias, out_features).view(*x.shape[:-1], out_features)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, needs_x: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """dx where it is needed, full-size dweight and dbias."""
    if one_call.takes_linear(x, weight, bias, dy.shape[-1]) and dy.dtype is x.dtype:
        return one_call.linear_backward(dy, x, weight, bias, needs_x)
    backend = LINEAR(x, weight.shape[1])
    rows, dy_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = backend.linear_backward_input(dy_rows, weight, x.shape[-1]).view(x.shape) if needs_x else None
    return dx, *backend.linear_backward_weight(dy_rows, rows, weight, bias)


def _rows(x) -> int:
    """M of a shape (..., k)."""
    return torch.Size(x[:-1]).numel()


_linear = register(
    "linear",
    _forward,
    _backward,
    outputs=("y",),
    gradients=("x", "weight", "bias"),
    shapes=lambda x, weight, bias, out_features: x.new_empty(*x.shape[:-1], out_features),
    flops=lambda x, out_features: matmul_flops(_rows(x), x[-1], out_features),
    backward_flops=lambda gradient, x, needs_x: (
        matmul_flops(_rows(x), x[-1], gradient[-1]) * (2 if needs_x else 1)
    ),
)
