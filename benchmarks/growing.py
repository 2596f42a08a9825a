"""When does growing from small to large help? The map of docs/results.md: its runs, tables and figure.

    python benchmarks/growing.py plan
    python benchmarks/growing.py power --sigma 1.25 --difference 0.5
    python benchmarks/growing.py run FOLDER [--jobs 2] [--only KEY ...] [--until HH:MM] [--beyond CELLS]
    python benchmarks/growing.py report FOLDER [--to benchmarks/results/growing] [--beyond CELLS]

The plan is :mod:`common.growing_plan`. FOLDER gets a folder for each of its settings, which is what ``growtas
compare`` writes; its verbs work on it. Run again, what is finished is kept and what was stopped goes on.
``report`` writes ``cells.csv``, a row per finished cell, and ``differences.csv``, the paired differences, of
which ``benchmarks/render_docs.py`` makes the tables and the figure.

With ``--beyond benchmarks/results/growing/cells.csv`` an empty FOLDER goes on from the committed cells: they
do not run again, and ``report`` keeps their rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from common import growing_plan
from common import growing_statistics as tests

from growtas import atomic, threads
from growtas.errors import GrowtasError

RESULTS = Path(__file__).parent / "results" / "growing"


def seconds_until(clock: str, now: float) -> float:
    """Seconds since 1970 of the next time that a clock shows this.

    Args:
        clock: hours and minutes, ``HH:MM``, local time.
        now: seconds since 1970.

    Raises:
        ValueError: it is no time of day.
    """
    wanted, today = time.strptime(clock, "%H:%M"), time.localtime(now)
    then = time.mktime((*today[:3], wanted.tm_hour, wanted.tm_min, 0, *today[6:8], -1))
    return then if then > now else then + 24 * 3600


def show_plan() -> None:
    """Print the batches in their order."""
    for batch in growing_plan.BATCHES:
        print(f"{batch.setting:20} {batch.stage:8} {batch.pairs:3} pairs: {', '.join(batch.methods)}")


def show_power(sigma: float, difference: float) -> None:
    """Print how many pairs it takes.

    Args:
        sigma: standard deviation of the differences of pairs.
        difference: their true mean.
    """
    needed, narrow = tests.pairs_needed(sigma, difference), tests.pairs_for_interval(sigma, difference)
    print(
        f"Differences of pairs with a standard deviation of {sigma:g}; two-sided t-test at 5 %.\n"
        f"{needed} pairs find a true difference of {difference:g} with a power of 80 %.\n"
        f"{narrow} pairs give a 95 % interval of ±{difference:g}; they find that difference with a power of "
        f"{100 * tests.power(narrow, sigma, difference):.0f} %."
    )


def report(given: argparse.Namespace) -> int:
    """Write the tables of the finished cells. Args: given: on the command line. Returns: the exit status."""
    from common import growing_cells, growing_report

    found = growing_cells.cells(given.folder)
    if given.beyond is not None:
        found = growing_cells.joined(growing_cells.read_finished(given.beyond), found)
    if not found.rows:
        print(f"{given.folder} holds no finished cell of the plan.", file=sys.stderr)
        return 1
    tables = {
        growing_report.CELLS: found,
        growing_report.DIFFERENCES: growing_cells.differences(found),
    }
    atomic.make_folder(given.to)
    for name, table in tables.items():
        atomic.write_text(given.to / name, table.csv())
        print(f"{given.to / name}: {len(table.rows):,} rows")
    return 0


def run(given: argparse.Namespace) -> int:
    """Run the cells. Args: given: on the command line. Returns: the exit status."""
    os.environ.update(threads.count_variables(1) | threads.waiting_variables())  # before torch is imported
    from common import growing_cells, growing_runs

    batches = [batch for batch in growing_plan.BATCHES if not given.only or batch.setting in given.only]

    def say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    earlier = () if given.beyond is None else growing_cells.read_finished(given.beyond).rows
    known = {row[:3] for row in earlier}  # setting, method, seed
    failed = growing_runs.run(given.folder, batches, given.jobs, given.until, say, known)
    return int(bool(failed))


def main(argv: list[str] | None = None) -> int:
    """Do what is asked. Args: argv: as above. Returns: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("plan", help="print the batches in their order")
    own = verbs.add_parser("run", help="run what is not finished")
    own.add_argument("folder", type=Path)
    own.add_argument("--jobs", type=int, default=2, help="cells at once, each on one thread (2)")
    own.add_argument("--only", nargs="+", metavar="KEY", default=(), help="settings; all where left out")
    own.add_argument("--until", metavar="HH:MM", help="begin no cell after that time")
    own = verbs.add_parser("report", help="write the tables of what is finished")
    own.add_argument("folder", type=Path)
    own.add_argument("--to", type=Path, default=RESULTS)
    own = verbs.add_parser("power", help="print how many pairs it takes to see a difference")
    own.add_argument("--sigma", type=float, required=True, help="standard deviation of the differences")
    own.add_argument("--difference", type=float, required=True, help="to be seen, in the same unit")
    for own in (verbs.choices["run"], verbs.choices["report"]):
        own.add_argument("--beyond", type=Path, metavar="CELLS", help="a cells.csv of which to go on")
    given = parser.parse_args(argv)
    if given.verb == "plan":
        show_plan()
        return 0
    if given.verb == "power":
        if not (given.sigma > 0 and given.difference > 0):
            parser.error("--sigma and --difference must be above 0")
        show_power(given.sigma, given.difference)
        return 0
    if given.verb == "run":
        _check(parser, given)
    try:
        return {"run": run, "report": report}[given.verb](given)
    except GrowtasError as error:
        print(error, file=sys.stderr)
        return error.exit_status


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    known = [each.key for each in growing_plan.SETTINGS]
    for key in given.only:
        if key not in known:
            parser.error(f"--only {key} is no setting; there are {', '.join(known)}")
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs} must be 1 or more")
    try:
        given.until = float("inf") if given.until is None else seconds_until(given.until, time.time())
    except ValueError:
        parser.error(f"--until {given.until} is no time of day; write HH:MM")


if __name__ == "__main__":
    sys.exit(main())
