"""Searches with and without a predictor as tables, from predictor.py's result file."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median
from typing import Any

from common import results
from common.table import render

FILE = "predictor/searches.json"
PLAIN, HELPED, LARGEST = "without", "predictor", "the largest of ten times as many"
FRONT = "digits, front"
RANKED = "glyphs-deep, measured"
FITTED = (50, 100, 200, 400)  # evaluations
AFTER = (100, 200, 500, 1000)  # evaluations
NEVER = 10**9


def tables(data: dict[str, Any], markdown: bool = False) -> str:
    """A table of each kind of search. Args: data: of the result file."""
    records = data["records"]
    parts = [
        _best([r for r in records if r["space"] == "digits"], markdown),
        _front([r for r in records if r["space"] == FRONT], markdown),
        _ranking([r for r in records if r["space"] == RANKED], markdown),
        _deep([r for r in records if r["space"] == "glyphs-deep"], markdown),
    ]
    return "\n\n".join(parts)


def _needed(record: dict[str, Any]) -> tuple[str, list[int]]:
    needed = [NEVER if each is None else each for each in record["needed"]]
    middle = median(needed)
    return "-" if middle >= NEVER / 2 else f"{middle:.0f}", needed


def _best(records: list[dict[str, Any]], markdown: bool) -> str:
    rows = []
    for record in records:
        limit = "none" if record["limit"] is None else f"{record['limit']:,}"
        middle, needed = _needed(record)
        found = [f"{sum(each <= most for each in needed)} of {len(needed)}" for most in (100, 200, 400)]
        rows.append([f"{limit} ({record['subnets']:,} subnets)", record["way"], middle, *found])
    header = ["max_params", "digits: candidates", "evaluations to the best", "by 100", "by 200", "by 400"]
    return render(header, rows, left=2, markdown=markdown)


def _front(records: list[dict[str, Any]], markdown: bool) -> str:
    rows = []
    for record in records:
        shares = record["shares"]
        means = [f"{100 * mean(each[n // 20 - 1] for each in shares):.1f} %" for n in (100, 200, 300, 400)]
        good = sum(each[-1] >= 0.99 for each in shares)
        rows.append([record["objective"], record["way"], *means, f"{good} of {len(shares)}"])
    header = ["front over", "digits: candidates", "after 100", "200", "300", "400", "99 % by 400"]
    return render(header, rows, left=2, markdown=markdown)


def _ranking(records: list[dict[str, Any]], markdown: bool) -> str:
    header = ["Kendall's tau on 100 subnets", *(f"fitted on {record['fitted']}" for record in records)]
    named = (("predictor", "tau"), ("parameters alone", "by_size"))
    rows = [[name, *(f"{mean(record[key]):.2f}" for record in records)] for name, key in named]
    return render(header, rows, markdown=markdown)


def _deep(records: list[dict[str, Any]], markdown: bool) -> str:
    rows = []
    for record in records:
        means = [f"{mean(each[i] for each in record['best']):.2f} %" for i in range(len(AFTER))]
        middle, needed = _needed(record)
        reached = sum(each < NEVER for each in needed)
        rows.append([record["way"], *means, middle, f"{reached} of {len(needed)}"])
    goal = f"to {records[0]['goal']:.2f} %"
    header = ["glyphs-deep: candidates", "best after 100", *(f"{n:,}" for n in AFTER[1:]), goal, "reached"]
    return render(header, rows, markdown=markdown)


def predictor(folder: Path) -> str:
    """The tables, for the documents. Args: folder: of all results."""
    path = folder / FILE
    return tables(results.read(path), markdown=True) if path.exists() else ""
