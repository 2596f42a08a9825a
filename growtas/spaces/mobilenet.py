"""Search spaces of MobileNetV3 networks with elastic kernel, expand ratio and depth. No torch.

After Cai et al., "Once-for-All" (ICLR 2020): stages of up to ``max(depth)`` inverted-residual blocks,
whose kernel and expand ratio are chosen per block, and whose number per stage. A *group* (our choice, after
GrowTAS' groups of one embed_dim) is the set of subnets whose widest active block has one expand ratio; groups
count from 0, smallest first.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from growtas.errors import UsageError
from growtas.spaces.base import PlainSpace
from growtas.spaces.choices import adjacent, check_groups, entries, outside
from growtas.spaces.mobilenet_block import Block, make_divisible
from growtas.spaces.mobilenet_checks import check_fields
from growtas.spaces.mobilenet_subnet import FIELDS, MobileNetSubnet


@dataclass(frozen=True)
class MobileNetSpace(PlainSpace):
    """The choices of a MobileNetV3 space and the widths that are fixed; the defaults are OFA's.

    The network: a 3x3 convolution to ``stem_width`` with h-swish; a fixed block to ``first_width`` (kernel 3,
    expand 1, ReLU, no squeeze-and-excite); the stages; a 1x1 convolution to ``final_width`` with h-swish; the
    mean over the image; a linear map to ``feature_width`` without bias, h-swish; dropout; the classifier.

    Args:
        name: how runs and tables call it.
        kernel: choices of the depthwise kernel's side, odd, ascending.
        expand: choices of the middle width over the block's input width, ascending.
        depth: choices of a stage's number of blocks, ascending.
        stem_width, first_width, final_width, feature_width: the fixed widths.
        widths: output channels of each stage; their number is the number of stages.
        strides: of the first block of each stage.
        activations: of each stage, ``"relu"`` or ``"h-swish"``.
        squeeze_excite: of each stage, whether its blocks have squeeze-and-excite.
        stem_stride: of the first convolution.
        image_size: pixels of the square input.
        in_channels: channels of the input.
        dropout: before the classifier.
        schedule_params: the size C, in parameters, that the size-aware transition rule uses; the largest
            subnet's where None.

    Raises:
        UsageError: choices are empty or unordered, a kernel is even, the lists of the stages do not fit, or
            two expand ratios make the same network.
    """

    family: ClassVar[str] = "mobilenetv3"
    required: ClassVar[tuple[str, ...]] = FIELDS
    title: ClassVar[str] = "A MobileNetV3 space"

    name: str
    kernel: tuple[int, ...]
    expand: tuple[int, ...]
    depth: tuple[int, ...]
    stem_width: int = 16
    first_width: int = 16
    widths: tuple[int, ...] = (24, 40, 80, 112, 160)
    final_width: int = 960
    feature_width: int = 1280
    strides: tuple[int, ...] = (2, 2, 2, 1, 2)
    activations: tuple[str, ...] = ("relu", "relu", "h-swish", "h-swish", "h-swish")
    squeeze_excite: tuple[bool, ...] = (False, True, False, True, True)
    stem_stride: int = 2
    image_size: int = 224
    in_channels: int = 3
    dropout: float = 0.1
    schedule_params: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in FIELDS:
            object.__setattr__(self, name, tuple(int(choice) for choice in getattr(self, name)))
        for name in ("widths", "strides", "activations", "squeeze_excite"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    # -- geometry ----------------------------------------------------------------------------------------

    @property
    def stages(self) -> int:
        """Elastic stages."""
        return len(self.widths)

    @property
    def slots(self) -> int:
        """Places for blocks in each stage."""
        return self.depth[-1]

    def in_width(self, stage: int, index: int) -> int:
        """Channels that block ``index`` of a stage reads."""
        if index:
            return self.widths[stage]
        return self.widths[stage - 1] if stage else self.first_width

    def mid_width(self, stage: int, index: int, expand: int) -> int:
        """Channels inside block ``index`` of a stage at one expand ratio."""
        return make_divisible(round(self.in_width(stage, index) * expand))

    def block(self, stage: int, index: int, kernel: int, expand: int) -> Block:
        """The geometry of one block at one kernel and expand ratio."""
        mid_width = self.mid_width(stage, index, expand)
        return Block(
            stage=stage,
            index=index,
            in_width=self.in_width(stage, index),
            mid_width=mid_width,
            out_width=self.widths[stage],
            kernel=kernel,
            stride=1 if index else self.strides[stage],
            activation=self.activations[stage],
            squeeze_width=make_divisible(mid_width // 4) if self.squeeze_excite[stage] else 0,
        )

    def blocks(self, subnet: MobileNetSubnet) -> tuple[Block, ...]:
        """The active blocks of a subnet in order; those of ``largest()`` are all that the weights hold."""
        return tuple(
            self.block(*divmod(at, self.slots), subnet.kernel[at], subnet.expand[at]) for at in subnet.active
        )

    # -- groups and counting -----------------------------------------------------------------------------

    @property
    def group_axis(self) -> str:
        """The choice by which subnets are grouped."""
        return "expand"

    @property
    def groups(self) -> tuple[int, ...]:
        """The largest active expand ratio of each group, smallest first."""
        return self.expand

    def group_of(self, subnet: MobileNetSubnet) -> int:
        """The number of the group that a subnet belongs to, from 0."""
        self.validate(subnet)
        return self.expand.index(max(subnet.expand[at] for at in subnet.active))

    def count(self, groups: Sequence[int] | None = None) -> int:
        """The exact number of subnets, of the whole space or of some groups."""

        def up_to(group: int) -> int:  # subnets with no expand ratio above a group's
            per_block = len(self.kernel) * (group + 1)
            return sum(per_block**depth for depth in self.depth) ** self.stages

        wanted = check_groups(self.name, groups, len(self.expand))
        return sum(up_to(group) - (up_to(group - 1) if group else 0) for group in wanted)

    def smallest(self, groups: Sequence[int] | None = None) -> MobileNetSubnet:
        """The subnet with the smallest choice everywhere; in a group above 0 its first block is as wide as
        the group asks for."""
        subnet = self.subnet(self.kernel[0], self.expand[0], self.depth[0])
        widest = self.expand[check_groups(self.name, groups, len(self.expand))[0]]
        return dataclasses.replace(subnet, expand=(widest, *subnet.expand[1:]))

    def largest(self, groups: Sequence[int] | None = None) -> MobileNetSubnet:
        """The subnet with the largest choice everywhere."""
        widest = self.expand[check_groups(self.name, groups, len(self.expand))[-1]]
        return self.subnet(self.kernel[-1], widest, self.depth[-1])

    # -- making and reading subnets ----------------------------------------------------------------------

    def subnet(
        self, kernel: int | Sequence[int], expand: int | Sequence[int], depth: int | Sequence[int]
    ) -> MobileNetSubnet:
        """A checked subnet; what the depths leave out is set to the smallest choice.

        Args:
            kernel, expand: a number for all blocks, or one for each of ``stages * slots`` places (OFA: 20).
            depth: a number for all stages, or one per stage (OFA: 5).

        Raises:
            UsageError: a list has another length, or a choice is outside the space.

        Example:
            >>> from growtas.space import load_space
            >>> load_space("ofa-mobilenetv3").subnet(kernel=7, expand=6, depth=[4, 4, 4, 4, 2]).depth
            (4, 4, 4, 4, 2)
        """
        places = self.stages * self.slots
        subnet = MobileNetSubnet(
            entries(self.name, "kernel", kernel, places),
            entries(self.name, "expand", expand, places),
            entries(self.name, "depth", depth, self.stages),
        )
        self._check_choices(subnet)
        return self._normalised(subnet)

    def _normalised(self, subnet: MobileNetSubnet) -> MobileNetSubnet:
        active = set(subnet.active)
        kernel, expand = (
            tuple(value if at in active else smallest for at, value in enumerate(values))
            for values, smallest in ((subnet.kernel, self.kernel[0]), (subnet.expand, self.expand[0]))
        )
        return MobileNetSubnet(kernel, expand, subnet.depth)

    def parse(self, text: str) -> MobileNetSubnet:
        """Read and check a subnet in the form of ``str(subnet)``. Raises: UsageError."""
        subnet = MobileNetSubnet.parse(text)
        return self.subnet(subnet.kernel, subnet.expand, subnet.depth)

    def subnet_from_json(self, data: str | Mapping[str, Any]) -> MobileNetSubnet:
        """Read and check a subnet in the form of ``subnet.to_json()``. Raises: UsageError."""
        subnet = MobileNetSubnet.from_json(data)
        return self.subnet(subnet.kernel, subnet.expand, subnet.depth)

    # -- choosing ----------------------------------------------------------------------------------------

    def sample(self, rng: random.Random, groups: Sequence[int] | None = None) -> MobileNetSubnet:
        """Draw a subnet: its group uniform over the groups, every choice uniform given the group.

        Args:
            rng: a private ``random.Random``; the module-level generator is never used.
            groups: numbers of the groups to draw from; all where None.

        Raises:
            UsageError: a group does not exist.
        """
        group = rng.choice(check_groups(self.name, groups, len(self.expand)))
        places = range(self.stages * self.slots)
        while True:  # each round ends it with a chance of 1 / (group + 1) or more
            depth = tuple(rng.choice(self.depth) for _ in range(self.stages))
            kernel = tuple(rng.choice(self.kernel) for _ in places)
            expand = tuple(rng.choice(self.expand[: group + 1]) for _ in places)
            subnet = self._normalised(MobileNetSubnet(kernel, expand, depth))
            if max(subnet.expand) == self.expand[group]:
                return subnet

    def mutate(
        self,
        subnet: MobileNetSubnet,
        rng: random.Random,
        p_depth: float = 0.4,
        p_layer: float = 0.2,
        p_embed: float = 0.4,
    ) -> MobileNetSubnet:
        """A mutated copy.

        Args:
            subnet: the parent.
            rng: a private generator.
            p_depth: probability of a new depth, of each stage; new blocks are drawn at random.
            p_layer: probability of a new kernel, and of a new expand ratio, of each block.
            p_embed: of the vision transformers; there is no such choice here, and it is not used.
        """
        depth = tuple(rng.choice(self.depth) if rng.random() < p_depth else d for d in subnet.depth)
        was_active = set(subnet.active)
        values = (
            tuple(
                rng.choice(choices) if at not in was_active or rng.random() < p_layer else value
                for at, value in enumerate(parent)
            )
            for choices, parent in ((self.kernel, subnet.kernel), (self.expand, subnet.expand))
        )
        return self._normalised(MobileNetSubnet(*values, depth))

    def can_cross(self, first: MobileNetSubnet, second: MobileNetSubnet) -> bool:
        """Return whether two parents can have children: always, here."""
        return True

    def crossover(
        self, first: MobileNetSubnet, second: MobileNetSubnet, rng: random.Random
    ) -> MobileNetSubnet:
        """A child of two parents: each choice from either, by a fair coin; a block that only one of them has
        is that one's."""
        depth = tuple(rng.choice(pair) for pair in zip(first.depth, second.depth, strict=True))
        parents = (first, second)
        active = [set(parent.active) for parent in parents]

        def mixed(name: str) -> tuple[int, ...]:
            pairs = zip(*(getattr(parent, name) for parent in parents), strict=True)
            return tuple(
                rng.choice(pair) if (at in active[0]) == (at in active[1]) else pair[at in active[1]]
                for at, pair in enumerate(pairs)
            )

        return self._normalised(MobileNetSubnet(mixed("kernel"), mixed("expand"), depth))

    def neighbours(self, subnet: MobileNetSubnet) -> Iterator[MobileNetSubnet]:
        """Every subnet one step away in one choice: the next smaller or larger depth of a stage (the new last
        block copies the old one's choices), or one block's kernel or expand ratio."""
        self.validate(subnet)
        for stage, depth in enumerate(subnet.depth):
            first, last = stage * self.slots, stage * self.slots + depth - 1
            for other in adjacent(self.depth, depth):
                kernel, expand = (
                    tuple(v[last] if last < at < first + other else old for at, old in enumerate(v))
                    for v in (subnet.kernel, subnet.expand)
                )
                depths = subnet.depth[:stage] + (other,) + subnet.depth[stage + 1 :]
                yield self._normalised(MobileNetSubnet(kernel, expand, depths))
        for name in ("kernel", "expand"):
            values = getattr(subnet, name)
            for at in subnet.active:
                for other in adjacent(getattr(self, name), values[at]):
                    yield dataclasses.replace(subnet, **{name: values[:at] + (other,) + values[at + 1 :]})

    # -- membership --------------------------------------------------------------------------------------

    def _check_choices(self, subnet: MobileNetSubnet) -> None:
        if (len(subnet.depth), subnet.slots) != (self.stages, self.slots):
            raise UsageError(
                f"Space {self.name!r} has {self.stages} stages of {self.slots} places, "
                f"but the subnet has {len(subnet.depth)} of {subnet.slots}."
            )
        for name in FIELDS:
            for at, value in enumerate(getattr(subnet, name)):
                if value not in getattr(self, name):
                    stage, index = (at, None) if name == "depth" else divmod(at, self.slots)
                    where = f" of stage {stage}" if index is None else f" of block {index} of stage {stage}"
                    raise UsageError(outside(self.name, name, value, getattr(self, name), where))

    def validate(self, subnet: MobileNetSubnet) -> None:
        """Check that a subnet belongs to the space.

        Raises:
            UsageError: the sentence names the choice, its value and what is allowed.
        """
        if not isinstance(subnet, MobileNetSubnet):
            raise UsageError(
                f"{subnet} is no subnet of space {self.name!r}, which holds MobileNetV3 networks."
            )
        self._check_choices(subnet)
        if self._normalised(subnet) != subnet:
            raise UsageError(
                f"Subnet {subnet} chooses something for blocks that its depth leaves out, where only the "
                "smallest choice may stand; make it by the space's subnet(kernel=, expand=, depth=)."
            )
