"""What every analysis gives: numbers, sentences about them, and pictures of them."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, Self

from growtas.errors import GrowtasError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        """A table of any iterables.

        Raises:
            ValueError: a row has not one value per column.
        """
        columns, rows = tuple(columns), tuple(tuple(row) for row in rows)
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"the row {row} has not one value for each of {columns}")
        return cls(columns, rows)

    def column(self, name: str) -> list[Value]:
        """The values of one column. Raises: KeyError: there is none of that name."""
        return [row[self._place(name)] for row in self.rows]

    def where(self, **equal: Value) -> Table:
        """The rows whose named columns have these values. Raises: KeyError: there is no such column."""
        places = {self._place(name): value for name, value in equal.items()}
        rows = (row for row in self.rows if all(row[at] == value for at, value in places.items()))
        return Table(self.columns, tuple(rows))

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


@dataclass(frozen=True)
class Drawing:
    """A picture.

    Args:
        figure: of matplotlib.
        caption: what is drawn, with the sample size.
        alt: what it looks like, for who cannot see it.
    """

    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True, repr=False)
class Analysis(ABC):
    """A figure or table of the paper, for one space and one data set.

    Everything that is drawn or said is made from ``tables`` and ``facts``, so that one that was kept as JSON
    is drawn again without computing anything, and its CSV files hold every number of the picture.

    Args:
        tables: the numbers, by name.
        facts: plain values that belong to them, such as sample sizes.

    Attributes:
        name: such as ``figure-1``.
        title: one line.
        question: what is asked.
        published: what the paper shows.
    """

    tables: Mapping[str, Table] = field(hash=False)
    facts: Mapping[str, Any] = field(hash=False)

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    published: ClassVar[str]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}: {self.findings()[0]})"

    @abstractmethod
    def drawings(self) -> dict[str, Drawing]:
        """The pictures, each by the suffix of its file's name; ``""`` for the only or the first one."""

    @abstractmethod
    def findings(self) -> list[str]:
        """Sentences made from the numbers: what is seen here, and in how many subnets, images or seeds.

        The first one says the most important thing; the page also shows it at its top.
        """

    def shown(self) -> dict[str, Table]:
        """Tables that a reader wants to see beside the pictures, by their captions."""
        return {}

    # -- keeping -----------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Tables and facts as text that :meth:`from_json` reads."""
        tables = {name: {"columns": t.columns, "rows": t.rows} for name, t in self.tables.items()}
        return json.dumps({"tables": tables, "facts": self.facts}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The analysis that was kept.

        Raises:
            GrowtasError: the text is not what :meth:`to_json` gave.
        """
        try:
            data = json.loads(text)
            tables = {name: Table.of(t["columns"], t["rows"]) for name, t in data["tables"].items()}
            return cls(tables, data["facts"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GrowtasError(f"This is not an analysis that growtas kept ({error}).") from error
