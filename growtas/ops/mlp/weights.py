"""The shared parameters of an MLP branch, as its steps take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MLPWeights(NamedTuple):
    """Shared parameters at full size, and the images' scale, in the order of the C++ code.

    Args:
        norm_weight, norm_bias: (D,) of the LayerNorm.
        w1, b1: (M, D) and (M,) or None.
        w2, b2: (D, M) and (D,) or None.
        scale: (B,) factor of each image's branch, or None for 1.
    """

    norm_weight: Tensor
    norm_bias: Tensor
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    scale: Tensor | None
