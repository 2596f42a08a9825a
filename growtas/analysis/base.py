"""Analyses: numbers, sentences about them, and pictures of them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from growtas.errors import UsageError
from growtas.table import Table, Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from growtas.analysis.workspace import Workspace

__all__ = ["Analysis", "Drawing", "Table", "Value"]


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
    """A figure or table of the paper, for one space and one data set: one part of a report.

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
        compares: a report makes its comparison of methods first.
        long: it takes longer than the others: it and its networks are begun first, so that the last process
            does not work alone.
    """

    tables: Mapping[str, Table] = field(hash=False)
    facts: Mapping[str, Any] = field(hash=False)

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    published: ClassVar[str]
    compares: ClassVar[bool] = False
    long: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}: {self.findings()[0]})"

    def drawings(self) -> dict[str, Drawing]:
        """The pictures, each by the suffix of its file's name; ``""`` for the only or the first one."""
        from growtas.analysis.charts import styled

        with styled():
            return self.draw()

    @abstractmethod
    def draw(self) -> dict[str, Drawing]:
        """As :meth:`drawings`, in whatever style is set."""

    @abstractmethod
    def findings(self) -> list[str]:
        """Sentences made from the numbers: what is seen here, and in how many subnets, images or seeds.

        The first one says the most important thing; the page also shows it at its top.
        """

    def shown(self) -> dict[str, Table]:
        """Tables that a reader wants to see beside the pictures, by their captions."""
        return {}

    # -- in a report -------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def make(cls, workspace: Workspace) -> Analysis:
        """Make it for a report, whose networks are trained then."""

    @classmethod
    def networks(cls, workspace: Workspace) -> tuple[str, ...]:
        """Names of the networks that it needs."""
        return ()

    @classmethod
    def reason(cls, workspace: Workspace) -> str | None:
        """Why it cannot be made for a report, as a sentence; None where it can."""
        return None

    # -- keeping -----------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Tables and facts as text that :meth:`from_json` reads."""
        tables = {name: {"columns": t.columns, "rows": t.rows} for name, t in self.tables.items()}
        return json.dumps({"tables": tables, "facts": self.facts}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The analysis that was kept. Raises: UsageError: the text is not what :meth:`to_json` gave."""
        try:
            data = json.loads(text)
            tables = {name: Table.of(t["columns"], t["rows"]) for name, t in data["tables"].items()}
            return cls(tables, data["facts"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"This is not an analysis that growtas kept ({error}).") from error
