"""The intervals in the prose of docs/results.md are those of the committed differences, copied by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from common.growing_cells import read_table

ROOT = Path(__file__).parents[2]
NUMBER = r"([+−]?\d+(?:\.\d+)?)"
INTERVAL = re.compile(rf"{NUMBER}\s\[{NUMBER},\s{NUMBER}\]")


def prose() -> str:
    """The page without its tables and without the plan, which is of before the runs."""
    text = (ROOT / "docs" / "results.md").read_text().partition("\n## Plan\n")[0]
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def committed() -> list[tuple[float, float, float]]:
    rows = read_table(ROOT / "benchmarks" / "results" / "growing" / "differences.csv").records()
    known = [(row["mean"], row["low"], row["high"]) for row in rows if row["low"] is not None]
    return known + [(-mean, -high, -low) for mean, low, high in known]


def is_committed(stated: tuple[str, ...], known: list[tuple[float, float, float]]) -> bool:
    """Return whether some difference, in either direction, has these numbers to as many digits."""
    wanted = [float(each.replace("−", "-")) for each in stated]
    steps = [0.5 * 10.0 ** -len(each.partition(".")[2]) * 1.001 for each in stated]
    return any(
        all(abs(a - b) <= step for a, b, step in zip(row, wanted, steps, strict=True)) for row in known
    )


def test_every_interval_of_the_prose_is_committed():
    known, stated = committed(), [match.groups() for match in INTERVAL.finditer(prose())]
    assert len(stated) > 40
    assert [each for each in stated if not is_committed(each, known)] == []


@pytest.mark.parametrize("wrong", [("1.3", "0.4", "1.9"), ("1.2", "0.4", "2.0"), ("−1.2", "0.4", "1.9")])
def test_another_number_is_found_out(wrong):
    known = committed()
    assert is_committed(("1.2", "0.4", "1.9"), known) and not is_committed(wrong, known)
