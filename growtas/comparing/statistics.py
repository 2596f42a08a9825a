"""Means with confidence intervals of paired differences. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds the true one with :data:`CONFIDENCE`.

    Args:
        count: pairs, or values, that it was computed from.
        mean: of them.
        low, high: ends of the interval; None where one value alone says nothing about the spread.
    """

    count: int
    mean: float
    low: float | None
    high: float | None

    def excludes(self, value: float) -> bool:
        """Return whether the interval exists and ``value`` lies outside it."""
        return self.low is not None and not self.low <= value <= self.high

    def text(self, form: str = "+.2f") -> str:
        """The mean, with the interval behind it where there is one: ``+2.00 [-0.48, +4.48]``."""
        mean = f"{self.mean:{form}}"
        return mean if self.low is None else f"{mean} [{self.low:{form}}, {self.high:{form}}]"


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of one or more values and its confidence interval by Student's t distribution.

    Source:
        Student, "The probable error of a mean" (Biometrika, 1908): mean +- t(n - 1) * s / sqrt(n).

    Example:
        >>> mean_interval([1.0, 2.0, 3.0]).text(".4f")
        '2.0000 [-0.4841, 4.4841]'
    """
    from scipy.stats import t  # takes a quarter of a second to import

    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(1, mean, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf((1 + confidence) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(count, mean, mean - half, mean + half)


def paired_interval(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """The interval of the mean of ``first - second``: pairs at equal places, such as methods of one seed."""
    return mean_interval([a - b for a, b in zip(first, second, strict=True)], confidence)
