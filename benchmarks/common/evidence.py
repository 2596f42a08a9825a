"""The findings of the committed report (benchmarks/results/report-digits) as Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from common.table import render
from growtas.analysis import parts
from growtas.analysis.base import Analysis, Table
from growtas.analysis.page import cell_text, label

NAME = "report-digits"


def kept(folder: Path, name: str) -> Analysis:
    """One analysis of the committed report.

    Args:
        folder: of all results.
        name: of the part, such as ``figure-1``.
    """
    data = json.loads((folder / NAME / f"{name}.json").read_text())
    return parts.part(name).from_json(json.dumps(data["analysis"]))


def findings(folder: Path) -> str:
    """Every analysis as Markdown: title, question, findings, the tables of the page."""
    sections = []
    for name in parts.part_names():
        analysis = kept(folder, name)
        lines = "\n".join(f"- {sentence}" for sentence in analysis.findings())
        tables = [f"{caption}\n\n{_table(table)}" for caption, table in analysis.shown().items()]
        sections.append(
            "\n\n".join([f"## {label(name)}", f"{analysis.title}. *{analysis.question}*", lines, *tables])
        )
    return "\n\n".join(sections)


def _table(table: Table) -> str:
    return render(
        list(table.columns), [[cell_text(v) for v in row] for row in table.rows], left=1, markdown=True
    )
