"""The numbers of benchmarks/growing.py: a row per finished cell, and paired differences with intervals."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plateau import LEVEL, WINDOW, steps_until_below

from common.growing_plan import (
    BATCHES,
    FAMILY,
    POOLED,
    REVERSED,
    SETTINGS,
    SHUFFLED_THREE,
    SHUFFLED_TWO,
    THREE,
    TRANSITIONS,
    TWO,
    UNIFORM,
    UNPLANNED,
)
from common.growing_statistics import holm, p_value
from growtas.comparing.plan import Recorded, read_plan
from growtas.comparing.specs import MethodSpec
from growtas.comparing.statistics import mean_interval
from growtas.comparing.summary import read_cells
from growtas.errors import UsageError
from growtas.table import Table
from growtas.training.log import read_log

GROUPS = ("small", "middle", "large")
FOUND = ("found_1", "found_2", "found_3")
MEASURES = {
    **{name: f"mean top-1 of random subnets, {name} group" for name in GROUPS},
    "smallest": "top-1 of the smallest subnet of all",
    "largest": "top-1 of the largest subnet of all",
    **{name: f"top-1 of the subnet found under limit {name[-1]}" for name in FOUND},
    "found": "mean top-1 of the subnets found under the limits",
    "cpu_seconds": "processor time of training",
    "left_at_epoch": "when the training loss left the plateau",
    "cosine": "of gradients of the small and the large group, mean along the run",
    "control": "the same of two subnets of the small group",
    "cosine_last": "at the end",
    "control_last": "at the end",
}
"""Columns of cells.csv after setting, method and seed, and before the processor's name."""

CELL_COLUMNS = ("setting", "method", "seed", *MEASURES, "processor")

COMPARED = (*GROUPS, "smallest", "largest", "found", "left_at_epoch", "cosine")
"""Measures of which differences are given."""

AGAIN = f"{TWO} again"
"""Cells of growtas that ran a second time, on another machine, because others go on from their weights."""

SECOND_PHASES = ("growtas+", "growtas+:lr=1.5e-3")

BASELINES = {
    TWO: (SHUFFLED_TWO, REVERSED),
    THREE: (SHUFFLED_THREE,),
    AGAIN: (TWO,),
    **{method: (TWO, AGAIN) for method in (*SECOND_PHASES, *TRANSITIONS[1:])},
}
"""Methods that one is compared with besides uniform: its controls; what it goes on from; the midpoint."""

DIFFERENCES = ("setting", "method", "baseline", "measure", "pairs", "mean", "low", "high", "p", "p_holm")
WORDS = (*DIFFERENCES[:4], "processor")  # columns of text
POOL = "pool: "  # in front of its name, in the column of settings
CLASSES_OF_LEVEL = 62  # whose plateau ends at a loss of LEVEL
Values = Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]  # rows by setting and method, by seed


def plateau_level(classes: int, noise: float) -> float:
    """The mean loss below which a run has left the plateau: 3.0 of 62 classes.

    Args:
        classes: the loss of guessing is their logarithm, and the level the same share of it for any number.
        noise: share of the labels that are drawn at random; the loss of those stays that of guessing.
    """
    share = LEVEL / math.log(CLASSES_OF_LEVEL)
    return math.log(classes) * (noise + (1 - noise) * share)


def cells(out: Path) -> Table:
    """Every finished cell of the plan.

    Args:
        out: the folder of the settings' folders.

    Raises:
        GrowtasError: a file is damaged.
    """
    rows = []
    for setting in SETTINGS:
        recorded = read_plan(out / setting.key)
        for (spec, seed), cell in read_cells(recorded).items() if recorded else ():
            values = {**_accuracies(cell), **_along_the_run(recorded, spec, seed, cell)}
            row = (_rounded(values.get(name)) for name in MEASURES)
            where = processor_file(recorded.plan.cell_path(spec, seed))
            processor = where.read_text().strip() if where.is_file() else ""
            rows.append((setting.key, str(spec), seed, *row, processor))
    return Table.of(CELL_COLUMNS, rows)


def processor_file(run: Path) -> Path:
    """The file beside a finished run with the name of the processor that it ended on."""
    return run.parent / f"{run.name}.processor.txt"


def read_finished(path: Path) -> Table:
    """The rows that :func:`cells` gave, from a cells.csv.

    Raises:
        UsageError: it holds no such rows, or a setting that is not planned.
    """
    found = read_table(path)
    if found.columns != CELL_COLUMNS:
        raise UsageError(f"{path} holds no table of cells; give a cells.csv that `growing.py report` wrote.")
    if unknown := set(found.column("setting")) - {each.key for each in SETTINGS}:
        raise UsageError(f"{path} holds settings that are not planned: {', '.join(sorted(unknown))}.")
    return Table.of(CELL_COLUMNS, ((*row[:2], int(row[2]), *row[3:]) for row in found.rows))


def joined(earlier: Table, found: Table) -> Table:
    """The cells of two tables, in the order of the plan; of both the earlier.

    A cell of growtas that ran twice is kept twice, the second time as :data:`AGAIN`; rows of equal numbers
    are one run, whose processor one table may lack.
    """
    rows = {row[:3]: row for table in (found, earlier) for row in table.rows}
    known = {row[:3]: row for row in earlier.rows}
    again = [
        (row[0], AGAIN, *row[2:])
        for row in found.rows
        if row[1] == TWO and known.get(row[:3], row)[:-1] != row[:-1]
    ]
    rows |= {row[:3]: row for row in again}
    keys = [each.key for each in SETTINGS]
    methods = [*dict.fromkeys(method for batch in BATCHES for method in batch.methods), AGAIN]
    order = sorted(rows, key=lambda key: (keys.index(key[0]), methods.index(key[1]), key[2]))
    return Table.of(CELL_COLUMNS, (rows[key] for key in order))


