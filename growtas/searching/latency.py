"""Latency as a limit: the subnets within other limits that are also fast enough. No torch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Protocol

from growtas.errors import UsageError
from growtas.searching.feasible_mobilenet import LISTABLE
from growtas.searching.limits import Cost, FeasibleSet
from growtas.space import seeded_rng
from growtas.subnet import AnySubnet

_DRAWS = 100  # before one is led to the limit
_WALKS = 20


class Latency(Protocol):
    """Latencies of a space's subnets on one device, as :func:`growtas.latency` measures them.

    Attributes:
        on: where, such as ``cpu`` or ``onnxruntime``.
        batch: images of one call.
        threads: of the processor.
        direct: ``ms`` measures a subnet rather than to predict its latency.
        digest: of the numbers that ``ms`` follows from.
    """

    on: str
    batch: int
    threads: int
    direct: bool
    digest: str

    def ms(self, subnet: AnySubnet) -> float:
        """Milliseconds of a subnet; always the same."""

    def predict(self, subnet: AnySubnet) -> float:
        """Milliseconds of a subnet, predicted."""


class LatencyFeasibleSet(FeasibleSet):
    """The subnets within other limits whose latency is known, and within a limit too.

    Args:
        within: the subnets within the other limits.
        latency: of the subnets.
        max_ms: highest latency in milliseconds; any where None.

    Raises:
        UsageError: the limit is not a positive number, or no subnet within it is found; the sentence states
            the latencies seen.

    Attributes:
        count: exact where nothing is limited, or where latencies are predicted and the set is small; else
            None.
    """

    def __init__(self, within: FeasibleSet, latency: Latency, max_ms: float | None = None) -> None:
        if max_ms is not None and (
            isinstance(max_ms, bool) or not isinstance(max_ms, int | float) or not 0 < max_ms < float("inf")
        ):
            raise UsageError(f"max_latency_ms={max_ms!r} is not a positive number of milliseconds.")
        self.space, self.num_classes, self.limits = within.space, within.num_classes, within.limits
        self.latency, self.max_ms, self._within = latency, max_ms, within
        self._ms: dict[AnySubnet, float] = {}
        self._listed: list[AnySubnet] | None = None
        self.count = within.count
        if latency.direct:
            self.proposals = 2  # each one is measured
        if max_ms is None:
            return
        if not latency.direct and within.count is not None and within.count <= LISTABLE:
            self._listed = [subnet for subnet in within if self._is_fast(subnet)]
        self.count = None if self._listed is None else len(self._listed)
        self._known = self._found(seeded_rng("feasible latency"))
        if self._known is None:
            raise self._nothing_meets()

    def cost(self, subnet: AnySubnet) -> Cost:
        """Parameters and MACs of a subnet."""
        return self._within.cost(subnet)

    def latency_ms(self, subnet: AnySubnet) -> float:
        """Milliseconds of a subnet."""
        if subnet not in self._ms:
            self._ms[subnet] = round(self.latency.ms(subnet), 4)
        return self._ms[subnet]

    def __contains__(self, subnet: AnySubnet) -> bool:
        return subnet in self._within and self._is_fast(subnet)

    def __iter__(self) -> Iterator[AnySubnet]:
        return iter(self._listed or (subnet for subnet in self._within if self._is_fast(subnet)))

    def sample(self, rng: random.Random) -> AnySubnet:
        """Draw a subnet: as the other limits' set would, where one in some tens of those is fast enough; else
        one of the list of a small set, or one that single steps led to the limit.

        Args:
            rng: a private generator.
        """
        return self._within.sample(rng) if self.max_ms is None else self._found(rng) or self._known

    def identity(self) -> dict[str, Any]:
        """The limit and the latencies, as the log of a search holds them."""
        names = ("on", "batch", "threads", "digest")
        return {"max_ms": self.max_ms, **{name: getattr(self.latency, name) for name in names}}

    def _is_fast(self, subnet: AnySubnet) -> bool:
        return self.max_ms is None or self.latency_ms(subnet) <= self.max_ms

    def _found(self, rng: random.Random) -> AnySubnet | None:
        """A subnet drawn, or else of the list or led to; None where there is none."""
        for _ in range(_WALKS if self.latency.direct else _DRAWS):  # measuring takes its time
            subnet = self._within.sample(rng)
            if self._is_fast(subnet):
                return subnet
        if self._listed is not None:
            return rng.choice(self._listed) if self._listed else None
        for _ in range(_WALKS):
            subnet = self._walk(self._within.sample(rng), rng)
            if self._is_fast(subnet):
                return subnet
        return None

    def _walk(self, subnet: AnySubnet, rng: random.Random) -> AnySubnet:
        """Steps to a random neighbour that is predicted to be faster, until one is fast enough or none is."""
        predict = self.latency.predict
        while predict(subnet) > self.max_ms:
            now = predict(subnet)
            faster = [n for n in self.space.neighbours(subnet) if predict(n) < now and n in self._within]
            if not faster:
                break
            subnet = rng.choice(faster)
        return subnet

    def _nothing_meets(self) -> UsageError:
        low, high = min(self._ms.values()), max(self._ms.values())
        smallest = self.latency_ms(self.space.smallest())
        return UsageError(
            f"No subnet of {self.space.name} with {self.limits} was found within max_latency_ms="
            f"{self.max_ms:g}: those that were tried take {low:.3g} to {high:.3g} ms on {self.latency.on} "
            f"with a batch of {self.latency.batch}, and the smallest subnet takes {smallest:.3g} ms. Raise "
            "max_latency_ms."
        )
