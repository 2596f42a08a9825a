"""The factor of LayerNorm from a row's variance, for kernels to inline."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rstd_of(variance, eps):
    """1 / sqrt(variance + eps); NaN where squares overflowed: 1 / infinity would make plausible rows of 0."""
    return tl.where(variance < float("inf"), 1.0 / tl.sqrt(variance + eps), float("nan"))
