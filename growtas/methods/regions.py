"""Which entries of the shared weights a set of groups uses, what is new at a transition, and how it starts.

A subnet uses the leading entries of every tensor, along every axis: a box whose sizes are the shapes of the
subnet taken out on its own. So the region of a subnet is read off that smaller network, tensor by tensor,
and knows no parameter names. Within a group (one embed_dim) the largest subnet's box holds all the others;
unions of several boxes are boolean masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from growtas.errors import UsageError, nearest
from growtas.methods.base import NEW_REGIONS
from growtas.nn.linear import PartialLayerNorm
from growtas.space import Subnet, seeded_rng
from growtas.supernet.vit import VisionTransformer

if TYPE_CHECKING:
    Masks = Mapping[str, Tensor]

STANDARD_STD = 0.02  # AutoFormer's initialisation of every matrix and table
NEAR_ZERO_STD = 1e-3


def boxes(net: VisionTransformer, subnet: Subnet) -> dict[str, tuple[int, ...]]:
    """The shape of the leading box that a subnet uses, of every parameter that it uses.

    Args:
        net: the supernet.
        subnet: of its space.

    Returns:
        Parameter name to sizes; a block beyond the subnet's depth does not appear.
    """
    with torch.device("meta"):
        small = VisionTransformer(net.dims.of_subnet(subnet), net.num_classes)
    return {name: tuple(parameter.shape) for name, parameter in small.named_parameters()}


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
        for name, sizes in boxes(net, subnet).items():
            masks[name][tuple(slice(size) for size in sizes)] = True
    return masks


def used(net: VisionTransformer, groups: Sequence[int]) -> dict[str, Tensor]:
    """The union of the regions of every subnet of some groups, as :func:`used_by` gives it.

    The largest subnet of each group is enough: at one embed_dim every other choice nests.
    """
    return used_by(net, [net.space.largest((group,)) for group in groups])


def new_region(net: VisionTransformer, before: Sequence[int], after: Sequence[int]) -> dict[str, Tensor]:
    """What the groups ``after`` use and the groups ``before`` do not.

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
def initialise(net: VisionTransformer, new: Masks, trained: Masks, how: str, seed: int, stage: int) -> int:
    """Give the new entries their starting values, as a function of the seed and the stage alone.

    ==============  ================================================================================
    keep            nothing is changed: the initial values, as the authors' engine leaves them. (AdamW
                    decays entries of an active tensor whose gradient is zero.)
    standard        truncated normal of 0.02; biases 0
    near_zero       truncated normal of 0.001; biases 0. Small but never exactly zero, so that no
                    product of two new factors (fc1 rows and fc2 columns) is a dead saddle.
    pretrained      normal of the mean and standard deviation of the trained entries of the same
                    tensor (the paper's negative example); ``standard`` where it has none
    ==============  ================================================================================

    New entries of a LayerNorm get weight 1 and bias 0, whichever of the last three is chosen.

    Args:
        net: the supernet; changed in place.
        new: masks of the entries to initialise.
        trained: masks of the entries trained so far; ``pretrained`` takes their statistics.
        how: one of the four above.
        seed: of the run.
        stage: number of the stage that begins.

    Returns:
        The number of entries in ``new``.

    Raises:
        UsageError: ``how`` is unknown.

    Source:
        GrowTAS, supplement, "Why Weight Extension Preserves Performance".
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
        if name in norms:
            values = torch.full(mask.shape, norms[name])
        else:
            values = _start(how, parameter.detach().cpu(), trained[name], generator)
        mask = mask.to(parameter.device)
        parameter[mask] = values.to(parameter.device, parameter.dtype)[mask]
    return count


def _norm_parameters(net: nn.Module) -> dict[str, float]:
    """The starting value of every LayerNorm parameter, by name."""
    return {
        f"{prefix}.{name}": value
        for prefix, module in net.named_modules()
        if isinstance(module, PartialLayerNorm)
        for name, value in (("weight", 1.0), ("bias", 0.0))
    }


def _start(how: str, parameter: Tensor, trained: Tensor, generator: torch.Generator) -> Tensor:
    """Values for a whole tensor that is no LayerNorm's; the caller takes the new entries of them."""
    values = torch.zeros(parameter.shape)
    if how == "pretrained" and trained.any():
        known = parameter[trained].double()
        mean, std = known.mean().item(), known.std(correction=0).item()
        return values.normal_(mean, std, generator=generator)
    if parameter.ndim == 1:
        return values
    std = NEAR_ZERO_STD if how == "near_zero" else STANDARD_STD
    return nn.init.trunc_normal_(values, std=std, generator=generator)
