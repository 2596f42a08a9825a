"""When every run of a comparison left the plateau on which training begins.

    python benchmarks/plateau.py FOLDER [--level 3.0] [--window 250] [--out plateau.csv]

FOLDER is what ``growtas compare`` wrote, with the logs of its cells. A run has left the plateau at the first
step at which the mean training loss of the last ``window`` steps is below ``level``; a run that never gets
there has an empty field. The table has one row per method and seed: epochs of the run, the epoch at which it
left, and the top-1 in per cent, mean over the random subnets of all groups. Second phases, which go on from
trained weights, have none.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from growtas import atomic
from growtas.analysis.base import Table
from growtas.comparing.plan import read_plan
from growtas.comparing.summary import cell_values, read_cells
from growtas.errors import GrowtasError, UsageError
from growtas.training.log import read_log
from growtas.training.run import Run

LEVEL, WINDOW = 3.0, 250
COLUMNS = ("method", "seed", "epochs", "left_at_epoch", "top1_all_groups")


def steps_until_below(losses: Iterable[float | None], level: float, window: int) -> int | None:
    """Steps until the mean of the last losses is below a level.

    Args:
        losses: of every step in order; None where a step was skipped, which counts as a step without a loss.
        level: of the mean.
        window: losses that the mean is of; before there are as many, nothing is below.

    Returns:
        The number of steps; None where the mean never is.
    """
    last: deque[float] = deque(maxlen=window)
    for step, loss in enumerate(losses, start=1):
        if loss is not None:
            last.append(loss)
        if len(last) == window and sum(last) / window < level:
            return step
    return None


def plateaus(folder: Path, level: float = LEVEL, window: int = WINDOW) -> Table:
    """The table of a comparison's finished cells.

    Args:
        folder: of the comparison.
        level, window: as :func:`steps_until_below`.

    Raises:
        UsageError: there is no comparison, or a run's log does not hold every step.
    """
    recorded = read_plan(folder)
    if recorded is None:
        raise UsageError(f"There is no comparison in {folder}.")
    rows = []
    for (spec, seed), cell in read_cells(recorded).items():
        if spec.first is not None:
            continue  # it goes on from trained weights
        run = Run.open(recorded.plan.cell_path(spec, seed))
        if run.config.log_every != 1:
            raise UsageError(f"The log of {run.path} holds every {run.config.log_every}th step, not each.")
        losses = (record["loss"] for record in read_log(run.path, "step"))
        steps = steps_until_below(losses, level, window)
        left = None if steps is None else round(steps / run.steps_per_epoch, 3)
        top1 = round(cell_values(cell)["all groups"], 4)
        rows.append((str(spec), seed, run.config.epochs, left, top1))
    return Table.of(COLUMNS, rows)


def main(argv: list[str] | None = None) -> int:
    """Write the table. Args: argv: as above. Returns: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--level", type=float, default=LEVEL)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--out", type=Path, help="the table as CSV; printed where it is left out")
    given = parser.parse_args(argv)
    if given.window < 1:
        parser.error(f"--window {given.window} must be 1 or more")
    try:
        table = plateaus(given.folder, given.level, given.window)
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
