"""Sliced QKV on the CPU in C++: the GEMM of growtas.ops.linear.cpu over rows interleaved in memory.

Functions have the names, shapes and results of growtas.ops.qkv.reference.
"""

from __future__ import annotations

from torch import Tensor

from growtas.ops.linear.cpu import fits, gemm, linear_backward_input, weight_gradient, worth
from growtas.ops.qkv import reference


def qkv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
) -> Tensor:
    """Queries, keys and values (3, B, h, N, e) of tokens x (B, N, d), interleaved in memory."""
    rows, n = x.reshape(-1, x.shape[-1]), 3 * num_heads * head_dim
    if not (fits(x, weight, bias) and worth(*rows.shape, n)):
        return reference.qkv_forward(x, weight, bias, num_heads, head_dim, bias_layout)
    out = reference.empty_qkv(x, num_heads, head_dim)
    shift = None if bias is None else reference.interleaved_bias(bias, n, bias_layout).contiguous()
    gemm(rows, weight[:n, : rows.shape[1]].t(), reference.as_rows(out), bias=shift)
    return out


def qkv_backward_input(dqkv: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Gradient of x (B, N, d)."""
    dx = linear_backward_input(reference.as_rows(dqkv), weight, in_features)
    return dx.view(dqkv.shape[1], dqkv.shape[3], in_features)


def qkv_backward_weight(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of the interleaved weight and of the bias."""
    rows = reference.as_rows(dqkv)
    dweight = weight_gradient(rows, x.reshape(-1, x.shape[-1]), weight)
    return dweight, None if bias is None else reference.qkv_bias_gradient(rows, bias, bias_layout)
