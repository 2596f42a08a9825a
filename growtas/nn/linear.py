"""A shared linear layer and a shared LayerNorm, run at any width up to their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growtas import ops
from growtas.nn.precision import compute_dtype


class SlicedLinear(nn.Linear):
    """``nn.Linear`` whose forward takes how many outputs to compute; inputs may be narrower too.

    Args of forward:
        x: (..., k), k <= in_features.
        out_features: n <= out_features.

    Returns of forward:
        (..., n).
    """

    def reset_parameters(self) -> None:
        """AutoFormer's initialisation: truncated normal of standard deviation 0.02, bias 0."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, out_features: int) -> Tensor:
        return ops.linear(x.to(compute_dtype(x)), self.weight, self.bias, out_features)


class PartialLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over inputs of any width up to its own; the result is in the dtype of GEMMs.

    Args of forward:
        x: (..., d), d <= normalized_shape.
    """

    def __init__(self, embed_dim: int, eps: float = 1e-5) -> None:
        super().__init__(embed_dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps, out_dtype=compute_dtype(x))


class PatchEmbedding(nn.Module):
    """Cut images into patches and project each to the first d channels.

    The shared weight is a convolution's, (D, C, p, p), as published; since kernel and stride are equal the
    convolution is a GEMM, which takes the sliced linear kernel.

    Args:
        in_channels: C, of the images.
        embed_dim: D, of the supernet.
        patch_size: p, pixels.
    """

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor, embed_dim: int) -> Tensor:
        """(B, C, S, S) images to (B, patches, d) tokens, row by row."""
        p = self.patch_size
        batch, channels, height, width = images.shape
        patches = images.reshape(batch, channels, height // p, p, width // p, p)
        # Moved and converted in one pass: without the memory format .to would convert first, or not move.
        moved = patches.permute(0, 2, 4, 1, 3, 5)
        moved = moved.to(compute_dtype(images), memory_format=torch.contiguous_format)
        patches = moved.reshape(batch, -1, channels * p * p)
        return ops.linear(patches, self.proj.weight.flatten(1), self.proj.bias, embed_dim)
