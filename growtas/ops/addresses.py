"""Tensors as the compiled modules take them: address, dtype code and strides."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ABSENT = (0, 0, 0)
"""A matrix or vector that is not there."""

SIMD_LEVEL = 2
"""Which vector instructions: 2 takes what the processor has; tests set AVX2 (1) or the baseline (0)."""

Triple = tuple[int, int, int]


class Epilogue(IntEnum):
    """The epilogue of a GEMM, applied to its fp32 sums; the numbers are those of csrc."""

    PLAIN = 0
    GELU = 1
    RESIDUAL = 2
    GELU_GRADIENT = 3


def dense_rows(x: Tensor) -> Tensor:
    """A matrix whose columns lie side by side; copied where they do not."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def matrix(x: Tensor | None) -> Triple:
    """Address, dtype code and row stride."""
    return ABSENT if x is None else (x.data_ptr(), DTYPE_CODES[x.dtype], x.stride(0))


vector = matrix  # the stride of a vector is that of its only axis


def pointer(x: Tensor | None) -> int:
    """The address; 0 where there is no tensor."""
    return 0 if x is None else x.data_ptr()


def pointers(*tensors: Tensor | None) -> tuple[int, ...]:
    """The addresses; 0 where there is no tensor."""
    return tuple([0 if x is None else x.data_ptr() for x in tensors])
