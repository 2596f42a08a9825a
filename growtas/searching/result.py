"""The results of searches. No torch."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growtas.errors import UsageError
from growtas.searching import noise
from growtas.subnet import AnySubnet, subnet_from_json


@dataclass(frozen=True)
class Score:
    """The accuracy of one subnet, as a scorer gives it.

    Args:
        top1: per cent of the images classified correctly.
        images: how many it was evaluated on: the first ones of the evaluator's order.
        correct: one bit per image, the first image in the highest bit of the first byte, set where its class
            was found; None where it was not kept.
    """

    top1: float
    images: int
    correct: bytes | None = None


#: Scores subnets that are asked for at once, in order; each is used as soon as it comes. The function is
#: called with numbers of images that were evaluated, for the time left.
Scorer = Callable[[Sequence[AnySubnet], Callable[[int], object]], Iterable[Score]]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """One subnet that the search evaluated.

    Args:
        subnet: the architecture.
        top1: per cent of the search split's images classified correctly with inherited weights.
        params: parameters of the extracted model.
        macs: multiply-accumulates of one image.
        generation: of the search that first asked for it, from 0.
        images: how many images of the search split; None in an old log that does not tell.
        correct: which of these were classified correctly, as in :class:`Score`; None where it was not kept.
        objective: the cost that a Pareto search weighs against top1; None in other searches.
        latency_ms: milliseconds of one call; None where the search was given no latencies.
    """

    subnet: AnySubnet
    top1: float
    params: int
    macs: int
    generation: int
    images: int | None = None
    correct: bytes | None = field(default=None, compare=False)
    objective: float | None = None
    latency_ms: float | None = None

    def __repr__(self) -> str:
        return (
            f"Evaluation({self.subnet}: top-1 {self.top1:.2f} %, {self.params:,} parameters, "
            f"{self.macs:,} MACs{self.shown_latency}, generation {self.generation})"
        )

    @property
    def shown_latency(self) -> str:
        """The latency as it stands in a sentence behind the MACs; empty where it is not known."""
        return "" if self.latency_ms is None else f", {self.latency_ms:.3g} ms"

    @property
    def standard_error(self) -> float | None:
        """Binomial standard error of top1, in percentage points; None where the images were not counted."""
        return noise.standard_error(self)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values; :meth:`from_json` reads it."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        if self.correct is not None:
            values["correct"] = b64encode(self.correct).decode()
        return {**values, "subnet": self.subnet.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Evaluation:
        """Read what :meth:`to_json` gave; further keys are left aside."""
        fields = {name: data[name] for name in ("top1", "params", "macs", "generation")}
        fields |= {name: data[name] for name in ("images", "objective", "latency_ms") if name in data}
        if "correct" in data:
            fields["correct"] = b64decode(data["correct"])
        return cls(subnet=subnet_from_json(data["subnet"]), **fields)


@dataclass(frozen=True)
class Ranking:
    """How well a predictor ranks subnets that it did not choose, predicted before they were evaluated.

    Args:
        tau: Kendall's tau-b of predicted and evaluated top1, over the pairs within each generation; None
            where no two subnets differ.
        by_size: the same, of the subnets' size in place of the prediction.
        size: unit of that size, such as parameters.
        subnets: how many were held out, in the latest generations.
        bar: the predictor is used while tau is at least this.
        generations: how many generations it chose from.
    """

    tau: float | None
    by_size: float | None
    size: str
    subnets: int
    bar: float
    generations: int

    @property
    def good(self) -> bool:
        """True where tau reaches the bar."""
        return self.tau is not None and self.tau >= self.bar

    def __str__(self) -> str:
        if not self.subnets:
            return "no subnet has been predicted before its evaluation yet: not used"
        tau, by_size = ("unknown" if tau is None else f"{tau:.2f}" for tau in (self.tau, self.by_size))
        return (
            f"Kendall's tau {tau} on {self.subnets} held-out subnets ({by_size} by {self.size} alone), bar "
            f"{self.bar}: {'used' if self.good else 'not used'} (generations so far: {self.generations})"
        )


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
        ranking: how well the predictor ranked at the end; None in a search without one.
    """

    best: Evaluation
    history: tuple[Evaluation, ...]
    test_top1: float
    feasible: int | None
    path: Path
    ranking: Ranking | None = None

    @property
    def standard_error(self) -> float | None:
        """Binomial standard error of the best subnet's top1, in percentage points."""
        return self.best.standard_error

    @property
    def indistinguishable(self) -> tuple[Evaluation, ...]:
        """The other subnets that the images of the search do not tell apart from the best one (95 %)."""
        others = (other for other in self.history if other != self.best)
        return tuple(other for other in others if not noise.differ(self.best, other))

    @property
    def among(self) -> str:
        """How many subnets meet the limits, as it stands in a sentence."""
        return _among(self.feasible)

    def __repr__(self) -> str:
        return f"SearchResult({self})"

    def __str__(self) -> str:
        return (
            f"{self.best.subnet}: {self.best.params:,} parameters, {self.best.macs:,} MACs"
            f"{self.best.shown_latency}, top-1 {self.best.top1:.2f} % on the search split and "
            f"{self.test_top1:.2f} % on the test split; the best of {len(self.history)} evaluated among "
            f"{self.among} within the limits."
        )

    @property
    def certainty(self) -> str:
        """How sure the choice of the best subnet is, for printing; empty where images were not counted."""
        if self.standard_error is None:
            return ""
        alike = len(self.indistinguishable)
        return (
            f"standard error of its top-1 on the {self.best.images:,} search images: "
            f"{self.standard_error:.2f} points; {alike:,} of the other {len(self.history) - 1:,} subnets "
            "cannot be told apart from it on them (95 %)"
        )


