"""Which backend wins: from measurements to choices."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

MARGIN = 1.03
MARGIN_IN_BRANCH = 1.01  # there most of the time is spent on what is the same for both
TOLERANCE = 0.97  # a size at which even the upper quartile is below has lost
IN_BRANCH = ("linear_gelu", "norm_qkv")
PASSES = ("forward", "step")

Measurement = dict[str, Any]


def gain(measurements: Sequence[Measurement]) -> float:
    """How much faster than torch a backend is on the whole; 0 where it is refused or slower at some size.

    Args:
        measurements: of one backend, operation, dtype and class.

    Returns:
        The smaller of two geometric means of the medians, of the forward pass and of both passes.
    """
    if not measurements or any("refused" in one for one in measurements):
        return 0.0
    if any(one[key][2] < TOLERANCE for one in measurements for key in PASSES):  # the upper quartile
        return 0.0
    return min(statistics.geometric_mean(one[key][0] for one in measurements) for key in PASSES)


def wins(op: str, measurements: Sequence[Measurement]) -> bool:
    """Return whether a backend beats torch beyond doubt."""
    own = any("own_us" in one for one in measurements)  # older records timed these operations alone
    return gain(measurements) > (MARGIN_IN_BRANCH if own and op in IN_BRANCH else MARGIN)


def decide(measurements: Sequence[Measurement]) -> dict[str, dict[str, dict[str, str]]]:
    """The backends that beat torch beyond doubt.

    Args:
        measurements: of one device.

    Returns:
        By operation, dtype and class of widths; a class is missing where torch stays.
    """
    table: dict[str, dict[str, dict[str, str]]] = {}
    groups: dict[tuple[str, str, str], dict[str, list[Measurement]]] = {}
    for one in measurements:
        key = one["op"], one["dtype"], one["class"]
        groups.setdefault(key, {}).setdefault(one["backend"], []).append(one)
    for (op, dtype, width_class), rivals in groups.items():
        winners = {name: gain(own) for name, own in rivals.items() if wins(op, own)}
        if winners:
            table.setdefault(op, {}).setdefault(dtype, {})[width_class] = max(winners, key=winners.get)
    return table
