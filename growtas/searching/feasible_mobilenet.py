"""The MobileNetV3 networks within limits. No torch.

A space such as OFA's has too many cost sums to be counted the way the vision transformers are, so a subnet
is drawn from the whole space and kept if it meets the limits. Where the limits leave so little that no draw
does, a drawn one is led there: by random single steps, each of which brings it nearer to the limits. Such a
subnet is not distributed as a kept one would be.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product

from growtas.errors import UsageError
from growtas.searching.limits import Cost, FeasibleSet, Limits
from growtas.space import seeded_rng
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.spaces.mobilenet_subnet import MobileNetSubnet

LISTABLE = 20_000  # spaces of at most this many subnets are listed, and so counted exactly
_DRAWS = 100  # from the whole space, before one is led to the limits
_FIRST_WALKS = 50  # before saying that no subnet meets the limits
_WALKS = 20  # per subnet, once one is known


class MobileNetFeasibleSet(FeasibleSet):
    """The MobileNetV3 networks of a space that meet the limits.

    Args:
        space: the search space.
        num_classes: outputs of the classifier, which count as parameters.
        limits: what a subnet may cost.

    Raises:
        UsageError: no subnet meets the limits, or, in a space too large to be listed, none was found that
            does. Of a single upper or lower limit the first is decided exactly.

    Attributes:
        count: exact where nothing is limited or the space is small; None else.
    """

    space: MobileNetSpace

    def __init__(self, space: MobileNetSpace, num_classes: int, limits: Limits) -> None:
        super().__init__(space, num_classes, limits)
        self._least, self._steps = self._exact_cost(space.smallest()), self._all_steps()
        self._listed: list[MobileNetSubnet] | None = None
        self.count = space.count() if limits == Limits() else None
        if space.count() <= LISTABLE:
            self._listed = [subnet for subnet in every_subnet(space) if limits.meet(*self.cost(subnet))]
            self.count = len(self._listed)
            if not self._listed:
                raise self._nothing_meets(every_subnet(space), f"No subnet of {space.name} meets")
        elif self.count is None:  # so that limits that cannot be met are known before the search
            self._known = self._found(seeded_rng("feasible"), _FIRST_WALKS)

    def cost(self, subnet: MobileNetSubnet) -> Cost:
        """Parameters and MACs of a subnet: the smallest one's, and what each block and depth adds to them."""
        params, macs = self._least
        for stage, depth in enumerate(subnet.depth):
            first = stage * subnet.slots
            steps = [
                self._steps[at, subnet.kernel[at], subnet.expand[at]] for at in range(first, first + depth)
            ]
            for step_params, step_macs in (self._steps[stage, depth], *steps):
                params, macs = params + step_params, macs + step_macs
        return params, macs

    def _all_steps(self) -> dict[tuple[int, ...], Cost]:
        """The cost that (stage, depth) adds to the smallest subnet, and (place, kernel, expand) to one
        that is deep enough there; measured by asking growtas.cost about single changes."""
        space, exact, steps = self.space, self._exact_cost, {}

        def added(changed: MobileNetSubnet, to: MobileNetSubnet) -> Cost:
            return tuple(new - old for new, old in zip(exact(changed), exact(to), strict=True))

        smallest = space.smallest()
        for stage in range(space.stages):
            for depth in space.depth:
                depths = (*smallest.depth[:stage], depth, *smallest.depth[stage + 1 :])
                deep = replace(smallest, depth=depths)
                steps[stage, depth] = added(deep, smallest)
            for at, kernel, expand in product(
                range(stage * space.slots, (stage + 1) * space.slots), space.kernel, space.expand
            ):
                changed = replace(
                    deep, kernel=_with(deep.kernel, at, kernel), expand=_with(deep.expand, at, expand)
                )
                steps[at, kernel, expand] = added(changed, deep)
        return steps

    def __iter__(self) -> Iterator[MobileNetSubnet]:
        if self._listed is not None:
            return iter(self._listed)
        return (subnet for subnet in every_subnet(self.space) if self.limits.meet(*self.cost(subnet)))

    def sample(self, rng: random.Random) -> MobileNetSubnet:
        """Draw a subnet within the limits: as ``space.sample`` would, where one in some tens of those meets
        them; else one of the list of a small space, or one that a random walk led there.

        Args:
            rng: a private generator.
        """
        try:
            return self._found(rng, 0 if self._listed is not None else _WALKS)
        except UsageError:
            return rng.choice(self._listed) if self._listed is not None else self._known

    def _found(self, rng: random.Random, walks: int) -> MobileNetSubnet:
        """A subnet drawn or led to. Raises: UsageError if neither leads to one."""
        for _ in range(_DRAWS):
            subnet = self.space.sample(rng)
            if self.limits.meet(*self.cost(subnet)):
                return subnet
        ends = [subnet]
        for _ in range(walks):
            ends.append(self._walk(self.space.sample(rng), rng))
            if self.limits.meet(*self.cost(ends[-1])):
                return ends[-1]
        found = f"{_DRAWS} draws and {walks} walks found no subnet of {self.space.name} that meets"
        raise self._nothing_meets(ends, found)

    def _walk(self, subnet: MobileNetSubnet, rng: random.Random) -> MobileNetSubnet:
        """Steps to a random neighbour that is nearer to the limits, until none is."""
        distance = self._distance(self.cost(subnet))
        while distance:
            neighbours = list(self.space.neighbours(subnet))
            rng.shuffle(neighbours)
            for neighbour in neighbours:
                nearer = self._distance(self.cost(neighbour))
                if nearer < distance:
                    subnet, distance = neighbour, nearer
                    break
            else:
                return subnet
        return subnet

    def _distance(self, found: Cost) -> float:
        """How far a cost lies outside the limits: the sum of the relative excesses, 0 within."""
        params, macs = found
        limits = self.limits
        distance = max(0.0, params / limits.max_params - 1) if limits.max_params else 0.0
        distance += max(0.0, 1 - params / limits.min_params) if limits.min_params else 0.0
        return distance + (max(0.0, macs / limits.max_macs - 1) if limits.max_macs else 0.0)

    def _nothing_meets(self, subnets: Iterable[MobileNetSubnet], sentence: str) -> UsageError:
        params, macs = self.cost(min(subnets, key=lambda subnet: self._distance(self.cost(subnet))))
        return UsageError(
            f"{sentence} {self.limits}; the nearest has {params:,} parameters and {macs:,} MACs. "
            "Widen the limits."
        )


def _with(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*values[:at], value, *values[at + 1 :])


def every_subnet(space: MobileNetSpace) -> Iterator[MobileNetSubnet]:
    """Every subnet of a space, once; mind ``space.count()``."""
    places = [stage * space.slots + i for stage in range(space.stages) for i in range(space.slots)]
    for depth in product(space.depth, repeat=space.stages):
        active = [at for at in places if at % space.slots < depth[at // space.slots]]
        for chosen in product(product(space.kernel, space.expand), repeat=len(active)):
            kernel, expand = [space.kernel[0]] * len(places), [space.expand[0]] * len(places)
            for at, choices in zip(active, chosen, strict=True):
                kernel[at], expand[at] = choices
            yield MobileNetSubnet(tuple(kernel), tuple(expand), depth)