def _accuracies(cell: Mapping[str, Any]) -> dict[str, float | None]:
    groups, found = cell["groups"], [each["top1"] for each in cell["searched"]]
    return {
        **dict(zip(GROUPS, (group["top1"] for group in groups), strict=True)),
        "smallest": groups[0]["smallest"]["top1"],
        "largest": groups[-1]["largest"]["top1"],
        **dict(zip(FOUND, found, strict=True)),
        "found": statistics.fmean(found),
        "cpu_seconds": cell["time"]["cpu"],
    }


def _along_the_run(
    recorded: Recorded, spec: MethodSpec, seed: int, cell: Mapping[str, Any]
) -> dict[str, float | None]:
    """Measures from the log; none of a second phase, which goes on from trained weights."""
    if spec.first is not None:
        return {}
    path, config, images = recorded.plan.cell_path(spec, seed), cell["run"], recorded.plan.images
    level = plateau_level(images["num_classes"], _noise(config["data"]))
    losses, measured = [], []
    for record in read_log(path):
        if record["event"] == "step":
            losses.append(record["loss"])
        elif record["event"] == "interference" and record["step"]:
            measured.append(record)
    steps = steps_until_below(losses, level, WINDOW)
    per_epoch = max(1, images["train"] // config["batch_size"])
    found = {"left_at_epoch": None if steps is None else steps / per_epoch}
    for name, values in (
        ("cosine", [record["cosine"] for record in measured]),
        ("control", [record["control"]["cosine"] for record in measured]),
    ):
        known = [value for value in values if value is not None]
        found |= {name: statistics.fmean(known), f"{name}_last": known[-1]} if known else {}
    return found


def _noise(data: str) -> float:
    """The share of labels that are replaced."""
    from growtas.training.data.rendered import RENDERED, read_rendered

    return read_rendered(data)[2] if data.partition(":")[0] in RENDERED else 0.0


def _rounded(value: float | None) -> float | int | None:
    """Five digits are more than the seeds leave certain."""
    return None if value is None else float(f"{value:.5g}")


def differences(found: Table) -> Table:
    """Paired differences of every method to uniform and to its controls, by setting and pool, and measure.

    Args:
        found: as :func:`cells` gives it.
    """
    values: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for record in found.records():
        values.setdefault((record["setting"], record["method"]), {})[record["seed"]] = record
    rows = [
        _row((setting, method, baseline, measure), _gaps(values, [setting], method, baseline, measure))
        for setting, method in values
        for baseline in baselines(method, (setting, AGAIN) in values)
        for measure in COMPARED
        if method != baseline
    ]
    pooled = {
        measure: [
            _row(
                (POOL + pool, method, baseline, measure),
                _gaps(values, POOLED[pool], method, baseline, measure),
            )
            for pool, method, baseline in (*FAMILY, *UNPLANNED)
        ]
        for measure in (*GROUPS, "found")
    }
    tested = pooled[GROUPS[0]][: len(FAMILY)]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = _rounded(adjusted)
    rows += [row for group in pooled.values() for row in group]
    return Table.of(DIFFERENCES, ([row[name] for name in DIFFERENCES] for row in rows if row["pairs"]))


def baselines(method: str, again: bool) -> Sequence[str]:
    """The methods that one is compared with.

    Args:
        method: one of the plan's.
        again: growtas ran twice; then a second phase is compared with the runs that it went on from alone.
    """
    others = (AGAIN,) if again and method in SECOND_PHASES else BASELINES.get(method, ())
    return (UNIFORM, *others)


def _gaps(values: Values, settings: Iterable[str], method: str, baseline: str, measure: str) -> list[float]:
    """The differences of all pairs of some settings."""
    found = []
    for setting in settings:
        own, other = (values.get((setting, each), {}) for each in (method, baseline))
        pairs = [(own[seed][measure], other[seed][measure]) for seed in sorted(own.keys() & other.keys())]
        found += [a - b for a, b in pairs if None not in (a, b)]
    return found


def _row(key: Sequence[str], gaps: Sequence[float]) -> dict[str, Any]:
    """A row of the differences, not yet corrected for their number."""
    row = dict.fromkeys(DIFFERENCES) | dict(zip(DIFFERENCES, key, strict=False)) | {"pairs": len(gaps)}
    if gaps:
        known = mean_interval(gaps)
        numbers = {"mean": known.mean, "low": known.low, "high": known.high, "p": p_value(gaps)}
        row |= {name: _rounded(value) for name, value in numbers.items()}
    return row


def read_table(path: Path) -> Table:
    """One of these tables that was written as CSV; an empty field is None.

    Args:
        path: of the file; a table without rows where there is none.
    """
    if not path.is_file():
        return Table((), ())
    with path.open(newline="") as file:
        columns, *rows = csv.reader(file)
    return Table.of(columns, (_typed(columns, row) for row in rows))


def _typed(columns: Iterable[str], row: Iterable[str]) -> Iterator[Any]:
    for name, text in zip(columns, row, strict=True):
        yield text if name in WORDS else float(text) if text else None
