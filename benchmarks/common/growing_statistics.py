"""Paired t tests of a family of comparisons, and how many pairs it takes to see a difference."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from growtas.comparing.statistics import Interval

LEVEL, POWER = 0.05, 0.8


def p_value(differences: Sequence[float]) -> float | None:
    """The two-sided p of Student's t test that the mean of paired differences is zero.

    It is below 0.05 where :func:`growtas.comparing.statistics.mean_interval` excludes zero.

    Returns:
        None of fewer than two pairs.
    """
    from scipy.stats import t

    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:
        return float(mean == 0)
    return float(2 * t.sf(abs(mean) / deviation * math.sqrt(len(differences)), len(differences) - 1))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """The p of every comparison of a family, adjusted for their number.

    Args:
        values: the p of each; None where it was not run, which counts as one that shows nothing.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure" (Scand. J. Statist., 1979).

    Example:
        >>> holm([0.01, 0.04, None])
        [0.03, 0.08, None]
    """
    adjusted: list[float | None] = [None] * len(values)
    order = sorted((value, place) for place, value in enumerate(values) if value is not None)
    least = 0.0
    for rank, (value, place) in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * value))
        adjusted[place] = least
    return adjusted


def stratified(groups: Sequence[Sequence[float]], level: float = LEVEL) -> Interval | None:
    """The mean of paired differences over some settings, with an interval from the spread within each.

    Settings whose true differences are unlike widen the interval of a pool; here they do not. It is about the
    mean of these very settings, where a pool's is about settings like them. Every setting counts the same,
    however many pairs it has.

    Args:
        groups: differences of the pairs of each setting; those of one pair have no spread, and are left out.
        level: of the interval, 0.05 for 95 %.

    Source:
        Satterthwaite, "An approximate distribution of estimates of variance components" (Biometrics Bulletin,
        1946), for the degrees of freedom.
    """
    from scipy.stats import t

    groups = [group for group in groups if len(group) > 1]
    parts = [statistics.variance(group) / len(group) for group in groups]  # variances of the settings' means
    if not sum(parts):
        return None
    freedom = sum(parts) ** 2 / sum(p * p / (len(g) - 1) for p, g in zip(parts, groups, strict=True))
    mean = statistics.fmean(map(statistics.fmean, groups))
    half = float(t.ppf(1 - level / 2, freedom)) * math.sqrt(sum(parts)) / len(groups)
    return Interval(sum(map(len, groups)), mean, mean - half, mean + half)


def power(pairs: int, sigma: float, difference: float, level: float = LEVEL) -> float:
    """The probability that the two-sided t test of so many pairs finds a difference.

    Args:
        pairs: 2 or more.
        sigma: standard deviation of the differences.
        difference: the true mean.
        level: of the test.
    """
    from scipy.stats import nct, t

    least, shift = t.ppf(1 - level / 2, pairs - 1), difference / sigma * math.sqrt(pairs)
    return float(nct.sf(least, pairs - 1, shift) + nct.cdf(-least, pairs - 1, shift))


def pairs_needed(sigma: float, difference: float, level: float = LEVEL, wanted: float = POWER) -> int:
    """The fewest pairs that find a difference with the wanted probability."""
    return next(n for n in itertools.count(2) if power(n, sigma, difference, level) >= wanted)


def pairs_for_interval(sigma: float, half: float, level: float = LEVEL) -> int:
    """The fewest pairs whose interval, at the expected deviation, reaches no further than ``half``."""
    from scipy.stats import t

    return next(n for n in itertools.count(2) if t.ppf(1 - level / 2, n - 1) * sigma / math.sqrt(n) <= half)
