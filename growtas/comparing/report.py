"""The files of a comparison's results: report.md, report.json, report.csv, cells.csv, comparison.png."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growtas import atomic
from growtas.comparing.markdown import report_text
from growtas.comparing.plan import Recorded
from growtas.comparing.statistics import CONFIDENCE, Interval
from growtas.comparing.summary import Cells, Summary, cell_top5, cell_values, read_cells, summarise
from growtas.jobs.folder import write_json
from growtas.table import Table

TEXT, DATA, TABLE, CELLS, FIGURE = "report.md", "report.json", "report.csv", "cells.csv", "comparison.png"
_COLUMNS = (
    *("method", "measure", "seeds", "mean", "mean_low", "mean_high"),
    *("pairs", "difference", "difference_low", "difference_high", "excludes_zero", "top5"),
)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of :func:`growtas.compare`.

    Args:
        path: the folder.
        text: the tables as Markdown, as report.md holds them.
        summary: the numbers.
        files: written.
        failed: cells that failed in this call, by name, with the reason.
    """

    path: Path
    text: str
    summary: Summary
    files: tuple[Path, ...]
    failed: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        rows, failed = len(self.summary.rows), f", failed cells: {len(self.failed)}" if self.failed else ""
        return f"Comparison({str(self.path)!r}: {rows} results of {len(self.summary.times)} methods{failed})"

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        """The tables, as a notebook shows them."""
        return self.text


def make_report(recorded: Recorded, failed: Mapping[str, str] | None = None) -> Comparison:
    """Read the finished cells of a comparison and write what they say.

    Args:
        recorded: as its folder holds it.
        failed: cells that failed just now, by name.

    Raises:
        GrowtasError: a cell's file is damaged, or the disk is full.
    """
    path = recorded.plan.path
    cells = read_cells(recorded)
    summary = summarise(recorded, cells)
    text = report_text(recorded, cells, summary)
    atomic.write_text(path / TEXT, text)
    write_json(path / DATA, _data(recorded, summary))
    atomic.write_text(path / TABLE, _table(summary).csv())
    atomic.write_text(path / CELLS, _cells(cells).csv())
    files = [path / name for name in (TEXT, DATA, TABLE, CELLS)]
    if any(row.difference is not None for row in summary.rows):
        from growtas.comparing.figure import draw

        files.append(draw(path / FIGURE, recorded, summary))
    return Comparison(path, text, summary, tuple(files), dict(failed or {}))


def _interval(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else dataclasses.asdict(found)


def _data(recorded: Recorded, summary: Summary) -> dict[str, Any]:
    return {
        "plan": {"space": recorded.plan.space.name, **recorded.plan.identity()},
        "lr": recorded.plan.rate(),
        "baseline": str(recorded.methods[0]),
        "methods": [str(spec) for spec in recorded.methods],
        "seeds": recorded.seeds,
        "confidence": CONFIDENCE,
        "results": [
            {
                "method": str(row.spec),
                "measure": row.measure.key,
                "top1": _interval(row.level),
                "top5": _interval(row.top5),
                "difference": _interval(row.difference),
                "excludes_zero": row.decided if row.difference is not None else None,
                "difference_bonferroni": _interval(row.strict),
            }
            for row in summary.rows
        ],
        "training_time": [
            {
                "method": str(row.spec),
                "cpu_seconds": _interval(row.cpu),
                "wall_seconds": _interval(row.wall),
                "ratio": _interval(row.ratio),
                "ratio_of": summary.clock,
            }
            for row in summary.times
        ],
        "missing": [{"method": str(spec), "seed": seed} for spec, seed in summary.missing],
    }


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _ends(found: Interval | None) -> tuple[Any, ...]:
    """Count, mean and ends to six digits; empty where there is none."""
    if found is None:
        return (None,) * 4
    return (found.count, *map(_number, (found.mean, found.low, found.high)))


def _table(summary: Summary) -> Table:
    rows = [
        (
            *(str(row.spec), row.measure.key, *_ends(row.level), *_ends(row.difference)),
            None if row.difference is None else str(row.decided).lower(),
            None if row.top5 is None else _number(row.top5.mean),
        )
        for row in summary.rows
    ]
    for time in summary.times:
        ratio = f"{summary.clock} time ratio (excludes one)"
        for name, found in (("cpu seconds", time.cpu), ("wall seconds", time.wall), (ratio, time.ratio)):
            if found is not None:
                decided = str(found.excludes(1.0)).lower() if name == ratio else None
                rows.append((str(time.spec), name, *_ends(found), *_ends(None), decided, None))
    return Table.of(_COLUMNS, rows)


def _cells(cells: Cells) -> Table:
    rows = []
    for (spec, seed), cell in cells.items():
        values = {key: _number(value) for key, value in cell_values(cell).items()}
        values |= {f"top-5 of {key}": _number(value) for key, value in cell_top5(cell).items()}
        values |= {f"parameters of {found['limit']}": found["params"] for found in cell["searched"]}
        values |= {f"{name} seconds": cell["time"][name] for name in ("cpu", "wall")}
        rows += ((str(spec), seed, key, value) for key, value in values.items())
    return Table.of(("method", "seed", "measure", "value"), rows)
