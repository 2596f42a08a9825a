"""The dtype that GEMMs run in."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The autocast dtype of x's device where autocast is on, x's dtype elsewhere.

    Weights stay as they are: kernels cast while loading, so autocast's own weight copies never happen.
    """
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
