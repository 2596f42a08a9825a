"""Which entries of the shared weights a set of groups uses, what is new at a transition, and how it starts.

A subnet uses the leading entries of every tensor, along every axis: a box whose sizes the network tells
(``subnet_shapes``), tensor by tensor; nothing here knows the name of a parameter. Within a group the largest
subnet's box holds all the others; unions of several boxes are boolean masks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from growtas.errors import UsageError, nearest
from growtas.methods.base import NEW_REGIONS
from growtas.space import SearchSpace, Subnet, seeded_rng

if TYPE_CHECKING:
    from growtas.supernet.vit import VisionTransformer

    Masks = Mapping[str, Tensor]

STANDARD_STD = 0.02  # AutoFormer's initialisation of every matrix and table
NEAR_ZERO_STD = 1e-3


def used_by(net: VisionTransformer, subnets: Sequence[Subnet]) -> dict[str, Tensor]:
    """The union of the regions of some subnets.

    Args:
        net: the supernet.
        subnets: of its space.

    Returns:
        For every parameter a boolean mask of its shape, on the CPU; True where one of the subnets uses it.
    """
    masks = {
        name: torch.zeros(parameter.shape, dtype=torch.bool) for name, parameter in net.named_parameters()
    }
    for subnet in subnets:
        for name, sizes in net.subnet_shapes(subnet).items():
            masks[name][tuple(slice(size) for size in sizes)] = True
    return masks


def used(net: VisionTransformer, groups: Sequence[int]) -> dict[str, Tensor]:
    """The union of the regions of every subnet of some groups, as :func:`used_by` gives it.

    The largest subnet of each group is enough, for every other choice nests in it. Only kernels do not: a
    smaller one is the larger one's centre, transformed by a matrix that the larger one does not use.
    """
    return used_by(net, [subnet for group in groups for subnet in _covering(net.space, group)])


def _covering(space: SearchSpace, group: int) -> Iterator[Subnet]:
    """A few subnets of a group that together use what any of it does."""
    largest = space.largest((group,))
    yield largest
    if hasattr(largest, "kernel"):
        yield dataclasses.replace(largest, kernel=space.smallest((group,)).kernel)


def new_region(net: VisionTransformer, before: Sequence[int], after: Sequence[int]) -> dict[str, Tensor]:
    """The weights that the groups ``after`` use and the groups ``before`` do not.

    For AutoFormer-T at its first transition, groups 0 and 1 to all three: embed channels 216 to 240 of every
    tensor that has them, and MLP hidden channels 864 to 960.

    Returns:
        Boolean masks, as :func:`used_by`, of those parameters that have new entries.

    Source:
        GrowTAS, supplement, "Why Weight Extension Preserves Performance".
    """
    old, now = used(net, before), used(net, after)
    new = {name: mask & ~old[name] for name, mask in now.items()}
    return {name: mask for name, mask in new.items() if mask.any()}


@torch.no_grad()
def initialise(
    net: VisionTransformer,
    new: Masks,
    trained: Masks,
    how: str,
    seed: int,
    stage: int,
    draw_norms: bool = False,
) -> int:
    """Give the new entries their starting values, as a function of the seed and the stage alone.

    ==============  ================================================================================
    keep            nothing is changed: the initial values, as the authors' engine leaves them. (AdamW
                    decays entries of an active tensor whose gradient is zero.)
    standard        what the network itself starts with: in a transformer a truncated normal of 0.02,
                    convolutions of a network with BatchNorm a normal of sqrt(2 / fan-out); biases 0
    near_zero       truncated normal of 0.001; biases 0. Small but never exactly zero, so that no
                    product of two new factors (fc1 rows and fc2 columns) is a dead saddle.
    pretrained      normal of the mean and standard deviation of the trained entries of the same
                    tensor (the paper's negative example); ``standard`` where it has none
    ==============  ================================================================================

    New entries of LayerNorm and BatchNorm get weight 1 and bias 0, whichever of the last three is chosen,
    unless ``draw_norms`` asks for those of ``pretrained`` to be drawn like the others.

    Args:
        net: the supernet; changed in place.
        new: masks of the entries to initialise.
        trained: masks of the entries trained so far; ``pretrained`` takes their statistics.
        how: one of the four above.
        seed: of the run.
        stage: number of the stage that begins.
        draw_norms: let ``pretrained`` draw weights and biases of normalisations too, each from the trained
            entries of its own tensor, as the paper's figure B does.

    Returns:
        The number of entries in ``new``.

    Raises:
        UsageError: ``how`` is unknown.

    Source:
        GrowTAS, supplement, "Why Weight Extension Preserves Performance"; the fan-out, out_channels * k * k
        of the supernet's tensor also where the convolution is depthwise, is Once-for-All's.
    """
    if how not in NEW_REGIONS:
        raise UsageError(f"new_region={how!r} is unknown.{nearest(str(how), NEW_REGIONS)}")
    norms = _norm_parameters(net)
    count = 0
    for name, parameter in net.named_parameters():
        if name not in new:
            continue
        mask = new[name]
        count += int(mask.sum())
        if how == "keep":
            continue
        generator = torch.Generator().manual_seed(seeded_rng("new region", seed, stage, name).getrandbits(63))
        if name in norms and not (draw_norms and how == "pretrained" and trained[name].any()):
            values = torch.full(mask.shape, norms[name])
        else:
            std = NEAR_ZERO_STD if how == "near_zero" else _standard_std(net, parameter)
            values = _start(how, parameter.detach().cpu(), trained[name], std, generator)
        mask = mask.to(parameter.device)
        parameter[mask] = values.to(parameter.device, parameter.dtype)[mask]
    return count


@torch.no_grad()
def reset_moments(net: VisionTransformer, optimizer: torch.optim.Optimizer, new: Masks) -> int:
    """Set what an optimizer remembers of the new entries to zero: momentum, first and second moments.

    Only state of a tensor's own shape belongs to its entries; counts of steps stay. AdamW remembers nothing
    of entries whose gradient was always zero, so this changes nothing there; it does where weight decay is
    part of the gradient, as in SGD.

    Args:
        net: the supernet.
        optimizer: of its parameters; its state is changed in place.
        new: masks of the entries.

    Returns:
        How many numbers were not zero before.
    """
    count = 0
    for name, parameter in net.named_parameters():
        if name not in new or parameter not in optimizer.state:
            continue
        mask = new[name].to(parameter.device)
        for value in optimizer.state[parameter].values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                count += int(torch.count_nonzero(value[mask]))
                value[mask] = 0
    return count


def _norm_parameters(net: nn.Module) -> dict[str, float]:
    """The starting value of every parameter of a normalisation, by name."""
    return {
        f"{prefix}.{name}": value
        for prefix, module in net.named_modules()
        if isinstance(module, nn.LayerNorm | _BatchNorm)
        for name, value in (("weight", 1.0), ("bias", 0.0))
    }


def _standard_std(net: nn.Module, parameter: Tensor) -> float:
    """The standard deviation that a tensor of a network starts with."""
    if parameter.ndim == 4 and getattr(net, "needs_calibration", False):
        return math.sqrt(2 / (parameter.shape[0] * parameter.shape[2] * parameter.shape[3]))
    return STANDARD_STD


def _start(how: str, parameter: Tensor, trained: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Values for a whole tensor that is no normalisation's; the caller takes the new entries of them."""
    values = torch.zeros(parameter.shape)
    if how == "pretrained" and trained.any():
        known = parameter[trained].double()
        mean, deviation = known.mean().item(), known.std(correction=0).item()
        return values.normal_(mean, deviation, generator=generator)
    if parameter.ndim == 1:
        return values
    return nn.init.trunc_normal_(values, std=std, generator=generator)