@dataclass(frozen=True, repr=False)
class ParetoResult:
    """A finished Pareto search.

    Args:
        objective: name of the cost: ``params``, ``macs``, ``latency``, or that of an :class:`Objective`.
        unit: of the cost.
        front: the subnets that no evaluated one dominates (costs less and is as accurate, or costs as much
            and is more accurate), by rising cost; the point ``pareto:1`` is the first.
        history: every evaluation in order.
        test_top1: per cent of the test split's images, for each subnet of the front.
        feasible: how many subnets of the space meet the limits; None where they are too many to count.
        path: the log; the table and the figure of the front lie beside it.
        ranking: how well the predictor ranked at the end; None in a search without one.
    """

    objective: str
    unit: str
    front: tuple[Evaluation, ...]
    history: tuple[Evaluation, ...]
    test_top1: tuple[float, ...]
    feasible: int | None
    path: Path
    ranking: Ranking | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The table of every evaluation and the figure of the front."""
        return tuple(self.path.with_suffix(suffix) for suffix in (".csv", ".png", ".svg"))

    def within(self, limit: float) -> Evaluation:
        """The most accurate subnet of the front that costs at most ``limit``.

        Raises:
            UsageError: the limit is below the front.
        """
        admitted = [point for point in self.front if point.objective <= limit]
        if not admitted:
            raise UsageError(
                f"No point of the front costs at most {limit:,g} {self.unit}; the cheapest costs "
                f"{self.front[0].objective:,}."
            )
        return admitted[-1]

    def __repr__(self) -> str:
        return (
            f"ParetoResult({len(self.front)} subnets on the front of {self.objective} and top-1, "
            f"{len(self.history)} evaluated, {self.path})"
        )

    def __str__(self) -> str:
        """A table of the front."""
        lines = [f"{'point':>5}  {self.unit:>14}  {'top-1':>7}  {'± s.e.':>7}  {'test':>7}  subnet"]
        for number, (point, test) in enumerate(zip(self.front, self.test_top1, strict=True), start=1):
            error = "" if point.standard_error is None else f"{point.standard_error:.2f}"
            lines.append(
                f"{number:>5}  {point.objective:>14,}  {point.top1:>7.2f}  {error:>7}  {test:>7.2f}  "
                f"{point.subnet}"
            )
        lines.append(
            f"the front of {len(self.history)} evaluated among {_among(self.feasible)} within the limits; "
            "top-1 in % on the search split and on the test split."
        )
        return "\n".join(lines)


def _among(feasible: int | None) -> str:
    return "more than can be counted" if feasible is None else f"{feasible:,}"


def front_of(history: Iterable[Evaluation]) -> tuple[Evaluation, ...]:
    """The evaluations that no other one dominates, by rising objective; of equal ones, the first."""
    front: list[Evaluation] = []
    for evaluation in sorted(history, key=lambda e: (e.objective, -e.top1)):  # sorted keeps the first ahead
        if not front or evaluation.top1 > front[-1].top1:
            front.append(evaluation)
    return tuple(front)


def best_of(history: tuple[Evaluation, ...] | list[Evaluation]) -> Evaluation:
    """The evaluation a search ends with: highest top1, then fewest parameters, then first."""
    return min(history, key=lambda e: (-e.top1, e.params))  # min keeps the first among equals
