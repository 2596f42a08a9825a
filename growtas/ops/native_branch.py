"""A residual branch, or a linear layer, of a small net in one call (csrc/cpu/branch.cpp).

Here are checks, outputs and addresses. In a small net a step of Python costs more than the product it starts.
Where LayerNorm (and attention) run on the C++ kernels and the largest product is small, all steps of a branch
are one call; elsewhere, and for other dtypes, they are calls of their own (growtas.ops.composed), each on its
own backend.

Shapes: x, dy (B, N, d); weights, biases and tables at the full size of the supernet; all fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops import backend, native

MOST_OPERATIONS = 1 << 24
"""Multiply-adds of the largest product of a branch that is made in one call."""


def _small(x: Tensor, columns: int, width: int, dtype: torch.dtype) -> bool:
    """Whether one call may make a branch whose largest product is (B * N, d) times (d, columns)."""
    return (
        x.is_cpu
        and dtype is torch.float32
        and 0 < x.numel() * columns <= MOST_OPERATIONS
        and backend.choose("layer_norm", x.device, dtype, width) == "cpu"
    )


def _dense(*tensors: Tensor | None) -> bool:
    for t in tensors:  # not all(...): a generator costs more than what it asks
        if t is not None and not (t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()):
            return False
    return True


def _whole(*vectors: tuple[Tensor | None, int]) -> bool:
    """True if every vector has its length: the C++ code reads, and writes gradients of, that many entries."""
    for vector, length in vectors:
        if vector is not None and vector.shape != (length,):
            return False
    return True


def _addresses(tensors: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    return tuple([0 if t is None else t.data_ptr() for t in tensors])


def _gradients(x: Tensor, weights: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Room for dx and the gradients of the weights, the images' scale left out."""
    empty_like = torch.empty_like
    return [empty_like(x), *[None if w is None else empty_like(w) for w in weights[:-1]]]


def takes_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> bool:
    """Whether :func:`linear_forward` and :func:`linear_backward` run this layer.

    Args:
        x: (..., k).
        weight, bias: shared.
        out_features: n.
    """
    return (
        _small(x, out_features, weight.shape[1], x.dtype)
        and _dense(x, weight, bias)
        and _whole((bias, weight.shape[0]))
    )


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``x @ weight[:n, :k].T + bias[:n]``, of what :func:`takes_linear` took."""
    inner = x.shape[-1]
    y = x.new_empty(*x.shape[:-1], out_features)
    native.load("cpu").linear_forward(
        (x.numel() // inner, out_features, inner, *weight.shape),
        _addresses((weight, bias)),
        (x.data_ptr(), y.data_ptr()),
    )
    return y


def linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, needs_dx: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """dx, where it is needed, and the full-size gradients of weight and bias.

    Args:
        dy: (..., n), fp32.
        x, weight, bias: as :func:`linear_forward` took them.
        needs_dx: whether dx is made.
    """
    dy, inner = dy.contiguous(), x.shape[-1]
    like = (x if needs_dx else None, weight, bias)
    gradients = tuple([None if t is None else torch.empty_like(t) for t in like])
    native.load("cpu").linear_backward(
        (x.numel() // inner, dy.shape[-1], inner, *weight.shape),
        _addresses((weight, bias)),
        (dy.data_ptr(), x.data_ptr()),
        _addresses(gradients),
    )
    return gradients


def takes_mlp(x: Tensor, weights: tuple[Tensor | None, ...], hidden_dim: int, dtype: torch.dtype) -> bool:
    """Whether :func:`mlp_forward` and :func:`mlp_backward` run this branch.

    Args:
        x: (B, N, d).
        weights: scale and shift of the norm, weight and bias of fc1 and of fc2, the images' scale.
        hidden_dim: m.
        dtype: of products.
    """
    if not (_small(x, hidden_dim, len(weights[0]), dtype) and _dense(x, *weights)):
        return False
    shift, w1, b1, w2, b2, scale = weights[1:]
    hidden, width = w1.shape
    return w2.shape == (width, hidden) and _whole(
        (weights[0], width), (shift, width), (b1, hidden), (b2, width), (scale, x.shape[0])
    )


def _mlp_sizes(x: Tensor, weights: tuple[Tensor | None, ...], hidden_dim: int) -> tuple[int, ...]:
    full_hidden, full = weights[2].shape
    return (*x.shape, hidden_dim, full, full_hidden, full, full_hidden)


def mlp_forward(
    x: Tensor, weights: tuple[Tensor | None, ...], hidden_dim: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``x + scale * fc2(gelu(fc1(LayerNorm(x))))``, mean and rstd (B * N,), the hidden layer (B * N, m).

    Args:
        x, weights, hidden_dim: as :func:`takes_mlp` took them.
        eps: of the norm.
    """
    rows = x.shape[0] * x.shape[1]
    y, mean, rstd, hidden = (
        torch.empty_like(x),
        x.new_empty(rows),
        x.new_empty(rows),
        x.new_empty(rows, hidden_dim),
    )
    tensors = (x.data_ptr(), y.data_ptr(), mean.data_ptr(), rstd.data_ptr(), hidden.data_ptr())
    sizes = _mlp_sizes(x, weights, hidden_dim)
    native.load("cpu").mlp_forward(sizes, _addresses(weights), tensors, eps)
    return y, mean, rstd, hidden


