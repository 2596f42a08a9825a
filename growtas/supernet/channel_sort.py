"""Order the middle channels of every block by importance, so that narrower blocks keep the important ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from growtas.errors import UsageError
from growtas.nn.inverted_residual import InvertedResidual
from growtas.spaces.mobilenet_block import make_divisible
from growtas.supernet.mobilenet import MobileNetV3


@torch.no_grad()
def sort_channels(net: MobileNetV3, phase: int = 0) -> None:
    """Sort every block's middle channels at the start of an expand phase; the largest net's outputs stay.

    Importance is the L1 norm of a channel's weights in the projection. Phase 0 sorts all channels of a block.
    A later phase sorts within the bands that the expand ratios trained so far separate, so that the subnets
    of those ratios keep their channels. The inner channels of squeeze-and-excite are sorted too, by the L1
    norm of their weights in its second layer, within the bands that those ratios' inner widths separate.

    The optimizer's moments and averaged weights are not sorted: start them afresh.

    Args:
        net: a supernet; its parameters and BatchNorm statistics are permuted in place.
        phase: how many expand ratios below the largest have been trained.

    Raises:
        UsageError: the space has no such phase.

    Source: Once-for-All, ``re_organize_middle_weights``. There the inner channels of squeeze-and-excite are
        sorted without bands, which changes the outputs of the subnets trained before; bands here are our
        own choice.
    """
    ratios = sorted(net.space.expand, reverse=True)
    if not 0 <= phase < len(ratios):
        raise UsageError(
            f"Expand phase {phase} does not exist: space {net.space.name!r} has {len(ratios)} expand ratios."
        )
    for stage, blocks in enumerate(net.stages):
        for index, block in enumerate(blocks):
            widths = [net.space.mid_width(stage, index, ratio) for ratio in ratios[1 : phase + 1]]
            _sort_block(block, widths)


def _sort_block(block: InvertedResidual, widths: Sequence[int]) -> None:
    order = band_order(block.project.weight.abs().sum((0, 2, 3)), widths)
    _reorder(block.project.weight, order, axis=1)
    _reorder(block.expand.weight, order)
    _reorder(block.depthwise.weight, order)
    for norm in (block.expand_norm, block.depthwise_norm):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            _reorder(tensor, order)
    if block.se is None:
        return
    reduce, expand = block.se.reduce, block.se.expand
    _reorder(reduce.weight, order, axis=1)
    _reorder(expand.weight, order)
    _reorder(expand.bias, order)
    inner = band_order(expand.weight.abs().sum((0, 2, 3)), [make_divisible(width // 4) for width in widths])
    _reorder(expand.weight, inner, axis=1)
    _reorder(reduce.weight, inner)
    _reorder(reduce.bias, inner)


def band_order(importance: Tensor, widths: Sequence[int]) -> Tensor:
    """The channels in descending importance, within each of the bands that the widths cut.

    Args:
        importance: (C,).
        widths: places of the cuts, in any order; none for one band.

    Returns:
        (C,) the channel that comes first, second and so on; of equals the earlier one.
    """
    cuts = [0, *sorted(set(widths)), len(importance)]
    bands = zip(cuts, cuts[1:], strict=False)
    return torch.cat([importance[a:b].sort(descending=True, stable=True).indices + a for a, b in bands])


def _reorder(tensor: Tensor | nn.Parameter, order: Tensor, axis: int = 0) -> None:
    tensor.copy_(tensor.index_select(axis, order))
