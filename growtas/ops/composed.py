"""Fused operations where no fused kernel was chosen: compositions of operations that are chosen themselves.

Each function has the signature of the fused kernel it stands for. Saved: what the fused kernel saves, and
for the MLP the hidden layer before GELU. The normalised rows are recomputed from their mean and rstd.

Shapes: x (B, N, d) or rows (M, d), M = B * N; weights, biases and norms at the full size of the supernet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops import backend, reference


def _normalised_rows(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, dtype: torch.dtype
) -> Tensor:
    """The rows (M, d) that LayerNorm gave in the forward pass, once more."""
    if backend.choose("layer_norm", x.device, x.dtype, len(weight)) == "cpu":
        from growtas.ops.native import cpu_layer_norm_again

        return cpu_layer_norm_again(x, weight, bias, mean, rstd, dtype)
    return reference.layer_norm_again(x, weight, bias, mean, rstd, dtype)


def qkv_gradient(dqkv: Tensor, weight: Tensor) -> Tensor:
    """dqkv (3, B, h, N, e) in the layout in memory that both gradients of the chosen backend read."""
    chosen = backend.choose("qkv", dqkv.device, dqkv.dtype, weight.shape[1])
    if chosen in ("torch", "cublas", "cpu"):
        return reference.gradient_layout(dqkv, weight)
    return dqkv.contiguous()


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
    normalise = backend.kernel("layer_norm", "layer_norm_forward", x, len(norm_weight))
    y, mean, rstd = normalise(x.view(-1, x.shape[-1]), norm_weight, norm_bias, eps, dtype)
    project = backend.kernel("qkv", "qkv_forward", y, weight.shape[1])
    return project(y.view(x.shape), weight, bias, num_heads, head_dim, bias_layout), mean, rstd


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
    dqkv = qkv_gradient(dqkv, weight)
    y = _normalised_rows(rows, norm_weight, norm_bias, mean, rstd, dqkv.dtype).view(x.shape)
    dweight, dbias = backend.kernel("qkv", "qkv_backward_weight", y, weight.shape[1])(
        dqkv, y, weight, bias, bias_layout
    )
    dy = backend.kernel("qkv", "qkv_backward_input", y, weight.shape[1])(dqkv, weight, d)
    dx, dnorm_weight, dnorm_bias = backend.kernel("layer_norm", "layer_norm_backward", x, len(norm_weight))(
        dy.view(-1, d),
        rows,
        norm_weight,
        norm_bias,
        mean,
        rstd,
        None if dresidual is None else dresidual.view(-1, d),
    )
    return dx.view(x.shape), dnorm_weight, dnorm_bias, dweight, dbias


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    tokens: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of ``scale * linear(x)``: of x (M, k) in its dtype, of weight and bias at full size.

    Where the chosen backend wants dy scaled and in x's dtype, both gradients take the same rows.
    """
    width, chosen = weight.shape[1], backend.choose("linear", x.device, x.dtype, weight.shape[1])
    if chosen == "cublas":
        from growtas.ops import cublas

        return cublas.linear_backward(dy, x, weight, bias, scale, tokens)
    if chosen == "torch":
        dy, scale = reference.scaled_rows(dy, scale, tokens, x.dtype), None
    elif chosen == "triton":
        from growtas.kernels.common.rows import in_dtype

        dy, scale = in_dtype(dy, scale, tokens, x.dtype)
    dweight, dbias = backend.kernel("linear", "linear_backward_weight", x, width)(
        dy, x, weight, bias, scale, tokens
    )
    backward_input = backend.kernel("linear", "linear_backward_input", x, width)
    return backward_input(dy, weight, x.shape[1], scale, tokens, x.dtype), dweight, dbias


def mlp_keeps_hidden(width: int, dtype: torch.dtype) -> bool:
    """Whether :func:`mlp_forward` returns the hidden layer; a fused kernel returns an empty tensor."""
    return True


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
    y, mean, rstd = backend.kernel("layer_norm", "layer_norm_forward", x, len(norm_weight))(
        x, norm_weight, norm_bias, eps, dtype
    )
    a, hidden = backend.kernel("linear_gelu", "linear_gelu_forward", y, w1.shape[1])(y, w1, b1, hidden_dim)
    add = backend.kernel("linear", "linear_residual_forward", a, w2.shape[1])
    return add(a, w2, b2, x, scale, tokens), mean, rstd, hidden


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
    y = _normalised_rows(x, norm_weight, norm_bias, mean, rstd, dtype)
    if not hidden.numel():  # the forward pass ran on a kernel that recomputes it
        hidden = backend.kernel("linear", "linear_forward", y, w1.shape[1])(y, w1, b1, hidden_dim)
    dh, a = backend.kernel("linear_gelu", "linear_gelu_backward_input", hidden, w1.shape[1])(
        dy, w2, hidden, scale, tokens
    )
    dw2, db2 = backend.kernel("linear", "linear_backward_weight", a, w2.shape[1])(
        dy, a, w2, b2, scale, tokens
    )
    dw1, db1 = backend.kernel("linear", "linear_backward_weight", y, w1.shape[1])(dh, y, w1, b1)
    dnormalised = backend.kernel("linear", "linear_backward_input", dh, w1.shape[1])(dh, w1, x.shape[1])
    dx, dnorm_weight, dnorm_bias = backend.kernel("layer_norm", "layer_norm_backward", x, len(norm_weight))(
        dnormalised, x, norm_weight, norm_bias, mean, rstd, dy
    )
    return dx, dnorm_weight, dnorm_bias, dw1, db1, dw2, db2
