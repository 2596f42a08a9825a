"""Estimates from times that were taken in rounds: the typical time, the line of a fit, rank correlations."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Samples = Mapping[str, Sequence[float]]


def typical(samples: Samples, first: int = 0, step: int = 1) -> dict[str, float]:
    """The median of each name's times, after each round is divided by its level.

    A round's level is the median, over the names, of a time relative to that name's own median: how much
    slower everything ran in that round, because of the clock or of other programs.

    Args:
        samples: times by name, one for each round.
        first, step: of the rounds.
    """
    taken = {name: times[first::step] for name, times in samples.items()}
    middle = {name: statistics.median(times) for name, times in taken.items()}
    rounds = range(min(map(len, taken.values())))
    levels = [statistics.median(taken[name][r] / middle[name] for name in taken) for r in rounds]
    return {name: statistics.median(times[r] / levels[r] for r in rounds) for name, times in taken.items()}


def repeatability(samples: Samples) -> float:
    """The rank correlation of the typical times of every other round with those of the others."""
    halves = [typical(samples, first, 2) for first in (0, 1)]
    return rank_correlation(*([half[name] for name in samples] for half in halves))


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset and scale of ``y`` by ``x``, of least squares of the relative error; neither is negative."""
    weights = [1 / value**2 for value in y]
    total = sum(weights)
    mean_x, mean_y = (sum(w * v for w, v in zip(weights, values, strict=True)) / total for values in (x, y))
    both = list(zip(weights, x, y, strict=True))
    variance = sum(w * (a - mean_x) ** 2 for w, a, _ in both)
    scale = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in both) / variance if variance else 0.0
    offset = mean_y - scale * mean_x
    if scale > 0 and offset >= 0:
        return offset, scale
    inverse = [a / b for a, b in zip(x, y, strict=True)]
    return 0.0, sum(inverse) / sum(value**2 for value in inverse)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, with the mean rank of equal values; 0 where all values of one are equal."""
    try:
        return statistics.correlation(_ranks(a), _ranks(b))
    except statistics.StatisticsError:
        return 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
