"""Sliced linear in CUDA C++ (csrc/cuda).

Shapes: M rows of activations, any row stride; k and n of a slice, N_max and K_max of the shared weight.
Weights are read in place, fp32 or in the dtype of the GEMM; sums are fp32. A weight gradient is split-K over
the rows of the batch and added up in a fixed order, in one launch. Results are contiguous.

All raise GrowtasError where the module was not built, the GPU is too old or the launch failed, and UsageError
where a weight cannot be read in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.addresses import Epilogue, matrix, pointer, vector
from growtas.ops.cuda_gemm import activation, check_weight, gradients, launch, plan_activation, plan_gradient


def _narrow(dy: Tensor, weight: Tensor, gemm: torch.dtype) -> Tensor:
    """dy as the kernels take it: in the GEMM's dtype, or fp32 beside an fp32 weight."""
    if dy.dtype is gemm or (dy.dtype is torch.float32 and weight.dtype is torch.float32):
        return dy
    return dy.to(gemm)


def _forward(
    epilogue: Epilogue,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    other: Tensor | None = None,
    scale: Tensor | None = None,
    tokens: int = 1,
) -> None:
    check_weight(weight, x.dtype)
    (m, k), n = x.shape, out.shape[1]
    launch(
        "linear_forward", x, plan_activation(m, n, 1, x.dtype is torch.float32), 0, 0,
        (int(epilogue), matrix(x), matrix(weight), vector(bias), matrix(out), matrix(other), pointer(scale),
         (m, n, k, max(tokens, 1))),
    )  # fmt: skip


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``x (M, k) @ weight[:n, :k].T + bias[:n]``, in x's dtype."""
    x = activation(x)
    y = x.new_empty((len(x), out_features))
    _forward(Epilogue.PLAIN, x, weight, bias, y)
    return y


def linear_gelu_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int
) -> tuple[Tensor, Tensor]:
    """``gelu(h)`` and ``h``, the sliced linear layer of x; the exact GELU, of the fp32 sum."""
    x = activation(x)
    a, h = x.new_empty((len(x), out_features)), x.new_empty((len(x), out_features))
    _forward(Epilogue.GELU, x, weight, bias, a, h)
    return a, h


def linear_residual_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None, tokens: int
) -> Tensor:
    """``residual + scale * linear(x)``, in residual's dtype; row r has the scale of image r // tokens."""
    x, residual = activation(x), activation(residual)
    y = residual.new_empty(residual.shape)
    _forward(Epilogue.RESIDUAL, x, weight, bias, y, residual, scale, tokens)
    return y


def linear_backward_input(
    dy: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    tokens: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``(scale * dy) (M, n) @ weight[:n, :k]`` in ``dtype``, dy's where None; the fp32 sum is scaled."""
    gemm = dtype or dy.dtype
    check_weight(weight, gemm)
    dy = _narrow(activation(dy), weight, gemm)
    (m, n), k = dy.shape, in_features
    dx = dy.new_empty((m, k), dtype=gemm)
    launch(
        "linear_backward_input", dx, plan_activation(m, k, 1, gemm is torch.float32), 0, 0,
        (matrix(dy), matrix(weight), matrix(dx), pointer(scale), (m, n, k, max(tokens, 1))),
    )  # fmt: skip
    return dx


def linear_gelu_backward_input(
    dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradient of ``h`` through ``scale * linear(gelu(h))``, and ``gelu(h)`` again, in one pass."""
    h = activation(h)
    check_weight(weight, h.dtype)
    dy = _narrow(activation(dy), weight, h.dtype)
    (m, n), k = dy.shape, h.shape[1]
    dh, a = h.new_empty((m, k)), h.new_empty((m, k))
    launch(
        "linear_gelu_backward_input", h, plan_activation(m, k, 1, h.dtype is torch.float32), 0, 0,
        (matrix(dy), matrix(weight), matrix(h), matrix(dh), matrix(a), pointer(scale),
         (m, n, k, max(tokens, 1))),
    )  # fmt: skip
    return dh, a


def linear_backward_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    tokens: int = 1,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of weight, ``(scale * dy).T @ x`` in its slice, and of bias, the sum of scale * dy.

    Args:
        dy: (M, n); of x's dtype, or float32 and then converted, scaled, on load.
        x: (M, k); the GEMM is in its dtype.
        weight, bias: only their shapes, dtypes and device are used.
        scale, tokens: as :func:`linear_residual_forward`.
        into: gradients of both to add to inside the slice, in place, instead of new ones.
    """
    dy, x = activation(dy), activation(x)
    (m, n), k = dy.shape, x.shape[1]
    if dy.dtype not in (x.dtype, torch.float32):
        dy = dy.to(x.dtype)
    dweight, dbias = gradients(weight, bias, into)
    plan = plan_gradient(n, k, m, 1, x.dtype is torch.float32)
    row_tiles = -(-n // plan.tile)
    launch(
        "linear_backward_weight", x, plan, row_tiles * -(-k // plan.tile), row_tiles,
        (matrix(dy), matrix(x), matrix(dweight), vector(dbias), *weight.shape, into is not None,
         pointer(scale), (m, n, k, max(tokens, 1))),
    )  # fmt: skip
    return dweight, dbias


def linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All gradients of ``scale * linear(x)``: of x in its dtype, of weight and bias at full size."""
    dweight, dbias = linear_backward_weight(dy, x, weight, bias, scale, tokens)
    return linear_backward_input(dy, weight, x.shape[1], scale, tokens, x.dtype), dweight, dbias
