"""The MLP branch by cuBLAS on the 16-bit shadows, and LayerNorm and GELU's backward pass in Triton.

Cast, drop path and bias gradients are one pass over the rows (growtas.kernels.common.rows). Saved: as in
unfused. Recomputed: the normalised rows, and GELU's result.

The hidden layer's rows begin at multiples of 16 bytes, also where it is 756 wide: cuBLAS is slow otherwise.

Shapes: x (B, N, d), M = B * N rows; weights, biases and norms at the full size of the supernet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.kernels.common.rows import gelu_backward, scaled_rows
from growtas.kernels.layer_norm import layer_norm_backward, layer_norm_forward, normalised
from growtas.ops.linear.cublas import linear_backward_input, linear_residual_forward, weight_gradient
from growtas.ops.mlp.weights import MLPWeights
from growtas.shadow import read

ALIGN = 8  # elements of 16 bits in 16 bytes


def _aligned(rows: int, columns: int, like: Tensor) -> Tensor:
    """An empty (rows, columns) matrix whose rows begin at multiples of 16 bytes."""
    return like.new_empty(rows, -(-columns // ALIGN) * ALIGN)[:, :columns]


def mlp_keeps_hidden(width: int, dtype: torch.dtype) -> bool:
    """Return whether :func:`mlp_forward` returns the hidden layer."""
    return True


def _hidden(y: Tensor, w1: Tensor, b1: Tensor | None, hidden_dim: int) -> Tensor:
    """fc1's result (M, m), in rows that begin at multiples of 16 bytes.

    Where the shared weight has rows enough, the columns that fill up a row are computed too, and never read:
    cuBLAS adds a bias in its epilogue only to a contiguous result.
    """
    padded = -(-hidden_dim // ALIGN) * ALIGN
    computed = min(padded, len(w1))
    h = y.new_empty(len(y), padded)
    out = h if computed == padded else h[:, :computed]
    matrix = read(w1, y.dtype)[:computed, : y.shape[1]].to(y.dtype).t()
    if b1 is None:
        torch.mm(y, matrix, out=out)
    else:
        torch.addmm(read(b1, y.dtype)[:computed].to(y.dtype), y, matrix, out=out)
    return h[:, :hidden_dim]


def mlp_forward(
    x: Tensor, weights: MLPWeights, hidden_dim: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + scale * fc2(gelu(fc1(LayerNorm(x)))), mean and rstd (M,), and the hidden layer (M, m)."""
    norm_weight, norm_bias, w1, b1, w2, b2, scale = weights
    rows = x.view(-1, x.shape[2])
    y, mean, rstd = layer_norm_forward(rows, norm_weight, norm_bias, eps, dtype)
    h = _hidden(y, w1, b1, hidden_dim)
    a = torch.ops.aten.gelu.out(h, out=_aligned(*h.shape, h))
    return linear_residual_forward(a, w2, b2, rows, scale, x.shape[1]).view(x.shape), mean, rstd, h


def mlp_backward(
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
    norm_weight, norm_bias, w1, b1, w2, b2, scale = weights
    _, tokens, d = x.shape
    rows, dy = x.view(-1, d), dy.view(-1, d)
    y = normalised(rows, mean, rstd, norm_weight, norm_bias, dtype)
    if not hidden.numel():
        hidden = _hidden(y, w1, b1, hidden_dim)
    dz, db2 = scaled_rows(dy, scale, tokens, dtype, b2)
    da = torch.mm(dz, read(w2, dtype)[:d, :hidden_dim].to(dtype), out=_aligned(*hidden.shape, hidden))
    dh, a, db1 = gelu_backward(da, hidden, b1)
    dw2, dw1 = weight_gradient(dz, a, w2), weight_gradient(dh, y, w1)
    dnormalised = linear_backward_input(dh, w1, d)
    dx, dnorm_weight, dnorm_bias = layer_norm_backward(
        dnormalised, rows, norm_weight, norm_bias, mean, rstd, dy
    )
    return dx.view(x.shape), dnorm_weight, dnorm_bias, dw1, db1, dw2, db2
