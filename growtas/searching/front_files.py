"""The table and the figure of a Pareto front, beside its log. Imports matplotlib when used."""

from __future__ import annotations

from growtas import atomic
from growtas.searching.result import ParetoResult
from growtas.space import Space
from growtas.table import Table

COLUMNS = ("point", "params", "macs", "top1 (%)", "standard error (points)", "images", "test top1 (%)")
LABELS = {"params": "parameters", "macs": "multiply-accumulates"}


def front_table(found: ParetoResult) -> Table:
    """Every evaluated subnet, those of the front first and by their numbers.

    Args:
        found: the search.

    Returns:
        A table in which ``point`` and the test's accuracy are None beside the front.
    """
    tested = zip(found.front, found.test_top1, strict=True)
    numbers = {e.subnet: (number, test) for number, (e, test) in enumerate(tested, start=1)}
    others = [e for e in found.history if e.subnet not in numbers]
    rows = []
    for e in (*found.front, *others):
        number, test = numbers.get(e.subnet, (None, None))
        rows.append(
            (number, e.params, e.macs, e.top1, e.standard_error, e.images, test, e.objective, str(e.subnet))
        )
    return Table.of((*COLUMNS, f"{found.objective} ({found.unit})", "subnet"), rows)


def write_front(found: ParetoResult, space: Space) -> None:
    """Write the table as CSV and the figure as PNG and SVG beside the log.

    Args:
        found: the search.
        space: whose smallest and largest subnet are marked where they were evaluated.
    """
    from growtas.plotting import FrontPoint, front

    table, *pictures = found.files
    atomic.write_text(table, front_table(found).csv())
    ends = {space.smallest(): "smallest", space.largest(): "largest"}
    points = [
        FrontPoint(e.objective, e.top1, e.standard_error or 0, ends.get(e.subnet)) for e in found.history
    ]
    chosen = [found.history.index(point) for point in found.front]
    for path in pictures:
        front(path, points, chosen, LABELS.get(found.objective, f"{found.objective} ({found.unit})"))
