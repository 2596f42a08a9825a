"""GEMMs by cuBLAS on strided slices of the 16-bit shadows, and what lies between them in Triton.

Plain GEMMs go to cuBLAS as they lie: activations and shadows by their row strides, weight gradients in fp32
straight into the slice of the full-size gradient. Triton does the rest in as few passes over memory as there
are dependencies: LayerNorm, drop path and cast of a branch's gradient with its column sums (the bias
gradient), GELU's backward pass likewise (``kernels/common/rows.py``).

Shapes: x (B, N, d) or rows (M, d), M = B * N; weights, biases and norms at the full size of the supernet.
Saved: as in ``composed``. Recomputed: the normalised rows, and GELU's result.

The hidden layer's rows begin at multiples of 16 bytes, also where it is 756 wide: cuBLAS is slow otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.kernels.common.rows import gelu_backward, scaled_rows
from growtas.kernels.layer_norm import layer_norm_backward, layer_norm_forward, normalised
from growtas.ops import reference
from growtas.ops.reference import (
    full_size,
    gradient_layout,
    linear_backward_input,
    linear_forward,
    linear_gelu_forward,
    linear_residual_forward,
    qkv_backward_input,
    qkv_backward_weight,
    qkv_forward,
)
from growtas.ops.reference.products import product_into
from growtas.shadow import read

__all__ = [
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "linear_gelu_backward_input",
    "linear_gelu_forward",
    "linear_residual_forward",
    "mlp_backward",
    "mlp_forward",
    "mlp_keeps_hidden",
    "norm_qkv_backward",
    "norm_qkv_forward",
    "qkv_backward_input",
    "qkv_backward_weight",
    "qkv_forward",
]

ALIGN = 8  # elements of 16 bits in 16 bytes


def _aligned(rows: int, columns: int, like: Tensor) -> Tensor:
    """An empty (rows, columns) matrix whose rows begin at multiples of 16 bytes."""
    return like.new_empty(rows, -(-columns // ALIGN) * ALIGN)[:, :columns]


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The full-size gradient of a shared weight, ``dy.T @ x`` in its slice."""
    dweight, weight_slice = full_size(weight, dy.shape[1], x.shape[1])
    product_into(dy.t(), x, weight_slice)
    return dweight


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    tokens: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All gradients of ``scale * linear(x)``, from one pass over dy: of x, of weight and of bias."""
    dz, dbias = scaled_rows(dy, scale, tokens, x.dtype, bias)
    return linear_backward_input(dz, weight, x.shape[1]), _weight_gradient(dz, x, weight), dbias


def linear_backward_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    tokens: int = 1,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``reference.linear_backward_weight``; cast, scale and bias gradient are one pass over dy."""
    if into is not None or not dy.is_cuda:
        return reference.linear_backward_weight(dy, x, weight, bias, scale, tokens, into)
    dy, dbias = scaled_rows(dy, scale, tokens, x.dtype, bias)
    return _weight_gradient(dy, x, weight), dbias


def linear_gelu_backward_input(
    dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """As ``reference.linear_gelu_backward_input``, GELU in one pass."""
    da = linear_backward_input(dy, weight, h.shape[1], scale, tokens, h.dtype)
    dh, a, _ = gelu_backward(da, h, None)
    return dh, a


def norm_qkv_forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    head_dim: int,
    bias_layout: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (3, B, h, N, e) of the normalised tokens, and mean and rstd (M,)."""
    y, mean, rstd = layer_norm_forward(x.view(-1, x.shape[-1]), norm_weight, norm_bias, eps, dtype)
    return qkv_forward(y.view(x.shape), weight, bias, num_heads, head_dim, bias_layout), mean, rstd


def norm_qkv_backward(
    dqkv: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bias_layout: str,
    dresidual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """dx, with dresidual added, and the full-size gradients of the norm, the weight and the bias."""
    d = x.shape[-1]
    rows = x.view(-1, d)
    dqkv = gradient_layout(dqkv, weight)
    y = normalised(rows, mean, rstd, norm_weight, norm_bias, dqkv.dtype)
    dweight, dbias = qkv_backward_weight(dqkv, y.view(x.shape), weight, bias, bias_layout)
    dy = qkv_backward_input(dqkv, weight, d)
    dx, dnorm_weight, dnorm_bias = layer_norm_backward(
        dy.view(-1, d),
        rows,
        norm_weight,
        norm_bias,
        mean,
        rstd,
        None if dresidual is None else dresidual.view(-1, d),
    )
    return dx.view(x.shape), dnorm_weight, dnorm_bias, dweight, dbias


def mlp_keeps_hidden(width: int, dtype: torch.dtype) -> bool:
    """Whether :func:`mlp_forward` returns the hidden layer."""
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
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    hidden_dim: int,
    scale: Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + scale * fc2(gelu(fc1(LayerNorm(x)))) for rows x (M, d), mean and rstd (M,), the hidden layer."""
    y, mean, rstd = layer_norm_forward(x, norm_weight, norm_bias, eps, dtype)
    h = _hidden(y, w1, b1, hidden_dim)
    a = torch.ops.aten.gelu.out(h, out=_aligned(*h.shape, h))
    return linear_residual_forward(a, w2, b2, x, scale, tokens), mean, rstd, h


def mlp_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    hidden_dim: int,
    scale: Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """dx and the full-size gradients of the norm, of fc1 and of fc2."""
    y = normalised(x, mean, rstd, norm_weight, norm_bias, dtype)
    if not hidden.numel():
        hidden = _hidden(y, w1, b1, hidden_dim)
    dz, db2 = scaled_rows(dy, scale, tokens, dtype, b2)
    matrix = read(w2, dtype)[: x.shape[1], :hidden_dim].to(dtype)
    da = torch.mm(dz, matrix, out=_aligned(*hidden.shape, hidden))
    dh, a, db1 = gelu_backward(da, hidden, b1)
    dw2 = _weight_gradient(dz, a, w2)
    dw1 = _weight_gradient(dh, y, w1)
    dnormalised = linear_backward_input(dh, w1, x.shape[1])
    dx, dnorm_weight, dnorm_bias = layer_norm_backward(dnormalised, x, norm_weight, norm_bias, mean, rstd, dy)
    return dx, dnorm_weight, dnorm_bias, dw1, db1, dw2, db2
