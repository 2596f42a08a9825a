"""Table A: what the methods reach under the same limits, and what their training takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import new_figure
from growtas.analysis.methods_comparison import unfit
from growtas.comparing.figure import intervals, looks, shifts
from growtas.comparing.limits import Limit
from growtas.comparing.markdown import FEW
from growtas.comparing.plan import comparison_in
from growtas.comparing.specs import read_methods
from growtas.comparing.statistics import CONFIDENCE, Interval
from growtas.comparing.summary import Cells, Summary, read_cells, summarise
from growtas.errors import UsageError, command

if TYPE_CHECKING:
    from growtas.analysis.workspace import Workspace

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
    title = "Accuracy and training time of the methods"
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

    compares = True

    @classmethod
    def make(cls, workspace: Workspace) -> MethodsTable:
        return methods_table(workspace.comparison, unfit(workspace))

    def findings(self) -> list[str]:
        facts, table = self.facts, self.tables["searched"]
        compared: dict[str, list[tuple[str, Interval]]] = {}
        for row in table.records():
            if row["difference"] is not None:
                found = limit_text(row["limit"]), _interval(row, "difference", "pairs")
                compared.setdefault(row["method"], []).append(found)
        sentences = [_verdict(facts, compared), *_of_methods(facts["baseline"], compared)]
        sentences += _of_time(facts, self.tables["time"]) + [_of_top5(facts, table)]
        if facts["missing"]:
            sentences.append(f"Not finished, and left out: {', '.join(facts['missing'])}.")
        return sentences + [f"{method} was not compared: {why}" for method, why in facts["left_out"].items()]

    def shown(self) -> dict[str, Table]:
        baseline, clock, seeds = (self.facts[name] for name in ("baseline", "clock", "seeds"))
        rows = [
            (
                limit_text(limit),
                row["method"],
                _interval(row, "top1", "seeds").text(".2f"),
                "" if row["difference"] is None else _interval(row, "difference", "pairs").text(),
                None if row["top5"] is None else round(row["top5"], 2),
                round(row["params"]),
            )
            for limit in self.facts["limits"]
            for row in self.tables["searched"].where(limit=limit).records()
        ]
        best = ("limit", "method", "top-1 (%)", f"difference to {baseline}", "top-5 (%)", "parameters")
        times = [
            (
                row["method"],
                *(
                    None if row[name] is None else round(row[name], 1)
                    for name in ("cpu_seconds", "wall_seconds")
                ),
                ("1" if row["method"] == baseline else "") if row["ratio"] is None else _ratio(row),
            )
            for row in self.tables["time"].records()
        ]
        published = ("method", "top-1 (%)", "top-5 (%)", "parameters (M)", "time (days)")
        return {
            f"Here, {self.facts['data']}: the best subnet that a search finds under each limit, mean over "
            f"seeds ({seeds} of them); brackets are {round(100 * CONFIDENCE)} % confidence intervals, of the "
            "difference paired by seed": Table.of(best, rows),
            "Here: training alone": Table.of(
                ("method", "CPU s", "wall s", f"{clock} time, ratio to {baseline}"), times
            ),
            "Published, on ImageNet": Table.of(published, self.tables["published"].rows),
        }

    def draw(self) -> dict[str, Drawing]:
        facts, table = self.facts, self.tables["searched"]
        look = {str(spec): each for spec, each in looks(read_methods(facts["methods"])).items()}
        figure, (left, right) = new_figure(3.9, columns=2, width_ratios=(1.1, 1))
        for method, style in look.items():
            own, cells = table.where(method=method), self.tables["cells"].where(method=method)
            if own.rows:  # the seeds are small dots
                seeds = {"s": 9, "color": style["color"], "alpha": 0.55, "linewidths": 0}
                left.scatter(cells.column("params"), cells.column("top1"), **seeds)
                levels = [_interval(row, "top1", "seeds") for row in own.records()]
                size = {"capsize": 2, "elinewidth": 0.9, "markersize": 7}
                intervals(left, own.column("params"), levels, label=method, **size, **style)
        left.set(xlabel="parameters of the subnet found", ylabel="top-1 on the test split (%)")
        left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e3:,.0f} k"))
        left.xaxis.set_major_locator(MaxNLocator(6))
        left.set_title("the best subnet found under each limit")
        left.grid()
        compared = [row for row in table.records() if row["difference"] is not None]
        others = [method for method in look if any(row["method"] == method for row in compared)]
        for method, shift in zip(others, shifts(len(others)), strict=True):
            own = [row for row in compared if row["method"] == method]
            places = [facts["limits"].index(row["limit"]) + shift for row in own]
            differences = [_interval(row, "difference", "pairs") for row in own]
            intervals(right, places, differences, markersize=6, **look[method])
        right.axhline(0, color="black", linewidth=1)
        limits = [Limit.parse(text) for text in facts["limits"]]
        labels = [f"{each.most:,}" + (" MACs" if each.kind == "macs" else "") for each in limits]
        right.set_xticks(range(len(limits)), labels)
        right.set(xlim=(-0.5, len(limits) - 0.5), xlabel=f"at most so many {limits[0].unit}")
        right.set_ylabel(f"difference to {facts['baseline']} (points)")
        right.set_title("paired by seed")
        right.grid(axis="y")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(look)))
        caption = (
            f"The best subnet under each limit, found by {facts['evaluations']} evaluations on "
            f"{facts['search_images']:,} held-out images and judged on {facts['test_images']:,} test images "
            f"with inherited weights; mean over seeds ({facts['seeds']} of them), "
            f"{facts['epochs']} epochs each."
        )
        if facts["seeds"] > 1:
            caption += (
                " Dots are single seeds; whiskers are 95 % confidence intervals of the mean (left) and of "
                f"the mean paired difference to {facts['baseline']} (right): where one holds zero, no "
                "difference is shown."
            )
        alt = (
            f"Two charts of {', '.join(facts['methods'])} on {facts['data']}: top-1 over parameters of the "
            f"subnets found under {len(limits)} limits, and the differences to {facts['baseline']} with "
            "their intervals."
        )
        return {"": Drawing(figure, caption, alt)}


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
    recorded = comparison_in(path)
    if not recorded.plan.limits:
        raise UsageError(f"The comparison in {path} searched under no limit; Table A is of what is found.")
    cells = read_cells(recorded)
    if not cells:
        raise UsageError(f"No cell of the comparison in {path} is finished: {command('compare', path)}")
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
                (str(spec), f["limit"], seed, f["subnet"], f["params"], f["top1"], f.get("top5"))
                for (spec, seed), cell in cells.items()
                for f in cell["searched"]
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


# -- sentences -------------------------------------------------------------------------------------------


def limit_text(limit: str) -> str:
    """A limit as a reader knows it: ``≤ 40,000 parameters``."""
    read = Limit.parse(limit)
    return f"≤ {read.most:,} {read.unit}"


def _joined(limits: list[str]) -> str:
    """Limits in a sentence, their unit once: ``≤ 40,000 and ≤ 63,000 parameters``."""
    *before, last = limits
    unit = last.rpartition(" ")[2]
    before = [limit.removesuffix(f" {unit}") for limit in before]
    return f"{', '.join(before)} and {last}" if before else last


def _interval(row: Mapping[str, Any], name: str, count: str) -> Interval:
    return Interval(row[count], row[name], row[f"{name}_low"], row[f"{name}_high"])


def _ratio(row: Mapping[str, Any]) -> str:
    return _interval(row, "ratio", "seeds").text(".3f")


def _verdict(facts: Mapping[str, Any], compared: Mapping[str, list[tuple[str, Interval]]]) -> str:
    """One sentence about all differences together."""
    baseline = facts["baseline"]
    if not compared:
        return f"No other method has a seed in common with {baseline}: nothing can be compared."
    with_ends = [each for own in compared.values() for _, each in own if each.low is not None]
    if not with_ends:
        return "One pair of runs has no interval: no difference between methods is shown."
    decided = sum(each.excludes(0.0) for each in with_ends)
    chance = max(1, round((1 - CONFIDENCE) * len(with_ends)))
    text = (
        f"{decided} of {len(with_ends)} intervals of the difference to {baseline} (methods: {len(compared)}, "
        f"limits: {len(facts['limits'])}) exclude zero; about {chance} would by chance where methods do not "
        "differ."
    )
    fewest = min(each.count for each in with_ends)
    if fewest < FEW:
        text += f" With {fewest} pairs the spread is hardly known" + (
            ": take what excludes zero as a hint at most." if decided else "."
        )
    return text


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
        told = "; ".join(each.text() for _, each in own)
        sentences.append(f"{method} against {baseline}, points at {limits}: {told}. {end}")
    return sentences


def _of_time(facts: Mapping[str, Any], table: Table) -> list[str]:
    ratios = [f"{row['method']} {_ratio(row)}" for row in table.records() if row["ratio"] is not None]
    if not ratios:
        return []
    clock = "processor" if facts["clock"] == "cpu" else "wall"
    return [
        f"Training time over that of {facts['baseline']} ({clock} time): {', '.join(ratios)}. The paper's "
        "GrowTAS takes as long as AutoFormer and its GrowTAS+ 1.011 of that on B."
    ]


def _of_top5(facts: Mapping[str, Any], table: Table) -> str:
    values = [value for value in table.column("top5") if value is not None]
    if not values:
        return "The cells were made before comparisons counted top-5: it is not told."
    low, high = min(values), max(values)
    text = f"Top-5 lies between {low:.2f} and {high:.2f} %"
    if high - low < 1:
        text += f": among {facts['num_classes']} classes it hardly tells the methods apart"
    return f"{text}."
