"""Limits on a subnet's cost, and what a search asks of the set of subnets that meet them. No torch."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from growtas import cost
from growtas.errors import UsageError
from growtas.space import Space
from growtas.subnet import AnySubnet

Cost = tuple[int, int]  # parameters, MACs


@dataclass(frozen=True)
class Limits:
    """Upper bounds on the cost of a subnet; None means no limit.

    Args:
        max_params: most parameters of the extracted model.
        min_params: fewest parameters.
        max_macs: most multiply-accumulates of one image, as :func:`growtas.cost.macs` counts.

    Raises:
        UsageError: a limit is not a positive number, or the lower exceeds the upper one.
    """

    max_params: int | None = None
    min_params: int | None = None
    max_macs: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_params", "min_params", "max_macs"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise UsageError(f"{name}={value!r} is not a positive number; give a count such as 6e6.")
            # 6e6 is how people write limits; a lower limit rounds up, an upper one down
            rounded = -int(-value // 1) if name == "min_params" else int(value // 1)
            object.__setattr__(self, name, rounded)
        if self.max_params is not None and self.min_params is not None and self.min_params > self.max_params:
            raise UsageError(
                f"min_params={self.min_params:,} is above max_params={self.max_params:,}; "
                "no subnet can meet both. Lower min_params or raise max_params."
            )

    def params_meet(self, params: int) -> bool:
        """Return whether a parameter count lies within the limits."""
        return (self.min_params is None or params >= self.min_params) and (
            self.max_params is None or params <= self.max_params
        )

    def meet(self, params: int, macs: int) -> bool:
        """Return whether a cost lies within all limits."""
        return self.params_meet(params) and (self.max_macs is None or macs <= self.max_macs)

    def __str__(self) -> str:
        given = [f"{n}={v:,}" for n, v in vars(self).items() if v is not None]
        return ", ".join(given) or "no limit"


class FeasibleSet(ABC):
    """The subnets of a space that meet the limits; :func:`growtas.searching.feasible_set` makes one.

    Args:
        space: the search space.
        num_classes: outputs of the head, which count as parameters.
        limits: what a subnet may cost.

    Raises:
        UsageError: no subnet meets the limits; the sentence states what the space offers.

    Attributes:
        count: how many subnets there are; None where they are too many to be counted.
        proposals: subnets that are proposed for each one that a predictor chooses.
    """

    count: int | None
    proposals: int = 10

    def __init__(self, space: Space, num_classes: int, limits: Limits) -> None:
        self.space, self.num_classes, self.limits = space, num_classes, limits
        self._check_each_limit()

    def cost(self, subnet: AnySubnet) -> Cost:
        """Parameters and MACs of a subnet."""
        return self._exact_cost(subnet)

    def latency_ms(self, subnet: AnySubnet) -> float | None:
        """Milliseconds of a subnet; None where no latencies are known."""
        return None

    def identity(self) -> dict[str, Any] | None:
        """The limit of the latency and what it was measured on; None where no latencies are known."""
        return None

    def _exact_cost(self, subnet: AnySubnet) -> Cost:
        sizes = (subnet, self.space, self.num_classes)
        return cost.parameters(*sizes), cost.macs(*sizes)

    def __contains__(self, subnet: AnySubnet) -> bool:
        return subnet in self.space and self.limits.meet(*self.cost(subnet))

    @abstractmethod
    def __iter__(self) -> Iterator[AnySubnet]:
        """Every subnet within the limits, once; mind :attr:`count`."""

    @abstractmethod
    def sample(self, rng: random.Random) -> AnySubnet:
        """Draw a subnet within the limits.

        Args:
            rng: a private generator.
        """

    def _check_each_limit(self) -> None:
        smallest, largest = map(self._exact_cost, (self.space.smallest(), self.space.largest()))
        name, limits = self.space.name, self.limits
        choose = f"choose between {smallest[0]:,} and {largest[0]:,}"
        if limits.max_params is not None and limits.max_params < smallest[0]:
            raise UsageError(
                f"max_params={limits.max_params:,} is below the smallest subnet of {name} "
                f"({smallest[0]:,} parameters); {choose}."
            )
        if limits.min_params is not None and limits.min_params > largest[0]:
            raise UsageError(
                f"min_params={limits.min_params:,} is above the largest subnet of {name} "
                f"({largest[0]:,} parameters); {choose}."
            )
        if limits.max_macs is not None and limits.max_macs < smallest[1]:
            raise UsageError(
                f"max_macs={limits.max_macs:,} is below the smallest subnet of {name} "
                f"({smallest[1]:,} MACs); choose between {smallest[1]:,} and {largest[1]:,}."
            )
