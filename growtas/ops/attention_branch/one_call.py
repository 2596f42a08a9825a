"""The attention branch of a small net in one call of C++ (csrc/cpu); see growtas.ops.one_call for when.

Shapes: x, dy (B, N, d); weights, biases and tables at the full size of the supernet; all fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from growtas import native
from growtas.ops import dispatch
from growtas.ops.addresses import pointers
from growtas.ops.one_call import dense, gradients, small, whole


class AttentionWeights(NamedTuple):
    """Shared parameters of an attention branch, and the images' scale, in the order of the C++ code."""

    norm_weight: Tensor
    norm_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    key_v: Tensor
    key_h: Tensor
    value_v: Tensor
    value_h: Tensor
    proj_weight: Tensor
    proj_bias: Tensor | None
    scale: Tensor | None


def takes_attention(
    x: Tensor, weights: AttentionWeights, num_heads: int, head_dim: int, dtype: torch.dtype
) -> bool:
    """Return whether :func:`attention_forward` and :func:`attention_backward` run this branch.

    Args:
        x: (B, N, d).
        weights: of the branch.
        num_heads: h.
        head_dim: e.
        dtype: of the GEMMs.
    """
    return (
        small(x, 3 * num_heads * head_dim, len(weights.norm_weight), dtype)
        and dispatch.choose("relative_attention", x.device, dtype, head_dim) == "cpu"
        and dense(x, *weights)
        and weights.key_v.shape == weights.key_h.shape == weights.value_v.shape == weights.value_h.shape
        and weights.key_v.shape[1] == head_dim <= 256
        and weights.proj_weight.shape[0] == weights.qkv_weight.shape[1]
        and whole(
            (weights.norm_weight, weights.qkv_weight.shape[1]),
            (weights.norm_bias, weights.qkv_weight.shape[1]),
            (weights.qkv_bias, weights.qkv_weight.shape[0]),
            (weights.proj_bias, weights.proj_weight.shape[0]),
            (weights.scale, x.shape[0]),
        )
    )


def attention_sizes(
    x: Tensor,
    weights: AttentionWeights,
    num_heads: int,
    grid: tuple[int, int],
    bias_layout: str,
) -> tuple[int, ...]:
    full_qkv, full = weights.qkv_weight.shape
    table_rows, head_dim = weights.key_v.shape
    full_width = weights.proj_weight.shape[1]
    shapes = (*x.shape, num_heads, head_dim, *grid, table_rows // 2 - 1, full, full_qkv, full_width)
    return (*shapes, full, full_width, bias_layout == "published")


def attention_forward(
    x: Tensor,
    weights: AttentionWeights,
    num_heads: int,
    grid: tuple[int, int],
    bias_layout: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``x + scale * proj(attention(qkv(LayerNorm(x))))``, mean, rstd, qkv (3, B, h, N, e), attended, lse.

    Args:
        x, weights, num_heads: as :func:`takes_attention` took them.
        grid: rows and columns of patches.
        bias_layout: of the qkv bias.
        eps: of the norm.
    """
    batch, tokens, _ = x.shape
    head_dim = weights.key_v.shape[1]
    y, mean, rstd = torch.empty_like(x), x.new_empty(batch * tokens), x.new_empty(batch * tokens)
    token = 3 * num_heads * head_dim  # as the GEMM writes it: q, k and v of a channel side by side
    qkv = x.new_empty_strided(
        (3, batch, num_heads, tokens, head_dim), (1, tokens * token, 3 * head_dim, token, 3)
    )
    attended = x.new_empty(batch, tokens, num_heads * head_dim)
    lse = x.new_empty(batch, num_heads, tokens)
    native.load("cpu").attention_forward(
        attention_sizes(x, weights, num_heads, grid, bias_layout),
        pointers(*weights),
        pointers(x, y, mean, rstd, qkv, attended, lse),
        eps,
    )
    return y, mean, rstd, qkv, attended, lse


def interleaved(qkv: Tensor) -> bool:
    """Return whether qkv (3, B, h, N, e) lies in memory as :func:`attention_forward` left it."""
    _, _, heads, tokens, head_dim = qkv.shape
    token = 3 * heads * head_dim
    return qkv.stride() == (1, tokens * token, 3 * head_dim, token, 3)


def attention_backward(
    dy: Tensor,
    x: Tensor,
    weights: AttentionWeights,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    grid: tuple[int, int],
    bias_layout: str,
) -> list[Tensor | None]:
    """dx and the full-size gradients of the weights, in their order and without the images' scale.

    Args:
        dy: (B, N, d), contiguous.
        x, weights, grid, bias_layout: as :func:`attention_forward` took them.
        saved: mean, rstd, qkv, attended and lse, as it returned them.
    """
    found = gradients(x, weights)
    native.load("cpu").attention_backward(
        attention_sizes(x, weights, saved[2].shape[2], grid, bias_layout),
        pointers(*weights),
        pointers(dy, x, *saved),
        pointers(*found),
    )
    return found
