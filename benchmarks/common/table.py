"""Tables for the screen and for Markdown, and the means that go under them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios; NaN of none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, never in exponent form; a dash for None."""
    if value is None or math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


#: Names in result files -> the words that tables and pictures show.
SHOWN = {"products": "GEMMs"}


def shown(name: str) -> str:
    """The word for a name of the result files."""
    return SHOWN.get(name, name)


def render(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, markdown: bool = False
) -> str:
    """Columns aligned, the first ``left`` to the left and the others to the right.

    Args:
        header: one title per column.
        rows: cells as text.
        left: how many columns hold words.
        markdown: with bars, as a Markdown table.
    """
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |" if markdown else "  ".join(cells).rstrip()

    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    ruler = "|" + "|".join(f" {dashes} " for dashes in rule) + "|" if markdown else "-" * len(line(header))
    return "\n".join([line(table[0]), ruler, *(line(row) for row in table[1:])])
