"""The steps of published supernet code, in our own words: the baseline of the benchmarks.

AutoFormer's layers cut the sampled slice out of the shared parameter with indexing and hand it to torch's
functional calls. Autograd then runs every cut backwards: each writes a gradient of the parameter's full size,
zeros and all, and adds it up. For qkv the cut takes every third row, three times, and concatenates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor, out_features: int) -> Tensor:
    """A sliced linear layer: columns cut first, then rows, as two indexing steps.

    Args:
        x: (B, N, k).
        weight: (N_max, K_max).
        bias: (N_max,).
        out_features: n.

    Returns:
        (B, N, n).
    """
    cut = weight[:, : x.shape[-1]]
    return F.linear(x, cut[:out_features, :], bias[:out_features])


def qkv(x: Tensor, weight: Tensor, bias: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """Queries, keys and values: interleaved rows gathered into one copied weight, the bias cut contiguously.

    Args:
        x: (B, N, d).
        weight: (3 * head_dim * H, D).
        bias: (3 * head_dim * H,).
        num_heads: h.
        head_dim: e.

    Returns:
        (3, B, h, N, e), contiguous: the published attention multiplies q, k and v with ``@``, for which
        torch copies heads that lie apart, so that this copy is made on every step.
    """
    rows = 3 * num_heads * head_dim
    out = F.linear(x, gather_qkv(weight, x.shape[-1], rows), bias[:rows])
    return out.reshape(*x.shape[:2], 3, num_heads, head_dim).permute(2, 0, 3, 1, 4).contiguous()


def gather_qkv(weight: Tensor, in_features: int, rows: int) -> Tensor:
    """Every third row, three times, in one copied weight: all of q, then all of k, then all of v.

    Args:
        weight: (3 * head_dim * H, D).
        in_features: d.
        rows: 3 * head_dim * h.

    Returns:
        (rows, d).
    """
    cut = weight[:, :in_features]
    return torch.cat([cut[part:rows:3, :] for part in range(3)], dim=0)
