"""MobileNetV3's inverted-residual block, at any middle width and kernel up to its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from growtas.nn.conv import DepthwiseConv, PartialBatchNorm, PointwiseConv, SqueezeExcite
from growtas.spaces.mobilenet_block import Block

ACTIVATIONS = {"relu": F.relu, "h-swish": F.hardswish}


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excite, 1x1 projection; each with BatchNorm.

    Args:
        block: its own, largest geometry.
        kernels: sides of the depthwise kernel that can be chosen, ascending.
        expands: whether it begins with an expansion; the fixed first block does not.

    Args of forward:
        x: (B, in_width, H, W).
        block: the geometry to run.
        scale: (B,) factors of the branch beside a residual (drop path), or None.

    Returns of forward:
        (B, out_width, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, block: Block, kernels: Sequence[int], expands: bool = True) -> None:
        super().__init__()
        mid = block.mid_width
        self.expand = self.expand_norm = self.se = None
        if expands:
            self.expand = PointwiseConv(block.in_width, mid)
            self.expand_norm = PartialBatchNorm(mid)
        self.depthwise = DepthwiseConv(mid, kernels, block.stride)
        self.depthwise_norm = PartialBatchNorm(mid)
        if block.squeeze_width:
            self.se = SqueezeExcite(mid, block.squeeze_width)
        self.project = PointwiseConv(mid, block.out_width)
        self.project_norm = PartialBatchNorm(block.out_width)

    def forward(self, x: Tensor, block: Block, scale: Tensor | None = None) -> Tensor:
        activation = ACTIVATIONS[block.activation]
        y = x
        if self.expand is not None:
            y = activation(self.expand_norm(self.expand(y, block.mid_width)))
        y = activation(self.depthwise_norm(self.depthwise(y, block.kernel)))
        if self.se is not None:
            y = self.se(y, block.squeeze_width)
        y = self.project_norm(self.project(y, block.out_width))
        if not block.residual:
            return y
        return x + (y if scale is None else y * scale.to(y.dtype).view(-1, 1, 1, 1))
