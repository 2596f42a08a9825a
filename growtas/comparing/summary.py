"""From the cells of a comparison to means, paired differences and their intervals. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growtas.comparing.plan import RESULT_NAME, Plan, Recorded
from growtas.comparing.specs import MethodSpec
from growtas.comparing.statistics import CONFIDENCE, Interval, mean_interval, paired_interval
from growtas.jobs.folder import read_json

Cells = Mapping[tuple[MethodSpec, int], dict[str, Any]]


@dataclass(frozen=True)
class Measure:
    """A number that every cell has, in per cent top-1 on the test split.

    Args:
        key: as in the files: ``group 24``, ``smallest 24``, ``largest 24``, ``all groups``, ``params=40000``.
        family: ``random``, ``extreme`` or ``searched``.
        label: for tables.
    """

    key: str
    family: str
    label: str


@dataclass(frozen=True)
class Row:
    """One method and one measure.

    Args:
        spec, measure: those two.
        level: mean over its seeds.
        difference: to the baseline, over the seeds that both have; None for the baseline itself and where
            there is no pair.
        strict: the same with Bonferroni's correction: all such intervals of a comparison hold together
            with 95 %.
        top5: mean top-5 over its seeds; None for means over random subnets, and where a cell lacks it (it
            was made before cells had it).
    """

    spec: MethodSpec
    measure: Measure
    level: Interval
    difference: Interval | None
    strict: Interval | None
    top5: Interval | None = None

    @property
    def decided(self) -> bool:
        """Return whether the interval of the difference excludes zero."""
        return self.difference is not None and self.difference.excludes(0.0)


@dataclass(frozen=True)
class TimeRow:
    """The time that training by one method took.

    Args:
        spec: the method.
        cpu, wall: mean seconds over the seeds of which they are known; None where of none.
        ratio: to the baseline's, over pairs; None for the baseline and where there is no pair.
        unknown: cells whose time is not known, since a process was killed.
    """

    spec: MethodSpec
    cpu: Interval | None
    wall: Interval | None
    ratio: Interval | None
    unknown: int


@dataclass(frozen=True, repr=False)
class Summary:
    """The numbers of a comparison.

    Args:
        rows: per method and measure, methods in order.
        times: per method.
        clock: ``cpu`` or ``wall``: what the ratios compare.
        missing: method and seed of each cell that is not finished.
    """

    rows: tuple[Row, ...]
    times: tuple[TimeRow, ...]
    clock: str
    missing: tuple[tuple[MethodSpec, int], ...]

    def __repr__(self) -> str:
        return (
            f"Summary(rows: {len(self.rows)}, methods: {len(self.times)}, missing cells: {len(self.missing)})"
        )


def read_cells(recorded: Recorded) -> dict[tuple[MethodSpec, int], dict[str, Any]]:
    """The results of every finished cell, by method and seed. Raises: GrowtasError: a file is damaged."""
    files = {cell: recorded.plan.cell_path(*cell) / RESULT_NAME for cell in recorded.cells()}
    return {cell: read_json(file, whole_cell) for cell, file in files.items() if file.exists()}


def whole_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell that holds all that a report takes from it; KeyError or TypeError where it does not."""
    cell_values(cell), cell_top5(cell), dict(cell["made_by"])
    math.fsum(found["params"] for found in cell["searched"])
    {name: cell["time"][name] for name in ("cpu", "wall", "device")}
    return cell


def measures(plan: Plan) -> tuple[Measure, ...]:
    """The measures by which the cells of a plan are compared."""
    axis, values = plan.space.group_axis, plan.space.groups
    return (
        *(Measure(f"group {value}", "random", f"{axis} {value}") for value in values),
        Measure("all groups", "random", "all groups"),
        *(
            Measure(f"{which} {value}", "extreme", f"{which} of {axis} {value}")
            for value in values
            for which in ("smallest", "largest")
        ),
        *(Measure(str(limit), "searched", limit.label) for limit in plan.limits),
    )


def cell_values(cell: Mapping[str, Any]) -> dict[str, float]:
    """The number of one cell for each measure, by its key."""
    values = {}
    for group in cell["groups"]:
        values[f"group {group['group']}"] = group["top1"]
        values[f"smallest {group['group']}"] = group["smallest"]["top1"]
        values[f"largest {group['group']}"] = group["largest"]["top1"]
    values["all groups"] = math.fsum(group["top1"] for group in cell["groups"]) / len(cell["groups"])
    return values | {found["limit"]: found["top1"] for found in cell["searched"]}


def cell_top5(cell: Mapping[str, Any]) -> dict[str, float]:
    """Top-5 of one cell for each measure that is a single subnet's, by its key; empty where it lacks it."""
    subnets = {found["limit"]: found for found in cell["searched"]}
    for group in cell["groups"]:
        subnets |= {f"{which} {group['group']}": group[which] for which in ("smallest", "largest")}
    return {key: subnet["top5"] for key, subnet in subnets.items() if "top5" in subnet}


def summarise(recorded: Recorded, cells: Cells) -> Summary:
    """Means, paired differences and the missing cells. Args: cells: as :func:`read_cells` gives them."""
    values = {key: cell_values(cell) for key, cell in cells.items()}
    top5 = {key: cell_top5(cell) for key, cell in cells.items()}
    baseline = recorded.methods[0]
    seeds = {spec: _seeds(cells, spec) for spec in recorded.methods}
    pairs = {spec: [s for s in own if (baseline, s) in values] for spec, own in seeds.items()}
    pairs[baseline] = []
    judged_by = measures(recorded.plan)
    # intervals that are looked at together: one alone would be wrong once in twenty times
    together = max(1, len(judged_by) * sum(len(own) > 1 for own in pairs.values()))
    rows = []
    for spec, own in seeds.items():
        for measure in judged_by if own else ():
            level = mean_interval([values[spec, s][measure.key] for s in own])
            difference = strict = None
            if pairs[spec]:
                both = [[values[which, s][measure.key] for s in pairs[spec]] for which in (spec, baseline)]
                difference = paired_interval(*both)
                strict = paired_interval(*both, 1 - (1 - CONFIDENCE) / together)
            deep = [top5[spec, s].get(measure.key) for s in own]
            rows.append(
                Row(spec, measure, level, difference, strict, None if None in deep else mean_interval(deep))
            )
    clock = "wall" if any(cell["time"]["device"] != "cpu" for cell in cells.values()) else "cpu"
    times = tuple(_times(baseline, cells, spec, clock) for spec in recorded.methods)
    missing = tuple(cell for cell in recorded.cells() if cell not in cells)
    return Summary(tuple(rows), times, clock, missing)


def _seeds(cells: Cells, spec: MethodSpec) -> list[int]:
    return sorted(seed for which, seed in cells if which == spec)


def _times(baseline: MethodSpec, cells: Cells, spec: MethodSpec, clock: str) -> TimeRow:
    def known(which: MethodSpec, name: str) -> dict[int, float]:
        times = {seed: cells[which, seed]["time"][name] for seed in _seeds(cells, which)}
        return {seed: seconds for seed, seconds in times.items() if seconds is not None}

    ours, theirs = known(spec, clock), known(baseline, clock)
    ratios = [] if spec == baseline else [ours[s] / theirs[s] for s in ours if theirs.get(s)]
    cpu, wall, ratio = (
        mean_interval(list(values)) if values else None
        for values in (known(spec, "cpu").values(), known(spec, "wall").values(), ratios)
    )
    return TimeRow(spec, cpu, wall, ratio, len(_seeds(cells, spec)) - len(ours))
