"""Exact parameters and multiply-accumulates of a subnet of a MobileNetV3 space. No torch.

Counted are the parameters of the extracted model: convolutions, linear maps and the scales and shifts of
batch normalisation. Its running statistics are no parameters, and the matrices that turn a large kernel
into a smaller one stay behind in the supernet. Multiply-accumulates are those of every convolution and linear
map, squeeze-and-excite's included; normalisation, activations, pooling and additions are left aside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from growtas.spaces.choices import check_groups
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.spaces.mobilenet_block import Block
from growtas.spaces.mobilenet_subnet import MobileNetSubnet

Measure = Callable[[MobileNetSubnet], int]


def parameters(subnet: MobileNetSubnet, space: MobileNetSpace, num_classes: int = 1000) -> int:
    """The exact number of parameters of the extracted model.

    Args:
        subnet: the architecture.
        space: gives the widths.
        num_classes: outputs of the classifier.
    """
    stem, first, final, feature = (
        space.stem_width,
        space.first_width,
        space.final_width,
        space.feature_width,
    )
    total = 9 * space.in_channels * stem + 2 * stem
    total += 9 * stem + 2 * stem + stem * first + 2 * first
    total += sum(block_parameters(block) for block in space.blocks(subnet))
    return total + (space.widths[-1] + 2) * final + final * feature + (feature + 1) * num_classes


def block_parameters(block: Block) -> int:
    """Parameters of one inverted-residual block."""
    mid, squeeze = block.mid_width, block.squeeze_width
    pointwise = block.in_width * mid + mid * block.out_width
    normalisation = 2 * (mid + mid + block.out_width)
    squeeze_excite = 2 * mid * squeeze + squeeze + mid if squeeze else 0
    return pointwise + block.kernel**2 * mid + normalisation + squeeze_excite


def macs(
    subnet: MobileNetSubnet,
    space: MobileNetSpace,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
) -> int:
    """Multiply-accumulates of one image's forward pass: convolutions and linear maps.

    Args:
        subnet: the architecture.
        space: gives the widths and strides.
        num_classes: outputs of the classifier.
        image_size: pixels of the square image, or its height and width; the space's where None.
    """
    image_size = image_size or space.image_size
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    height, width = -(-height // space.stem_stride), -(-width // space.stem_stride)
    total = height * width * space.stem_width * (9 * space.in_channels + 9 + space.first_width)
    for block in space.blocks(subnet):
        mid, before = block.mid_width, height * width
        height, width = -(-height // block.stride), -(-width // block.stride)
        total += before * block.in_width * mid + height * width * mid * (block.kernel**2 + block.out_width)
        total += 2 * mid * block.squeeze_width
    total += height * width * space.widths[-1] * space.final_width
    return total + space.feature_width * (space.final_width + num_classes)


def cheapest(space: MobileNetSpace, groups: Sequence[int] | None, measure: Measure) -> MobileNetSubnet:
    """The subnet of least cost of some groups; one of the space's smallest, but for where it is wide.

    In a group above 0 some block must be as wide as the group asks for, and which one costs least depends on
    what is counted: parameters grow with the stage, multiply-accumulates shrink.

    Args:
        space: the space.
        groups: numbers of the groups; all where None.
        measure: the cost of a subnet, which grows with every choice.
    """
    smallest = space.smallest()
    group = check_groups(space.name, groups, len(space.expand))[0]

    def widened(at: int) -> MobileNetSubnet:
        expand = (*smallest.expand[:at], space.expand[group], *smallest.expand[at + 1 :])
        return dataclasses.replace(smallest, expand=expand)

    return min((widened(at) for at in smallest.active), key=measure)
