"""The rule of the one-call paths: a layer or a branch of a small net runs as one call of C++ (csrc/cpu).

In a small net a step of Python costs more than the GEMM it starts. Where LayerNorm (and attention) run on the
``cpu`` backend and the largest GEMM is small, all steps of a branch are one call; elsewhere, and for other
dtypes, they are calls of their own, each on its own backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops import dispatch

MOST_OPERATIONS = 1 << 24
"""Multiply-adds of the largest GEMM of a branch that is made in one call."""


def small(x: Tensor, columns: int, width: int, dtype: torch.dtype) -> bool:
    """Return whether one call may make a branch whose largest GEMM is (B * N, d) times (d, columns)."""
    return (
        x.is_cpu
        and dtype is torch.float32
        and 0 < x.numel() * columns <= MOST_OPERATIONS
        and dispatch.choose("layer_norm", x.device, dtype, width) == "cpu"
    )


def dense(*tensors: Tensor | None) -> bool:
    """Return whether all tensors are contiguous fp32 on the CPU, or absent."""
    for t in tensors:  # not all(...): a generator costs more than what it asks
        if t is not None and not (t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()):
            return False
    return True


def whole(*vectors: tuple[Tensor | None, int]) -> bool:
    """Return whether every vector has its length: C++ reads, and writes gradients of, that many entries."""
    for vector, length in vectors:
        if vector is not None and vector.shape != (length,):
            return False
    return True


def gradients(x: Tensor, weights: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Room for dx and the gradients of the weights, the images' scale left out."""
    empty_like = torch.empty_like
    return [empty_like(x), *[None if w is None else empty_like(w) for w in weights[:-1]]]
