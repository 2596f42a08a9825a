"""Gradients of the MLP branch: the fused form, or six launches for wide rows; see ``mlp.forward``."""

from __future__ import annotations

import torch

from growtas.kernels.common import launch
from growtas.kernels.common.checks import check_same_shape
from growtas.kernels.common.rows import in_dtype
from growtas.kernels.layer_norm.backward import layer_norm_backward
from growtas.kernels.layer_norm.normalise import normalised
from growtas.kernels.linear.backward import (
    linear_backward_input,
    linear_backward_weight,
    linear_gelu_backward_input,
)
from growtas.kernels.linear.forward import linear_forward
from growtas.kernels.mlp.forward import mlp_keeps_hidden
from growtas.kernels.mlp.fused_backward import check_gradients_of, fused_backward
from growtas.kernels.mlp.fused_forward import check_branch


def mlp_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    hidden: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    hidden_dim: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor | None,
    torch.Tensor,
    torch.Tensor | None,
]:
    """Gradients of x, residual included, and of the shared parameters at full size, zero outside the slice.

    Args:
        dy: (M, d), any row stride; copied where the last stride is not 1.
        x: (M, d), likewise: the input of the forward pass.
        mean, rstd, hidden: as the forward pass returned them. An empty hidden layer is computed again.
        norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype: as :func:`mlp_forward`.

    Returns:
        dx (M, d) contiguous in x's dtype, dnorm_weight, dnorm_bias, dw1, db1 or None, dw2, db2 or None.

    Raises:
        UsageError: as :func:`mlp_forward`, or dy, mean, rstd or hidden are not of the same forward pass.
    """
    if not hidden.numel() and not mlp_keeps_hidden(x.shape[1], dtype):
        return fused_backward(
            dy, x, mean, rstd, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype
        )
    check_branch(x, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype)
    check_gradients_of(dy, x, mean, rstd)
    if hidden.numel():
        check_same_shape("hidden", hidden, (x.shape[0], hidden_dim), "the hidden layer")
    return wide_backward(
        dy, x, mean, rstd, hidden, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype
    )


def wide_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    hidden: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    hidden_dim: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor | None, ...]:
    """:func:`mlp_backward` in six launches, for rows of any width.

    There is one more where h was not kept, and one where dy is not in ``dtype``.
    """
    z = normalised(x, mean, rstd, norm_weight, norm_bias, dtype)
    if not hidden.numel():
        hidden = linear_forward(z, w1, b1, hidden_dim)
    dz2, left = in_dtype(launch.activation(dy), scale, tokens, dtype)
    dh, a = linear_gelu_backward_input(dz2, w2, hidden, left, tokens)
    dw2, db2 = linear_backward_weight(dz2, a, w2, b2, left, tokens)
    dw1, db1 = linear_backward_weight(dh, z, w1, b1)
    dz = linear_backward_input(dh, w1, x.shape[1])
    dx, dnorm_weight, dnorm_bias = layer_norm_backward(dz, x, norm_weight, norm_bias, mean, rstd, dy)
    return dx, dnorm_weight, dnorm_bias, dw1, db1, dw2, db2
