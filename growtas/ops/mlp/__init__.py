"""The MLP branch of a block: x + scale * fc2(gelu(fc1(LayerNorm(x)))), as one operation.

Saved: x, mean and rstd, and the hidden layer before GELU where the chosen kernels do not recompute it (the
fused kernels do). Recomputed: the normalised tokens and the hidden layer after GELU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from growtas.ops import checks
from growtas.ops.dispatch import Lazy, Operation
from growtas.ops.layer_norm import check_norm
from growtas.ops.mlp import cuda, one_call, unfused
from growtas.ops.mlp.weights import MLPWeights
from growtas.ops.registry import matmul_flops, register


class Backend(Protocol):
    """The steps of one implementation. Shapes: x (B, N, d), M = B * N rows, hidden layer (M, m)."""

    def mlp_keeps_hidden(self, width: int, dtype: torch.dtype) -> bool:
        """Return whether :meth:`mlp_forward` returns the hidden layer and not an empty tensor."""

    def mlp_forward(
        self, x: Tensor, weights: MLPWeights, hidden_dim: int, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The branch added to x, mean and rstd (M,), and the hidden layer."""

    def mlp_backward(
        self,
        dy: Tensor,
        x: Tensor,
        weights: MLPWeights,
        mean: Tensor,
        rstd: Tensor,
        hidden: Tensor,
        hidden_dim: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
        """dx and the full-size gradients of the norm, of fc1 and of fc2."""


BACKENDS: dict[str, Backend | Lazy] = {
    "torch": unfused,
    "cublas": Lazy("growtas.ops.mlp.cublas"),
    "triton": Lazy("growtas.ops.mlp.triton"),
    "cuda": cuda,
}

MLP: Operation[Backend] = Operation("mlp", BACKENDS)


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
        x: (B, N, d) residual stream.
        norm: shared scale and shift (D,) of the LayerNorm before it, d <= D.
        fc1: shared weight (M, D) and bias (M,).
        fc2: shared weight (D, M) and bias (D,).
        hidden_dim: m <= M.
        scale: (B,) factor of each image's branch (drop path), or None for 1.
        eps: of the LayerNorm.
        dtype: of the GEMMs; x's where None.

    Returns:
        (B, N, d) in x's dtype. Gradients of parameters have the shared size, zero outside the slice.

    Raises:
        UsageError: a slice is larger than its shared weight, or an argument has another shape, dtype
            or device.

    Source: AutoFormer (Chen et al., ICCV 2021), pre-norm block; GELU by erf.
    """
    x = checks.activation("mlp", x, 3, "(B, N, d)").contiguous()
    d = x.shape[-1]
    if hidden_dim.__class__ is not int:
        checks.whole("mlp", "hidden_dim", hidden_dim)
    dtype = dtype or x.dtype
    if dtype is not x.dtype:
        checks.check_dtype("mlp", "dtype", dtype, x)
    norm = check_norm("mlp", x, *norm)
    parameters = []
    for name, (weight, bias), rows, columns in (("fc1", fc1, hidden_dim, d), ("fc2", fc2, d, hidden_dim)):
        weight = checks.matrix("mlp", name, weight, rows, columns, x)
        parameters += [weight, checks.vector("mlp", f"the bias of {name}", bias, weight.shape[0], x)]
    scale = checks.images_scale("mlp", scale, x)
    return _mlp(x, *norm, *parameters, scale, hidden_dim, eps, dtype)


def branch_forward(
    x: Tensor, weights: MLPWeights, hidden_dim: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, and what the backward pass needs: mean, rstd and the hidden layer (or an empty tensor)."""
    if one_call.takes_mlp(x, weights, hidden_dim, dtype):
        return one_call.mlp_forward(x, weights, hidden_dim, eps)
    return MLP(x, len(weights.norm_weight), dtype).mlp_forward(x, weights, hidden_dim, eps, dtype)


def branch_backward(
    dy: Tensor,
    x: Tensor,
    weights: MLPWeights,
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
    hidden_dim: int,
    dtype: torch.dtype,
) -> Sequence[Tensor | None]:
    """Gradients of x and, in order, of the parameters."""
    dy = dy.contiguous()
    if hidden.numel() and dy.dtype is dtype and one_call.takes_mlp(x, weights, hidden_dim, dtype):
        return one_call.mlp_backward(dy, x, weights, mean, rstd, hidden)
    run = MLP(x, len(weights.norm_weight), dtype).mlp_backward
    return run(dy, x, weights, mean, rstd, hidden, hidden_dim, dtype)


def _shapes(x: Tensor, weights: MLPWeights, hidden_dim: int, eps: float, dtype: torch.dtype):
    rows = x.shape[0] * x.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty(rows, dtype=wide) for _ in range(2))
    keeps = MLP(x, len(weights.norm_weight), dtype).mlp_keeps_hidden(x.shape[-1], dtype)
    hidden = x.new_empty((rows, hidden_dim) if keeps else 0, dtype=dtype)
    return x.new_empty(x.shape), mean, rstd, hidden


_mlp = register(
    "mlp",
    branch_forward,
    branch_backward,
    outputs=("y", "mean", "rstd", "hidden"),
    gradients=("x", *MLPWeights._fields[:-1]),
    shapes=_shapes,
    flops=lambda x, hidden_dim: 2 * matmul_flops(x[0] * x[1], x[2], hidden_dim),
    # Two GEMMs each for the gradients of the inputs and of the weights; recomputation is not counted.
    backward_flops=lambda x, hidden_dim: 4 * matmul_flops(x[0] * x[1], x[2], hidden_dim),
)
