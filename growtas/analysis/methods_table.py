"""Table A: what the methods reach under the same limits, and what their training takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.methods_comparison import compare_for, unfit
from growtas.analysis.workspace import Part, Workspace
from growtas.comparing.plan import read_plan
from growtas.comparing.statistics import CONFIDENCE, Interval
from growtas.comparing.summary import Cells, Summary, read_cells, summarise
from growtas.errors import UsageError

__all__ = ["MethodsTable", "compare_for", "methods_table"]

_SEARCHED = (
    *("method", "limit", "seeds", "top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high"),
    *("params", "params_least", "params_most"),
    *("pairs", "difference", "difference_low", "difference_high"),
)
_CELLS = ("method", "limit", "seed", "subnet", "params", "top1", "top5")
_TIME = ("method", "seeds", "cpu_seconds", "wall_seconds", "ratio", "ratio_low", "ratio_high")
_PUBLISHED = (
    ("AutoFormer-T", 74.7, 92.6, 5.7, 2.56),
    ("PreNAS-T", 77.1, 93.4, 5.9, 2.56),
    ("GrowTAS-T", 75.2, 92.7, 5.9, 2.56),
    ("GrowTAS-T, PreNAS's augmentation", 77.1, 93.4, 5.9, 2.56),
    ("AutoFormer-B", 82.4, 95.7, 54.0, 6.62),
    ("PreNAS-B", 82.6, 96.0, 54.0, 6.62),
    ("GrowTAS-B", 82.6, 96.0, 53.2, 6.62),
    ("GrowTAS-B+", 82.7, 96.1, 53.3, 6.69),
)
_FEW = 4  # pairs: with fewer an interval is hardly worth its name


class MethodsTable(Analysis):
    """Table A. Its tables:

    - ``searched``: per method and limit the best subnet that a search found: mean and interval over the seeds
      of top-1 and top-5 on the test split, its parameters (mean, least and most), and the paired difference
      to the baseline;
    - ``cells``: the subnet of every seed;
    - ``time``: mean seconds of training, and the ratio to the baseline's with its interval;
    - ``published``: the paper's table.
    """

    name = "table-a"
    title = "What the methods reach, and what their training takes"
    question = (
        "Does a supernet that was grown hold better subnets than one that was trained by uniform sampling, "
        "and does that take more training?"
    )
    published = (
        "On ImageNet the paper's GrowTAS-T reaches 75.2 % where AutoFormer-T reaches 74.7 %, and 77.1 % with "
        "PreNAS's augmentation, as PreNAS-T does; GrowTAS-B and PreNAS-B reach 82.6 % where AutoFormer-B "
        "reaches 82.4 %. All three take the same 2.56 (T) and 6.62 days (B). GrowTAS+ adds 0.1 points to B "
        "for 1.06 % more time. Every row is one run; intervals are not given."
    )

    def drawings(self) -> dict[str, Drawing]:
        from growtas.analysis import methods_table_charts

        return methods_table_charts.drawings(self)

    def findings(self) -> list[str]:
        return _findings(self)

    def shown(self) -> dict[str, Table]:
        baseline, clock = self.facts["baseline"], self.facts["clock"]
        place = {name: at for at, name in enumerate(_SEARCHED)}
        rows = [
            (
                limit_text(row[place["limit"]]),
                row[0],
                _level_text(_interval(row, place, "top1", "seeds")),
                "" if row[0] == baseline else _signed(_interval(row, place, "difference", "pairs")),
                None if row[place["top5"]] is None else round(row[place["top5"]], 2),
                round(row[place["params"]]),
            )
            for limit in self.facts["limits"]
            for row in self.tables["searched"].where(limit=limit).rows
        ]
        brackets = f"brackets are {round(100 * CONFIDENCE)} % confidence intervals"
        seeds = self.facts["seeds"]
        best = Table.of(
            ("limit", "method", "top-1 (%)", f"difference to {baseline}", "top-5 (%)", "parameters"),
            rows,
        )
        times = Table.of(
            ("method", "CPU s", "wall s", f"{clock} time, ratio to {baseline}"),
            (
                (method, _rounded(cpu), _rounded(wall), _ratio_text(ratio, low, high, method == baseline))
                for method, _, cpu, wall, ratio, low, high in self.tables["time"].rows
            ),
        )
        published = Table.of(
            ("method", "top-1 (%)", "top-5 (%)", "parameters (M)", "time (days)"),
            self.tables["published"].rows,
        )
        return {
            f"Here, {self.facts['data']}: the best subnet that a search finds under each limit, mean over "
            f"{seeds} seed{'s' if seeds > 1 else ''}; {brackets}, of the difference paired by seed": best,
            "Here: training alone": times,
            "Published, on ImageNet": published,
        }


def methods_table(
    comparison_folder: str | os.PathLike, left_out: Mapping[str, str] | None = None
) -> MethodsTable:
    """Table A, from a comparison of methods.

    Args:
        comparison_folder: what :func:`growtas.compare` wrote; its first method is the baseline. Cells that
            are not finished are named.
        left_out: methods that were not compared, with the reason.

    Raises:
        UsageError: the folder holds no comparison, none with limits, or no finished cell.
        GrowtasError: a file is damaged.

    Source:
        GrowTAS (arXiv 2512.12296), supplement, Table A.
    """
    path = Path(comparison_folder)
    recorded = read_plan(path)
    if recorded is None:
        raise UsageError(f"{path} holds no comparison; make one with: growtas compare {path}")
    if not recorded.plan.limits:
        raise UsageError(f"The comparison in {path} searched under no limit; Table A is of what is found.")
    cells = read_cells(recorded)
    if not cells:
        raise UsageError(f"No cell of the comparison in {path} is finished: growtas compare {path}")
    summary = summarise(recorded, cells)
    plan, recipe = recorded.plan, recorded.recipe
    facts = {
        "data": plan.data,
        "space": plan.space.name,
        "num_classes": plan.num_classes,
        "baseline": str(recorded.methods[0]),
        "methods": [str(spec) for spec in recorded.methods],
        "limits": [str(limit) for limit in plan.limits],
        "seeds": recorded.seeds,
        "epochs": recipe["epochs"],
        "evaluations": plan.population * plan.generations,
        "search_images": plan.images["search"],
        "test_images": plan.images["test"],
        "clock": summary.clock,
        "missing": [f"{spec} seed {seed}" for spec, seed in summary.missing],
        "left_out": dict(left_out or {}),
    }
    tables = {
        "searched": _searched(cells, summary),
        "cells": Table.of(
            _CELLS,
            (
                (
                    str(spec),
                    each["limit"],
                    seed,
                    each["subnet"],
                    each["params"],
                    each["top1"],
                    each.get("top5"),
                )
                for (spec, seed), cell in cells.items()
                for each in cell["searched"]
            ),
        ),
        "time": _times(summary),
        "published": Table.of(("method", "top1", "top5", "params_millions", "days"), _PUBLISHED),
    }
    return MethodsTable(tables, facts)


def _searched(cells: Cells, summary: Summary) -> Table:
    rows = []
    for row in summary.rows:
        if row.measure.family != "searched":
            continue
        own = [cell for (spec, _), cell in cells.items() if spec == row.spec]
        params = [f["params"] for cell in own for f in cell["searched"] if f["limit"] == row.measure.key]
        levels = (*_ends(row.level), *_ends(row.top5), sum(params) / len(params), min(params), max(params))
        count = None if row.difference is None else row.difference.count
        name, limit = str(row.spec), row.measure.key
        rows.append((name, limit, row.level.count, *levels, count, *_ends(row.difference)))
    return Table.of(_SEARCHED, rows)


def _times(summary: Summary) -> Table:
    rows = []
    for row in summary.times:
        known = row.cpu or row.wall
        if known is not None:
            seconds = (None if each is None else each.mean for each in (row.cpu, row.wall))
            rows.append((str(row.spec), known.count, *seconds, *_ends(row.ratio)))
    return Table.of(_TIME, rows)


def _ends(found: Interval | None) -> tuple[float | None, ...]:
    return (None, None, None) if found is None else (found.mean, found.low, found.high)


# -- words -----------------------------------------------------------------------------------------------


def limit_text(limit: str) -> str:
    """A limit as a reader knows it: ``≤ 40,000 parameters``."""
    kind, _, most = limit.partition("=")
    return f"≤ {int(most):,} {'MACs' if kind == 'macs' else 'parameters'}"


def _joined(limits: list[str]) -> str:
    """Limits in a sentence, their unit once: ``≤ 40,000 and ≤ 63,000 parameters``."""
    *before, last = limits
    unit = last.rpartition(" ")[2]
    before = [limit.removesuffix(f" {unit}") for limit in before]
    return f"{', '.join(before)} and {last}" if before else last


def _interval(row: tuple, place: Mapping[str, int], name: str, count: str) -> Interval | None:
    mean, low, high = (row[place[f"{name}{end}"]] for end in ("", "_low", "_high"))
    return None if mean is None else Interval(row[place[count]], mean, low, high)


def _level_text(found: Interval) -> str:
    return (
        f"{found.mean:.2f}" if found.low is None else f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
    )


def _signed(found: Interval | None) -> str:
    if found is None:
        return ""
    text = f"{found.mean:+.2f}"
    return text if found.low is None else f"{text} [{found.low:+.2f}, {found.high:+.2f}]"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _ratio_text(ratio: float | None, low: float | None, high: float | None, baseline: bool) -> str:
    if ratio is None:
        return "1" if baseline else ""
    return f"{ratio:.3f}" if low is None else f"{ratio:.3f} [{low:.3f}, {high:.3f}]"


def _findings(found: MethodsTable) -> list[str]:
    facts, table = found.facts, found.tables["searched"]
    place = {name: at for at, name in enumerate(_SEARCHED)}
    compared: dict[str, list[tuple[str, Interval]]] = {}
    for row in table.rows:
        difference = _interval(row, place, "difference", "pairs")
        if difference is not None:
            compared.setdefault(row[0], []).append((limit_text(row[place["limit"]]), difference))
    sentences = [*_verdict(facts, compared), *_of_methods(facts["baseline"], compared)]
    sentences += _of_time(facts, found.tables["time"]) + _of_top5(facts, table)
    if facts["missing"]:
        sentences.append(f"Not finished, and left out: {', '.join(facts['missing'])}.")
    sentences += [f"{method} was not compared: {why}" for method, why in facts["left_out"].items()]
    return sentences


def _verdict(facts: Mapping[str, Any], compared: Mapping[str, list[tuple[str, Interval]]]) -> list[str]:
    """One sentence about all differences together."""
    baseline = facts["baseline"]
    every = [each for own in compared.values() for _, each in own]
    if not every:
        return [f"No other method has a seed in common with {baseline}: nothing can be compared."]
    with_ends = [each for each in every if each.low is not None]
    if not with_ends:
        return ["One pair of runs has no interval: no difference between methods is shown."]
    decided = sum(each.excludes(0.0) for each in with_ends)
    chance = max(1, round((1 - CONFIDENCE) * len(with_ends)))
    limits = len(facts["limits"])
    text = (
        f"{decided} of {len(with_ends)} intervals of the difference to {baseline} ({len(compared)} methods, "
        f"{limits} limit{'s' if limits > 1 else ''}) exclude zero; about {chance} would by chance where "
        "methods do not differ."
    )
    fewest = min(each.count for each in with_ends)
    if fewest < _FEW:
        text += f" With {fewest} pairs the spread is hardly known" + (
            ": take what excludes zero as a hint at most." if decided else "."
        )
    return [text]


def _of_methods(baseline: str, compared: Mapping[str, list[tuple[str, Interval]]]) -> list[str]:
    """One sentence per method: where its interval excludes zero, and where it does not."""
    sentences = []
    for method, own in compared.items():
        pairs = own[0][1].count
        decided = [limit for limit, each in own if each.excludes(0.0)]
        if pairs == 1:
            end = "One pair has no interval."
        elif not decided:
            end = f"Every interval includes zero: {pairs} pairs show no difference."
        else:
            rest = "" if len(decided) == len(own) else " and includes it elsewhere"
            end = f"The interval of {pairs} pairs excludes zero at {_joined(decided)}{rest}."
        limits = _joined([limit for limit, _ in own])
        told = "; ".join(_signed(each) for _, each in own)
        sentences.append(f"{method} against {baseline}, points at {limits}: {told}. {end}")
    return sentences


def _of_time(facts: Mapping[str, Any], table: Table) -> list[str]:
    ratios = [
        f"{method} {_ratio_text(ratio, low, high, False)}"
        for method, _, _, _, ratio, low, high in table.rows
        if ratio is not None
    ]
    if not ratios:
        return []
    clock = "processor" if facts["clock"] == "cpu" else "wall"
    return [
        f"Training time over that of {facts['baseline']} ({clock} time): {', '.join(ratios)}. The paper's "
        "GrowTAS takes as long as AutoFormer and its GrowTAS+ 1.011 of that on B."
    ]


def _of_top5(facts: Mapping[str, Any], table: Table) -> list[str]:
    values = [value for value in table.column("top5") if value is not None]
    if not values:
        return ["The cells were made before comparisons counted top-5: it is not told."]
    low, high = min(values), max(values)
    text = f"Top-5 lies between {low:.2f} and {high:.2f} %"
    if high - low < 1:
        text += f": among {facts['num_classes']} classes it hardly tells the methods apart"
    return [f"{text}."]


def _make(workspace: Workspace) -> MethodsTable:
    return methods_table(workspace.comparison, unfit(workspace))


PART = Part(MethodsTable, _make, compares=True)
