"""The result of a search. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.subnet import AnySubnet, subnet_from_json


@dataclass(frozen=True)
class Score:
    """The accuracy of one subnet, as a scorer gives it.

    Args:
        top1: per cent of the images classified correctly.
        images: how many it was evaluated on: the first ones of the split.
        correct: one bit per image, the first image in the highest bit of the first byte, set where its class
            was found; None where it was not kept.
    """

    top1: float
    images: int
    correct: bytes | None = None


#: Scores subnets that are asked for at once, in order; each is used as soon as it comes.
Scorer = Callable[[Sequence[AnySubnet]], Iterable[Score]]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """One subnet that the search evaluated.

    Args:
        subnet: the architecture.
        top1: per cent of the search split's images classified correctly with inherited weights.
        params: parameters of the extracted model.
        macs: multiply-accumulates of one image.
        generation: of the evolution that first asked for it, from 0.
    """

    subnet: AnySubnet
    top1: float
    params: int
    macs: int
    generation: int

    def __repr__(self) -> str:
        return (
            f"Evaluation({self.subnet}: top-1 {self.top1:.2f} %, {self.params:,} parameters, "
            f"{self.macs:,} MACs, generation {self.generation})"
        )

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values; :meth:`from_json` reads it."""
        return {**vars(self), "subnet": self.subnet.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Evaluation:
        """Read what :meth:`to_json` gave; further keys are left aside."""
        fields = {name: data[name] for name in ("top1", "params", "macs", "generation")}
        return cls(subnet=subnet_from_json(data["subnet"]), **fields)


@dataclass(frozen=True, repr=False)
class SearchResult:
    """A finished search.

    Args:
        best: the subnet with the highest top1; among equals the one with the fewest parameters, then the
            one evaluated first.
        history: every evaluation in order.
        test_top1: per cent of the test split's images that the best subnet classifies correctly.
        feasible: how many subnets of the space meet the limits; None where they are too many to count.
        path: the log, from which the same result can be read again.
    """

    best: Evaluation
    history: tuple[Evaluation, ...]
    test_top1: float
    feasible: int | None
    path: Path

    @property
    def among(self) -> str:
        """How many subnets meet the limits, as it stands in a sentence."""
        return "more than can be counted" if self.feasible is None else f"{self.feasible:,}"

    def __repr__(self) -> str:
        return f"SearchResult({self})"

    def __str__(self) -> str:
        return (
            f"{self.best.subnet}: {self.best.params:,} parameters, {self.best.macs:,} MACs, "
            f"top-1 {self.best.top1:.2f} % on the search split and {self.test_top1:.2f} % on the test split; "
            f"the best of {len(self.history)} evaluated among {self.among} within the limits."
        )


def best_of(history: tuple[Evaluation, ...] | list[Evaluation]) -> Evaluation:
    """The evaluation a search ends with: highest top1, then fewest parameters, then first."""
    return min(history, key=lambda e: (-e.top1, e.params))  # min keeps the first among equals
