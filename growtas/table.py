"""Numbers in rows and named columns. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any, Self

Value = str | int | float | bool | None
MOST_SHOWN = 10  # rows of a table that is printed


@dataclass(frozen=True, repr=False)
class Table:
    """Numbers in rows and named columns.

    Args:
        columns: names; a unit stands in brackets where a name does not say it.
        rows: plain values, one per column; None where there is none.

    Example:
        >>> Table(("init", "top1"), (("standard", 74.0), ("pretrained", 10.0))).where(init="standard")
        Table(columns=('init', 'top1'), rows=(('standard', 74.0),))
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    def __repr__(self) -> str:
        if len(self.rows) <= MOST_SHOWN:
            return f"Table(columns={self.columns}, rows={self.rows})"
        return f"Table(columns={self.columns}, {len(self.rows):,} rows)"

    def _repr_html_(self) -> str:
        """The first rows, as a notebook shows them."""
        lines = [("th", self.columns), *(("td", row) for row in self.rows[:MOST_SHOWN])]
        cells = ("".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row) for tag, row in lines)
        left = len(self.rows) - MOST_SHOWN
        more = f"<p>and {left:,} more rows</p>" if left > 0 else ""
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>{more}"

    @classmethod
    def of(cls, columns: Iterable[str], rows: Iterable[Iterable[Value]]) -> Self:
        """A table of any iterables. Raises: ValueError: a row has not one value per column."""
        columns, rows = tuple(columns), tuple(tuple(row) for row in rows)
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"the row {row} has not one value for each of {columns}")
        return cls(columns, rows)

    def column(self, name: str) -> list[Any]:
        """The values of one column. Raises: KeyError: there is none of that name."""
        return [row[self._place(name)] for row in self.rows]

    def where(self, **equal: Value) -> Table:
        """The rows whose named columns have these values. Raises: KeyError: there is no such column."""
        places = {self._place(name): value for name, value in equal.items()}
        rows = (row for row in self.rows if all(row[at] == value for at, value in places.items()))
        return Table(self.columns, tuple(rows))

    def records(self) -> list[dict[str, Any]]:
        """Each row by the names of its columns."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def values(self, name: str) -> list[Any]:
        """The different values of one column, in order."""
        return list(dict.fromkeys(self.column(name)))

    def _place(self, name: str) -> int:
        if name not in self.columns:
            raise KeyError(f"there is no column {name!r}, only {', '.join(self.columns)}")
        return self.columns.index(name)

    def csv(self) -> str:
        """The table as a CSV file holds it; numbers in full, an empty field where there is none."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return file.getvalue()
