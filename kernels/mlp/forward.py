"""The MLP branch of a block, y = x + scale * fc2(gelu(fc1(LayerNorm(x)))): choice of form, and the wide form.

Shapes (M = B * N rows of the batch; D and m_max are sizes of the shared parameters):
    x, y, dy, dx (M, d)   norm_weight, norm_bias (D,)   w1 (m_max, D), b1 (m_max,)   w2 (D, m_max), b2 (D,)
    scale (B,) fp32, the drop-path factor of each image   mean, rstd (M,) fp32   hidden h (M, m) or (0,)

The rule: up to 256 channels (``mlp.tiles.MAX_FUSED_WIDTH``, so all of AutoFormer-T) the fused form, whatever
the dtype: ``fused_forward``, ``fused_backward``; 1 and 2 launches, h never in memory. A wider row's sums do
not fit into the registers of one program, and the larger GEMMs hide the traffic of h: there LayerNorm, fc1
with GELU and fc2 with the residual are launches of their own (3), h is saved in the GEMMs' dtype, and the
backward pass (6) makes LayerNorm's result again from mean and rstd and gelu(h) again from h.
"""

from __future__ import annotations

import torch

from growtas.kernels.layer_norm.forward import layer_norm_forward
from growtas.kernels.linear.forward import linear_gelu_forward, linear_residual_forward
from growtas.kernels.mlp import tiles as mlp_tiles
from growtas.kernels.mlp.fused_forward import check_branch, fused_forward


def mlp_keeps_hidden(width: int, dtype: torch.dtype) -> bool:
    """True if :func:`mlp_forward` returns the hidden layer for rows of ``width``; of any ``dtype``."""
    return width > mlp_tiles.MAX_FUSED_WIDTH


def mlp_forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    hidden_dim: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """y = x + scale[row // tokens] * (gelu(LayerNorm(x) w1[:m, :d]^T + b1[:m]) w2[:d, :m]^T + b2[:d]).

    Args:
        x: (M, d), any row stride; copied where the last stride is not 1. May be fp32 under 16-bit matmuls.
        norm_weight, norm_bias: (D,), D >= d.
        eps: added to the variance.
        w1, b1: (m_max, D) of any row stride and (m_max,), or None.
        w2, b2: (D, m_max) and (D,), or None.
        hidden_dim: m, active units of the hidden layer.
        scale: (M / tokens,) fp32, the factor of each image's branch; None means 1.
        tokens: rows per image.
        dtype: of the matmuls.

    Returns:
        y (M, d) contiguous in x's dtype, mean and rstd (M,) fp32, and h (M, m) in ``dtype``, or an empty
        tensor where the backward pass computes it again (see :func:`mlp_keeps_hidden`).

    Raises:
        UsageError: a slice is not inside its shared parameter, shapes do not fit, a tensor cannot be read
            (see ``launch.check``), or there are no kernels for ``dtype``.
    """
    if not mlp_keeps_hidden(x.shape[1], dtype):
        y, mean, rstd = fused_forward(
            x, norm_weight, norm_bias, eps, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype
        )
        return y, mean, rstd, x.new_empty(0, dtype=dtype)
    check_branch(x, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype)
    return wide_forward(x, norm_weight, norm_bias, eps, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype)


def wide_forward(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    hidden_dim: int,
    scale: torch.Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`mlp_forward` in three launches, for rows of any width; h is returned."""
    z, mean, rstd = layer_norm_forward(x, norm_weight, norm_bias, eps, dtype)
    a, hidden = linear_gelu_forward(z, w1, b1, hidden_dim)
    return linear_residual_forward(a, w2, b2, x, scale, tokens), mean, rstd, hidden
