"""Runs the cells of benchmarks/growing.py, several at once, in forks of a process that has the images."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm.auto import tqdm

from common.environment import cpu_name
from common.growing_cells import processor_file
from common.growing_plan import Batch, setting
from growtas import atomic
from growtas.comparing import driver
from growtas.comparing.plan import RESULT_NAME, Plan, write_plan
from growtas.comparing.specs import MethodSpec
from growtas.comparing.summary import cell_values
from growtas.errors import GrowtasError
from growtas.jobs import worker
from growtas.jobs.folder import read_json
from growtas.jobs.job import outcome
from growtas.locks import locked

PAUSE = 0.2  # seconds between two looks at the processes
PATIENCE = 120.0  # seconds for a cell to save and end after an interrupt
LOADED = ("comparing.cell", "searching.evaluate", "training.finetune", "training.loop", "training.start")
"""Modules that cells need, imported once, before they are forked."""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Cell:
    """A method with a seed in a comparison."""

    plan: Plan = field(hash=False)
    spec: MethodSpec
    seed: int

    def __str__(self) -> str:
        return f"{self.plan.path.name} {self.spec} seed {self.seed}"

    @property
    def key(self) -> tuple[str, str, int]:
        """Its columns of cells.csv: setting, method and seed."""
        return self.plan.path.name, str(self.spec), self.seed

    @property
    def path(self) -> Path:
        """The folder of its run."""
        return self.plan.cell_path(self.spec, self.seed)

    @property
    def result(self) -> Path:
        """The file that a finished cell has."""
        return self.path / RESULT_NAME

    @property
    def output(self) -> Path:
        """The file for what its process prints."""
        return self.path.parent / f"{self.path.name}.output.txt"

    @property
    def first(self) -> Cell | None:
        """The cell that it goes on from."""
        return None if self.spec.first is None else Cell(self.plan, self.spec.first, self.seed)

    def report(self) -> str:
        """One line on a finished cell: the mean top-1 of its groups, and the processor time of training."""
        cell = read_json(self.result, dict)
        groups = [f"{group['top1']:.2f}" for group in cell["groups"]]
        all_groups = cell_values(cell)["all groups"]
        return f"{' '.join(groups)} (mean {all_groups:.2f}), {cell['time']['cpu'] or float('nan'):.0f} CPU-s"


def planned(out: Path, batch: Batch) -> list[Cell]:
    """The cells of a batch, seed by seed, once its comparison's folder knows them.

    Raises:
        GrowtasError: a method or setting is not possible, or the folder holds a comparison of other settings.
    """
    path, given = out / batch.setting, setting(batch.setting).arguments()
    atomic.make_folder(path)
    with locked(path / ".lock", f"Another process is comparing methods in {path}; wait for it."):
        recorded, specs, seeds = driver.planned(path, given, batch.methods, batch.pairs)
        write_plan(recorded)
    wanted = dict.fromkeys(each for spec in specs for each in (spec.first, spec) if each is not None)
    return [Cell(recorded.plan, spec, seed) for seed in range(seeds) for spec in wanted]


def run(
    out: Path,
    batches: Sequence[Batch],
    jobs: int,
    until: float,
    say: Callable[[str], None],
    known: Collection[tuple[str, str, int]] = (),
) -> dict[str, str]:
    """Run what is not finished, in order.

    Args:
        out: a folder for every setting's.
        batches: of the plan.
        jobs: cells at once.
        until: seconds since 1970 after which no cell begins.
        say: is called with every line of progress.
        known: cells that ran elsewhere, as setting, method and seed; they run only where a method goes on
            from their weights.

    Returns:
        For each batch or cell that failed, by name: why.

    Raises:
        growtas.training.guards.Interrupted: SIGINT or SIGTERM; what was trained is kept.
    """
    failed: dict[str, str] = {}
    cells: dict[str, Cell] = {}
    for batch in batches:
        try:
            cells |= {str(cell): cell for cell in planned(out, batch)}
        except GrowtasError as error:
            failed[batch.setting] = str(error)
            say(f"{batch.setting} {', '.join(batch.methods)} cannot run: {error}")
    waiting = _unfinished(cells.values(), known)
    say(f"{len(cells) - len(waiting)} of {len(cells)} cells are finished")
    for name in LOADED:
        importlib.import_module(f"growtas.{name}")
    return failed | _Pool(waiting, jobs, until, say).run()


def _unfinished(cells: Iterable[Cell], known: Collection[tuple[str, str, int]]) -> list[Cell]:
    unknown = [cell for cell in cells if not (cell.result.exists() or cell.key in known)]
    firsts = [cell.first for cell in unknown if cell.first is not None]
    needed = {*unknown, *(first for first in firsts if not first.result.exists())}
    return [cell for cell in cells if cell in needed]


class _Pool:
    """Cells that wait and those that run."""

    def __init__(self, waiting: list[Cell], jobs: int, until: float, say: Callable[[str], None]) -> None:
        self.waiting, self.jobs, self.until, self.say = waiting, jobs, until, say
        self.running: dict[Cell, BaseProcess] = {}
        self.failed: dict[str, str] = {}
        self.total, self.ended = len(waiting), 0
        self.alive = os.pipe()  # its writing end closes with this process: then the cells stop, too

    def run(self) -> dict[str, str]:
        from growtas.training.guards import Interrupted, stop_signals

        try:
            with stop_signals() as received:
                while not received and (self.running or self.waiting and time.time() < self.until):
                    self._start()
                    time.sleep(PAUSE)
                    self._collect()
                if received:
                    self._stop()
                    raise Interrupted("Interrupted; what was trained is kept.", received[0])
        finally:
            for process in self.running.values():  # after a second signal, or an error of our own
                process.kill()
            for end in self.alive:
                os.close(end)
        if self.waiting:
            self.say(f"The time is over: {len(self.waiting)} cells are left; the same command goes on.")
        return self.failed

    def _start(self) -> None:
        for cell in list(self.waiting):
            if len(self.running) == self.jobs or time.time() >= self.until:
                return
            if cell.first is not None and not cell.first.result.exists():
                if cell.first in (*self.waiting, *self.running):
                    continue
                self.waiting.remove(cell)
                self._end(cell, f"{cell.first} failed, from which it goes on.")
                continue
            self.waiting.remove(cell)
            atomic.make_folder(cell.output.parent)
            process = _FORK.Process(target=_work, args=(cell, self.alive))
            process.start()
            self.running[cell] = process

    def _collect(self) -> None:
        for cell, process in list(self.running.items()):
            if process.exitcode is not None:
                del self.running[cell]
                self._end(cell, outcome(process.exitcode, cell.output))

    def _end(self, cell: Cell, failure: str) -> None:
        self.ended += 1
        if failure:
            self.failed[str(cell)] = failure
        else:
            atomic.write_text(processor_file(cell.path), cpu_name() + "\n")
        told = f"failed: {failure}" if failure else cell.report()
        self.say(f"{self.ended} of {self.total}: {cell}: {told}")

    def _stop(self) -> None:
        for process in self.running.values():
            os.kill(process.pid, signal.SIGINT)
        end = time.monotonic() + PATIENCE
        for process in self.running.values():
            process.join(max(0.0, end - time.monotonic()))


def _work(cell: Cell, alive: tuple[int, int]) -> None:
    """Run a cell in this process, which was forked for it."""
    tqdm.set_lock(threading.RLock())  # its own: one that is killed as it prints would keep the common one
    os.setsid()  # a Ctrl-C reaches the parent alone, which passes it on once
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    reading, writing = alive
    os.close(writing)
    os.dup2(reading, 0)
    with open(cell.output, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - until the end
    arguments = {"out": str(cell.plan.path), "method": str(cell.spec), "seed": cell.seed, "device": "cpu"}
    sys.exit(worker.main(["growtas.comparing.cell:run_cell", json.dumps(arguments), "--guarded"]))
