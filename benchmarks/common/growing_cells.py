"""What the finished cells of benchmarks/growing.py say: a row per cell, and paired differences with intervals."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.growing_plan import FAMILY, SETTINGS, THREE, TRANSITIONS, TWO, UNIFORM
from common.growing_statistics import holm, p_value
from plateau import LEVEL, WINDOW, steps_until_below

from growtas.comparing.plan import Recorded, read_plan
from growtas.comparing.specs import MethodSpec
from growtas.comparing.statistics import mean_interval
from growtas.comparing.summary import read_cells
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
"""Columns of cells.csv after setting, method and seed."""

COMPARED = (*GROUPS, "smallest", "largest", "found", "left_at_epoch", "cosine")
"""Measures of which differences are given."""

BASELINES = {
    TWO: ("uniform:group_weights=5,5,2", "growtas:stages=1,2/0,1,2"),
    THREE: ("uniform:group_weights=11,5,2",),
    **{method: (TWO,) for method in ("growtas+", "growtas+:lr=1.5e-3", *TRANSITIONS[1:])},
}
"""What a method is compared with besides uniform: as many steps of each group in no order; large first; what
it goes on from; the midpoint."""

DIFFERENCES = ("setting", "method", "baseline", "measure", "pairs", "mean", "low", "high", "p", "p_holm")
WORDS = ("setting", "method", "baseline", "measure")  # columns of text
CLASSES_OF_LEVEL = 62  # whose plateau ends at a loss of LEVEL


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
            rows.append((setting.key, str(spec), seed, *row))
    return Table.of(("setting", "method", "seed", *MEASURES), rows)


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
    """What the log says; nothing of a second phase, which goes on from trained weights."""
    if spec.first is not None:
        return {}
    path, config, images = recorded.plan.cell_path(spec, seed), cell["run"], recorded.plan.images
    level = plateau_level(images["num_classes"], config.get("label_noise") or 0.0)
    losses = (record["loss"] for record in read_log(path, "step"))
    steps = steps_until_below(losses, level, WINDOW)
    per_epoch = max(1, images["train"] // config["batch_size"])
    measured = [record for record in read_log(path, "interference") if record["step"]]
    found = {"left_at_epoch": None if steps is None else steps / per_epoch}
    for name, values in (
        ("cosine", [record["cosine"] for record in measured]),
        ("control", [record["control"]["cosine"] for record in measured]),
    ):
        known = [value for value in values if value is not None]
        found |= {name: statistics.fmean(known), f"{name}_last": known[-1]} if known else {}
    return found


def _rounded(value: float | None) -> float | int | None:
    """Five digits are more than the seeds leave certain."""
    return None if value is None else float(f"{value:.5g}")


def differences(found: Table) -> Table:
    """Paired differences of every method to uniform and to its controls, by setting and measure.

    Args:
        found: as :func:`cells` gives it.
    """
    values: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for record in found.records():
        values.setdefault((record["setting"], record["method"]), {})[record["seed"]] = record
    rows = [row for key in values for row in _of_method(values, *key)]
    tested = {
        (row["setting"], row["method"]): row["p"]
        for row in rows
        if row["baseline"] == UNIFORM and row["measure"] == GROUPS[0]
    }
    adjusted = dict(zip(FAMILY, holm([tested.get(key) for key in FAMILY]), strict=True))
    for row in rows:
        planned = row["baseline"] == UNIFORM and row["measure"] == GROUPS[0]
        row["p_holm"] = adjusted.get((row["setting"], row["method"])) if planned else None
    cut = ("mean", "low", "high", "p", "p_holm")
    return Table.of(
        DIFFERENCES,
        ((_rounded(row[name]) if name in cut else row[name] for name in DIFFERENCES) for row in rows),
    )


def _of_method(values: Mapping, setting: str, method: str) -> Iterator[dict[str, Any]]:
    own = values[setting, method]
    for baseline in (UNIFORM, *BASELINES.get(method, ())):
        other = values.get((setting, baseline), {})
        for measure in COMPARED if baseline != method else ():
            pairs = [(own[s][measure], other[s][measure]) for s in sorted(own.keys() & other.keys())]
            gaps = [a - b for a, b in pairs if None not in (a, b)]
            if gaps:
                known = mean_interval(gaps)
                yield {
                    "setting": setting, "method": method, "baseline": baseline, "measure": measure,
                    "pairs": len(gaps), "mean": known.mean, "low": known.low, "high": known.high,
                    "p": p_value(gaps),
                }  # fmt: skip


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
