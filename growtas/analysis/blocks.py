"""The blocks of a supernet of either family: their names, also along an axis, and what they answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from growtas.space import MobileNetSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from growtas.subnet import AnySubnet
    from growtas.supernet import AnySupernet


def convolutional(net: AnySupernet) -> bool:
    """Return whether a supernet is one of MobileNetV3 networks."""
    return isinstance(net.space, MobileNetSpace)


def block_labels(net: AnySupernet) -> dict[str, str]:
    """The blocks of a supernet's largest subnet in order.

    Args:
        net: of either family.

    Returns:
        By the name of the module what a reader calls it, counting from 1: ``{"blocks.0": "1"}`` in a
        transformer, ``{"stages.0.1": "1.2"}`` (second block of the first stage) in a MobileNetV3.
    """
    largest = net.space.largest()
    if not convolutional(net):
        return {f"blocks.{at}": str(at + 1) for at in range(largest.depth)}
    places = [(block.stage, block.index) for block in net.space.blocks(largest)]
    return {f"stages.{stage}.{index}": f"{stage + 1}.{index + 1}" for stage, index in places}


def block_axis(axes: Axes, labels: Sequence[str]) -> None:
    """Let an x axis count blocks from 1. Args: labels: of all of them; a few are left out where many are."""
    step = math.ceil(len(labels) / 10)
    axes.set_xticks(range(1, len(labels) + 1, step), labels[::step])
    axes.set(xlabel="block", xlim=(0.5, len(labels) + 0.5))


@torch.no_grad()
def block_outputs(net: AnySupernet, images: Tensor, subnet: AnySubnet) -> dict[str, Tensor]:
    """The outputs of every block of a subnet.

    Args:
        net: the supernet, in evaluation mode.
        images: (B, C, S, S), on the net's device.
        subnet: of its space.

    Returns:
        By the block's name (B, T, channels): T tokens, the first of them cls, or positions of the image.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module, _arguments, output: Tensor) -> None:
            found[name] = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output

        return hook

    handles = [net.get_submodule(name).register_forward_hook(keep(name)) for name in block_labels(net)]
    try:
        net.forward_features(images, subnet)
    finally:
        for handle in handles:
            handle.remove()
    return found