def mlp_backward(
    dy: Tensor,
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
) -> list[Tensor | None]:
    """dx and the full-size gradients of the weights, in their order and without the images' scale.

    Args:
        dy: (B, N, d), contiguous.
        x, weights: as :func:`mlp_forward` took them.
        mean, rstd, hidden: what it returned.
    """
    gradients = _gradients(x, weights)
    tensors = (dy.data_ptr(), x.data_ptr(), mean.data_ptr(), rstd.data_ptr(), hidden.data_ptr())
    native.load("cpu").mlp_backward(
        _mlp_sizes(x, weights, hidden.shape[1]),
        _addresses(weights),
        tensors,
        _addresses(gradients),
    )
    return gradients


def takes_attention(
    x: Tensor, weights: tuple[Tensor | None, ...], num_heads: int, head_dim: int, dtype: torch.dtype
) -> bool:
    """Whether :func:`attention_forward` and :func:`attention_backward` run this branch.

    Args:
        x: (B, N, d).
        weights: scale and shift of the norm, weight and bias of qkv, key_v, key_h, value_v, value_h, weight
            and bias of the projection, the images' scale.
        num_heads: h.
        head_dim: e.
        dtype: of products.
    """
    return (
        _small(x, 3 * num_heads * head_dim, len(weights[0]), dtype)
        and backend.choose("relative_attention", x.device, dtype, head_dim) == "cpu"
        and _dense(x, *weights)
        and weights[4].shape == weights[5].shape == weights[6].shape == weights[7].shape
        and weights[4].shape[1] == head_dim <= 256
        and weights[8].shape[0] == weights[2].shape[1]
        and _whole(
            *((norm, weights[2].shape[1]) for norm in weights[:2]),
            (weights[3], weights[2].shape[0]),
            (weights[9], weights[8].shape[0]),
            (weights[10], x.shape[0]),
        )
    )


def _attention_sizes(
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    num_heads: int,
    grid: tuple[int, int],
    bias_layout: str,
) -> tuple[int, ...]:
    (full_qkv, full), (table_rows, head_dim), full_width = (
        weights[2].shape,
        weights[4].shape,
        weights[8].shape[1],
    )
    shapes = (*x.shape, num_heads, head_dim, *grid, table_rows // 2 - 1, full, full_qkv, full_width)
    return (*shapes, full, full_width, bias_layout == "published")


def attention_forward(
    x: Tensor,
    weights: tuple[Tensor | None, ...],
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
    head_dim = weights[4].shape[1]
    y, mean, rstd = torch.empty_like(x), x.new_empty(batch * tokens), x.new_empty(batch * tokens)
    token = 3 * num_heads * head_dim  # as the product writes it: q, k and v of a channel side by side
    qkv = x.new_empty_strided(
        (3, batch, num_heads, tokens, head_dim), (1, tokens * token, 3 * head_dim, token, 3)
    )
    attended = x.new_empty(batch, tokens, num_heads * head_dim)
    lse = x.new_empty(batch, num_heads, tokens)
    native.load("cpu").attention_forward(
        _attention_sizes(x, weights, num_heads, grid, bias_layout),
        _addresses(weights),
        _addresses((x, y, mean, rstd, qkv, attended, lse)),
        eps,
    )
    return y, mean, rstd, qkv, attended, lse


def interleaved(qkv: Tensor) -> bool:
    """Whether qkv (3, B, h, N, e) lies in memory as :func:`attention_forward` left it."""
    _, _, heads, tokens, head_dim = qkv.shape
    token = 3 * heads * head_dim
    return qkv.stride() == (1, tokens * token, 3 * head_dim, token, 3)


def attention_backward(
    dy: Tensor,
    x: Tensor,
    weights: tuple[Tensor | None, ...],
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
    gradients = _gradients(x, weights)
    native.load("cpu").attention_backward(
        _attention_sizes(x, weights, saved[2].shape[2], grid, bias_layout),
        _addresses(weights),
        _addresses((dy, x, *saved)),
        _addresses(gradients),
    )
    return gradients
