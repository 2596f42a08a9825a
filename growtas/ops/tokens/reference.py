"""The first tokens, in torch: each pass writes its result once.

As ``cat`` and ``+`` they pass over the stream twice.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_forward(patches: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    """cls in front of the patches (B, P, d), and the position added."""
    batch, count, width = patches.shape
    position = pos_embed[:, :, :width]
    first = cls_token[:, :, :width].to(patches.dtype) + position[:, :1]
    x = patches.new_empty((batch, count + 1, width), dtype=first.dtype)
    x[:, :1] = first
    torch.add(patches, position[:, 1:], out=x[:, 1:])
    return x


def tokens_backward(
    dy: Tensor,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    widths: tuple[int, int],
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of patches, cls and position in their dtypes; None where not needed."""
    dpatches, dcls, dposition = None, None, None
    if needs[0]:
        dpatches = dy[:, 1:].to(dtypes[0])
    if needs[1]:
        dcls = _summed(dy[:, :1].to(dtypes[0]), widths[0], dtypes[1])
    if needs[2]:
        dposition = _summed(dy, widths[1], dtypes[2])
    return dpatches, dcls, dposition


def _summed(dy: Tensor, full: int, dtype: torch.dtype) -> Tensor:
    """The sum over the images, at the full size of the shared parameter."""
    _, count, width = dy.shape
    if width == full:
        return dy.sum(0, keepdim=True, dtype=dtype)
    gradient = dy.new_empty((1, count, full), dtype=dtype)
    gradient[:, :, width:].zero_()
    torch.sum(dy, 0, keepdim=True, dtype=dtype, out=gradient[:, :, :width])
    return gradient
