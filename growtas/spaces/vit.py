"""Search spaces of vision transformers, as plain frozen values. No torch.

After AutoFormer (Chen et al., ICCV 2021): ``embed_dim`` and ``depth`` are chosen once per subnet,
``num_heads`` and ``mlp_ratio`` once per layer. A *group* is the set of subnets of one embed_dim (GrowTAS,
supplement, "Detailed Definition of Subspace"); groups count from 0, smallest first.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from growtas.bounds import PIXELS
from growtas.errors import UsageError
from growtas.spaces.base import PlainSpace
from growtas.spaces.choices import (
    MOST_LAYERS,
    MOST_SIZE,
    adjacent,
    check_choices,
    check_groups,
    check_name,
    check_optional_count,
    check_size,
    check_whole,
    entries,
    outside,
)
from growtas.spaces.vit_subnet import Subnet, plain_number

_CHOICES = ("embed_dim", "mlp_ratio", "num_heads", "depth")
_MOST = {
    "embed_dim": MOST_SIZE,
    "mlp_ratio": 64,
    "num_heads": 1024,
    "depth": MOST_LAYERS,
    "head_dim": 1024,
    "in_channels": 1024,
}


@dataclass(frozen=True)
class SearchSpace(PlainSpace):
    """The choices of a vision-transformer space and the size of the supernet that holds them.

    Args:
        name: how runs and tables call it.
        embed_dim, mlp_ratio, num_heads, depth: the choices, ascending.
        super_embed_dim, super_mlp_ratio, super_num_heads, super_depth: sizes of the shared weights; the
            largest choices where not given. AutoFormer's supernets are larger than any subnet.
        image_size: pixels of the square input.
        patch_size: pixels of a square patch; divides image_size.
        in_channels: channels of the input.
        head_dim: channels of one attention head, fixed, so that ``q`` is ``num_heads * head_dim`` wide.
        max_relative_position: clamp of the relative distance, in patches.
        schedule_params: the size C, in parameters, that the size-aware transition rule uses; the largest
            subnet's where None (GrowTAS, supplement, "Dynamic Transition Scheduling").

    Raises:
        UsageError: a choice is empty, unordered or larger than the supernet, or sizes do not fit.
    """

    required: ClassVar[tuple[str, ...]] = _CHOICES

    name: str
    embed_dim: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    num_heads: tuple[int, ...]
    depth: tuple[int, ...]
    super_embed_dim: int | None = None
    super_mlp_ratio: float | None = None
    super_num_heads: int | None = None
    super_depth: int | None = None
    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    head_dim: int = 64
    max_relative_position: int = 14
    schedule_params: int | None = None

    def __post_init__(self) -> None:
        check_name("a space", self.name)
        for name in _CHOICES:
            check_choices(self.name, name, getattr(self, name), _MOST[name])
            if name != "mlp_ratio":
                check_whole(self.name, name, getattr(self, name))
            choices = tuple(plain_number(c) for c in getattr(self, name))
            object.__setattr__(self, name, choices)
            limit = getattr(self, f"super_{name}")
            if limit is None:
                object.__setattr__(self, f"super_{name}", choices[-1])
                continue
            if name == "mlp_ratio":
                check_choices(self.name, f"super_{name}", [limit], _MOST[name])
            else:
                check_size(self.name, f"super_{name}", limit, _MOST[name])
            if limit < choices[-1]:
                raise UsageError(
                    f"{name}={choices[-1]} of space {self.name!r} is over its supernet's {name}, {limit}; "
                    f"raise super_{name} or drop the choice."
                )
        for name in ("image_size", "patch_size", "in_channels", "head_dim", "max_relative_position"):
            check_size(self.name, name, getattr(self, name), _MOST.get(name, PIXELS.most))
        check_optional_count(self.name, "schedule_params", self.schedule_params)
        narrowest = int(self.embed_dim[0] * self.mlp_ratio[0])
        heads = self.super_num_heads * self.head_dim
        if narrowest < 1 or max(heads, self.super_hidden_dim) > MOST_SIZE:
            raise UsageError(
                f"The MLPs of space {self.name!r} are {narrowest:,} to {self.super_hidden_dim:,} channels "
                f"wide and its heads together {heads:,}; widths of 1 to {MOST_SIZE:,} are possible."
            )
        if self.image_size % self.patch_size:
            raise UsageError(
                f"image_size={self.image_size} of space {self.name!r} is no multiple of "
                f"patch_size={self.patch_size}."
            )

    # -- sizes -------------------------------------------------------------------------------------------

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of the image."""
        return self.grid_size**2

    @property
    def num_tokens(self) -> int:
        """Patches and the cls token."""
        return self.num_patches + 1

    @property
    def super_hidden_dim(self) -> int:
        """MLP width of the supernet."""
        return int(self.super_embed_dim * self.super_mlp_ratio)

    # -- groups and counting -----------------------------------------------------------------------------

    @property
    def group_axis(self) -> str:
        """The choice by which subnets are grouped."""
        return "embed_dim"

    @property
    def groups(self) -> tuple[int, ...]:
        """The embed_dim of each group, smallest first; group i is the set of subnets of ``groups[i]``."""
        return self.embed_dim

    def group_of(self, subnet: Subnet) -> int:
        """The number of the group that a subnet belongs to, from 0."""
        self.validate(subnet)
        return self.embed_dim.index(subnet.embed_dim)

    def _group_dims(self, groups: Sequence[int] | None) -> tuple[int, ...]:
        return tuple(self.embed_dim[g] for g in check_groups(self.name, groups, len(self.embed_dim)))

    def count(self, groups: Sequence[int] | None = None) -> int:
        """The exact number of subnets, of the whole space or of some groups."""
        per_layer = len(self.num_heads) * len(self.mlp_ratio)
        return len(self._group_dims(groups)) * sum(per_layer**depth for depth in self.depth)

    def smallest(self, groups: Sequence[int] | None = None) -> Subnet:
        """The subnet with the smallest choice everywhere."""
        return self._uniform_subnet(self._group_dims(groups)[0], 0)

    def largest(self, groups: Sequence[int] | None = None) -> Subnet:
        """The subnet with the largest choice everywhere."""
        return self._uniform_subnet(self._group_dims(groups)[-1], -1)

    def _uniform_subnet(self, embed_dim: int, which: int) -> Subnet:
        depth = self.depth[which]
        return Subnet(embed_dim, depth, (self.num_heads[which],) * depth, (self.mlp_ratio[which],) * depth)

    # -- making and reading subnets ----------------------------------------------------------------------

    def subnet(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int | Sequence[int],
        mlp_ratio: float | Sequence[float],
    ) -> Subnet:
        """A checked subnet.

        Args:
            embed_dim, depth: of the subnet.
            num_heads, mlp_ratio: a number for all layers, or one for each of the ``depth`` layers.

        Raises:
            UsageError: a list has another length, or a choice is outside the space.

        Example:
            >>> str(load_space("digits").subnet(embed_dim=36, depth=3, num_heads=2, mlp_ratio=[2, 3, 2]))
            'd36-h2,2,2-r2,3,2'
        """
        if depth not in self.depth:
            raise UsageError(outside(self.name, "depth", depth, self.depth))
        heads = entries(self.name, "num_heads", num_heads, depth)
        return self._checked(
            Subnet(embed_dim, depth, heads, entries(self.name, "mlp_ratio", mlp_ratio, depth))
        )

    def parse(self, text: str) -> Subnet:
        """Read and check a subnet in the form of ``str(subnet)``. Raises: UsageError."""
        return self._checked(Subnet.parse(text))

    def subnet_from_json(self, data: str | Mapping[str, Any]) -> Subnet:
        """Read and check a subnet in the form of ``subnet.to_json()``. Raises: UsageError."""
        return self._checked(Subnet.from_json(data))

    def _checked(self, subnet: Subnet) -> Subnet:
        self.validate(subnet)
        return subnet

    # -- choosing ----------------------------------------------------------------------------------------

    def sample(self, rng: random.Random, groups: Sequence[int] | None = None) -> Subnet:
        """Draw a subnet: embed_dim uniform over the groups, every other choice uniform (AutoFormer).

        Args:
            rng: a private ``random.Random``; the module-level generator is never used.
            groups: numbers of the groups to draw from; all where None.

        Raises:
            UsageError: a group does not exist.

        Example:
            >>> load_space("digits").sample(random.Random(0), groups=(0, 1)).embed_dim in (24, 36)
            True
        """
        embed_dim = rng.choice(self._group_dims(groups))
        depth = rng.choice(self.depth)
        heads = tuple(rng.choice(self.num_heads) for _ in range(depth))
        ratios = tuple(rng.choice(self.mlp_ratio) for _ in range(depth))
        return Subnet(embed_dim, depth, heads, ratios)

    def mutate(
        self,
        subnet: Subnet,
        rng: random.Random,
        p_depth: float = 0.4,
        p_layer: float = 0.2,
        p_embed: float = 0.4,
    ) -> Subnet:
        """A mutated copy, as AutoFormer's evolution makes it.

        Args:
            subnet: the parent.
            rng: a private generator.
            p_depth: probability of a new depth (extended at random or cut at the end).
            p_layer: probability of a new ratio, and of a new head count, of each layer.
            p_embed: probability of a new embed_dim.
        """
        depth, embed_dim = subnet.depth, subnet.embed_dim
        if rng.random() < p_depth:
            depth = rng.choice(self.depth)
        ratios = [
            rng.choice(self.mlp_ratio) if i >= subnet.depth or rng.random() < p_layer else subnet.mlp_ratio[i]
            for i in range(depth)
        ]
        heads = [
            rng.choice(self.num_heads) if i >= subnet.depth or rng.random() < p_layer else subnet.num_heads[i]
            for i in range(depth)
        ]
        if rng.random() < p_embed:
            embed_dim = rng.choice(self.embed_dim)
        return Subnet(embed_dim, depth, tuple(heads), tuple(ratios))

    def can_cross(self, first: Subnet, second: Subnet) -> bool:
        """Return whether two parents can have children: those of equal depth can."""
        return first.depth == second.depth

    def crossover(self, first: Subnet, second: Subnet, rng: random.Random) -> Subnet:
        """A child of two parents of equal depth: each choice from either, by a fair coin.

        Raises:
            UsageError: the depths differ (the published code zips such parents into malformed subnets).
        """
        if first.depth != second.depth:
            raise UsageError(f"Crossover needs parents of one depth, not {first.depth} and {second.depth}.")
        heads = tuple(rng.choice(pair) for pair in zip(first.num_heads, second.num_heads, strict=True))
        ratios = tuple(rng.choice(pair) for pair in zip(first.mlp_ratio, second.mlp_ratio, strict=True))
        return Subnet(rng.choice((first.embed_dim, second.embed_dim)), first.depth, heads, ratios)

    def neighbours(self, subnet: Subnet) -> Iterator[Subnet]:
        """Every subnet one step away in one choice: the next smaller or larger embed_dim, depth (the new
        last layer copies the old one), or one layer's heads or ratio."""
        self.validate(subnet)
        for embed_dim in adjacent(self.embed_dim, subnet.embed_dim):
            yield dataclasses.replace(subnet, embed_dim=embed_dim)
        for depth in adjacent(self.depth, subnet.depth):
            grown = max(0, depth - subnet.depth)
            heads = subnet.num_heads[:depth] + subnet.num_heads[-1:] * grown
            ratios = subnet.mlp_ratio[:depth] + subnet.mlp_ratio[-1:] * grown
            yield Subnet(subnet.embed_dim, depth, heads, ratios)
        for name in ("num_heads", "mlp_ratio"):
            values = getattr(subnet, name)
            for i, value in enumerate(values):
                for other in adjacent(getattr(self, name), value):
                    yield dataclasses.replace(subnet, **{name: values[:i] + (other,) + values[i + 1 :]})

    # -- membership --------------------------------------------------------------------------------------

    def validate(self, subnet: Subnet) -> None:
        """Check that a subnet belongs to the space.

        Raises:
            UsageError: the sentence names the choice, its value and what is allowed.
        """
        if not isinstance(subnet, Subnet):
            raise UsageError(
                f"{subnet} is no subnet of space {self.name!r}, which holds vision transformers."
            )
        for name in ("embed_dim", "depth"):
            value = getattr(subnet, name)
            if value not in getattr(self, name):
                raise UsageError(outside(self.name, name, value, getattr(self, name)))
        for name in ("num_heads", "mlp_ratio"):
            for layer, value in enumerate(getattr(subnet, name)):
                if value not in getattr(self, name):
                    raise UsageError(
                        outside(self.name, name, value, getattr(self, name), f" of layer {layer}")
                    )
