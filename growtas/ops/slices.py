"""Gradients of shared parameters: full-size, zero outside the slice, each element written once."""

from __future__ import annotations

import torch
from torch import Tensor


def full_size(like: Tensor, rows: int, columns: int | None = None) -> tuple[Tensor, Tensor]:
    """A gradient of the shared weight's size: zero outside the slice, the slice yet to be written.

    Args:
        like: the shared weight, (N_max, K_max) or (N_max,).
        rows: rows of the slice.
        columns: columns of the slice, of a matrix.

    Returns:
        The gradient and the view of its slice.
    """
    gradient = torch.empty_like(like, memory_format=torch.contiguous_format)
    gradient[rows:].zero_()
    if columns is None:
        return gradient, gradient[:rows]
    gradient[:rows, columns:].zero_()
    return gradient, gradient[:rows, :columns]
