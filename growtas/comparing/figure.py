"""The picture of a comparison: paired differences with their intervals. Imports matplotlib."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from growtas import atomic
from growtas.comparing.plan import Recorded
from growtas.comparing.specs import MethodSpec
from growtas.comparing.statistics import Interval
from growtas.comparing.summary import Summary
from growtas.plotting import STYLE, method_marker

SPREAD = 0.7  # of the room of one measure that the methods share


def looks(specs: Sequence[MethodSpec]) -> dict[MethodSpec, dict[str, str]]:
    """Colour and marker of each method of a comparison, as arguments of matplotlib's ``plot``.

    Args:
        specs: every method of the comparison in its order, so that a picture of some of them looks alike.
            Those of one method have its colour; those with settings are hollow and differ in their markers.
    """
    found, variants = {}, Counter()
    for spec in specs:
        variants[spec.name] += bool(spec.given)
        found[spec] = method_marker(spec.name, variants[spec.name] if spec.given else 0)
    return found


def intervals(axes: Axes, x: Sequence[float], found: Sequence[Interval], **style: Any) -> None:
    """Means as markers with their intervals as whiskers; one without an interval has none."""
    ends = [(0.0, 0.0) if f.low is None else (f.mean - f.low, f.high - f.mean) for f in found]
    whiskers = [[low for low, _ in ends], [high for _, high in ends]]
    axes.errorbar(x, [f.mean for f in found], whiskers, **{"linestyle": "none", "capsize": 3, **style})


def shifts(count: int) -> list[float]:
    """Where the methods that share the room of a measure stand in it."""
    return [SPREAD * ((number + 0.5) / count - 0.5) for number in range(count)]


def draw(path: Path, recorded: Recorded, summary: Summary) -> Path:
    """Draw the difference of every method to the baseline per group and limit.

    Args:
        path: of a ``.png`` file; written atomically.
        recorded: the plan and the methods.
        summary: with at least one difference.

    Returns:
        The path.
    """
    rows = [r for r in summary.rows if r.difference is not None and r.measure.family != "extreme"]
    measures = list(dict.fromkeys(row.measure for row in rows))
    specs = list(dict.fromkeys(row.spec for row in rows))
    look = looks(recorded.methods)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.5, 1.6 * len(measures)), 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.axhline(0, color="black", linewidth=1)
        for spec, shift in zip(specs, shifts(len(specs)), strict=True):
            own = {row.measure: row.difference for row in rows if row.spec == spec}
            places = [index + shift for index in range(len(measures))]
            intervals(axes, places, [own[measure] for measure in measures], label=str(spec), **look[spec])
        labels = [measure.label.replace(", ", "\n") for measure in measures]
        _compress(axes, [value for row in rows for value in _reach(row.difference)])
        axes.set_xticks(range(len(measures)), labels)
        axes.set_ylabel(f"top-1, difference to {recorded.methods[0]} (points)")
        plan = recorded.plan
        axes.set_title(
            f"{plan.data}, space {plan.space.name}, mean and 95 % confidence interval (paired seeds: "
            f"{recorded.seeds})"
        )
        axes.grid(axis="y", alpha=0.25)
        figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=min(5, len(specs) + 1))
        with atomic.replace(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    return path


def _reach(found: Interval) -> tuple[float, ...]:
    """How far from zero a difference and its interval lie."""
    return tuple(abs(value) for value in (found.mean, found.low, found.high) if value is not None)


def _compress(axes: Axes, reaches: list[float]) -> None:
    """Where a few differences dwarf the others, draw what lies far from zero on a logarithmic scale."""
    linear = 2 * statistics.median(reaches)
    if linear > 0 and max(reaches) > 4 * linear:
        axes.set_yscale("symlog", linthresh=linear, linscale=3)
        axes.axhspan(-linear, linear, color="0.95", zorder=0, label=f"linear up to ±{linear:.2g}")
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
