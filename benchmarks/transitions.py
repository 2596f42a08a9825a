"""When the stages of every run of a comparison began, and what opened them.

    python benchmarks/transitions.py FOLDER [--out transitions.csv]

FOLDER is what ``growtas compare`` wrote, with the logs of its cells. The table has one row per method, seed
and stage after the first: epochs of the run, the epoch at which the stage began, what opened it (the rule or
``latest epoch``; empty where the epoch was fixed before training), and the top-1 in per cent of the run,
mean over the random subnets of all groups.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from growtas import atomic
from growtas.analysis.base import Table
from growtas.comparing.plan import read_plan
from growtas.comparing.summary import cell_values, read_cells
from growtas.errors import GrowtasError, UsageError
from growtas.training.log import read_log
from growtas.training.run import Run

COLUMNS = ("method", "seed", "epochs", "stage", "began_at_epoch", "opened_by", "top1_all_groups")


def later_stages(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, int, str | None]]:
    """The stages of a run after its first one.

    Args:
        records: of its log, those of stages.

    Yields:
        The number of the stage, from 1, the epoch at which it began, and what opened it.
    """
    for record in records:
        if record["stage"] > 0:
            yield record["stage"], record["epoch"], record.get("opened_by")


def transitions(folder: Path) -> Table:
    """The table of a comparison's finished cells. Raises: UsageError: there is no comparison."""
    recorded = read_plan(folder)
    if recorded is None:
        raise UsageError(f"There is no comparison in {folder}.")
    rows = []
    for (spec, seed), cell in read_cells(recorded).items():
        run = Run.open(recorded.plan.cell_path(spec, seed))
        top1 = round(cell_values(cell)["all groups"], 4)
        for stage in later_stages(read_log(run.path, "stage")):
            rows.append((str(spec), seed, run.config.epochs, *stage, top1))
    return Table.of(COLUMNS, rows)


def main(argv: list[str] | None = None) -> int:
    """Write the table. Args: argv: as above. Returns: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="the table as CSV; printed where it is left out")
    given = parser.parse_args(argv)
    try:
        table = transitions(given.folder)
    except GrowtasError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    if given.out is None:
        print(table.csv(), end="")
    else:
        atomic.write_text(given.out, table.csv())
    return 0


if __name__ == "__main__":
    sys.exit(main())
