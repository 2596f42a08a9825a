"""GELU by the error function, for kernels to inline: gelu(h) = h Phi(h), 2 Phi(h) = 1 + erf(h / sqrt 2)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(h):
    """gelu(h) of an fp32 tensor."""
    return 0.5 * h * (1.0 + tl.math.erf(h * 0.7071067811865476))


@triton.jit
def gelu_and_slope(h):
    """gelu(h) and its derivative Phi(h) + h phi(h), of an fp32 tensor."""
    distribution = 0.5 * (1.0 + tl.math.erf(h * 0.7071067811865476))
    density = tl.exp(-0.5 * h * h) * 0.3989422804014327
    return h * distribution, distribution + h * density
