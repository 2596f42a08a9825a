"""Attempts at a case in forked processes, the faults they meet, and the verdict on how it ends."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cases
import forked_child
import torch
from cases import Case, clear
from disk import ERRORS, SIGNALS, Counts, Disk, Fault

from growtas.errors import GrowtasError

ENDS = {"SIGKILL": {-9, 0}, "SIGTERM": {-15, 143, 0}, "SIGINT": {130, 0}, "power": {-9, 0}}
"""The exit statuses that an attempt may have with a fault; an error is one sentence and 1 or 2, or is met."""
HARD_STOP = 900.0  # seconds for one attempt on a busy machine


class Failed(Exception):
    """A case did not end as it must: the sentence says how."""


@dataclass
class Whole:
    """A case left alone.

    Args:
        left: what its end is judged by.
        calls: how many there were, by what was counted.
    """

    left: Any
    calls: dict[str, int]


@dataclass
class Bench:
    """A folder in which cases are tried.

    Args:
        folder: for inputs, references and attempts.
        moments: whether faults come at any moment, for which the calls of functions are counted.
        told: what a failed case printed last.
    """

    folder: Path
    moments: bool = False
    told: str = ""
    _whole: dict[str, Whole] = field(default_factory=dict)

    @property
    def inputs(self) -> Path:
        """The inputs of the cases, made here at the first use: those forked later import nothing."""
        made = self.folder / "inputs"
        if not made.exists():
            torch.set_num_threads(1)
            with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
                cases.make_inputs(made)
        return made

    def whole(self, case: Case) -> Whole:
        """The case left alone, computed once."""
        if case.name not in self._whole:
            folder, counts = clear(self.folder / "whole" / case.name), Counts()
            inputs = self.inputs
            if self.attempt(
                lambda: case.go(folder, inputs), Disk(folder, None, counts, moments=self.moments)
            ):
                raise Failed(f"{case.name} fails when it is left alone: {self.told}")
            self._whole[case.name] = Whole(case.left(folder), {of: counts[of] for of in ("disk", "python")})
        return self._whole[case.name]

    def attempt(self, work: Callable[[], object], disk: Disk | None = None) -> int:
        """Do something in a forked process. Returns: its exit status, minus the signal that killed it."""
        return self.wait(self.start(work, disk))

    def start(self, work: Callable[[], object], disk: Disk | None = None, output: str = "output") -> int:
        """Begin an attempt. Returns: its process."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:  # the child never returns from here
            forked_child.begin(self.folder / output)
            signal.alarm(int(HARD_STOP))
            if disk is not None:
                disk.root = os.getpid()
                disk.install()
            work()
            if disk is not None:
                disk.end()
            status = 0
        except GrowtasError as error:
            os.write(2, f"\nsentence: {error}".encode())
            status = error.exit_status
        except KeyboardInterrupt:
            status = 130
        except BaseException:  # noqa: BLE001 - a forked child must not fall back into its parent's work
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def wait(self, pid: int, output: str = "output") -> int:
        """Wait for an attempt to end. Returns: its exit status."""
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)  # loading processes of a killed one
        self.told = (self.folder / output).read_text(errors="replace").strip()
        return status

    # -- verdicts ----------------------------------------------------------------------------------------

    def met(self, case: Case, folder: Path, fault: Fault) -> int:
        """Attempt a case that meets a fault. Returns: its exit status. Raises: Failed: it ended wrongly."""
        journal = self.folder / "journal" if fault.what == "power" else None
        inputs = self.inputs
        status = self.attempt(lambda: case.go(folder, inputs), Disk(folder, journal, Counts(), fault))
        if fault.what in ERRORS:
            if status and not self.one_sentence(status):
                raise Failed(f"{fault} ended with {status} and no sentence: {self.told[-2000:]}")
        elif status not in ENDS[fault.what] and not (case.jobs and self.one_sentence(status)):
            raise Failed(f"{fault} ended with {status}: {self.told[-2000:]}")
        return status

    def one_sentence(self, status: int) -> bool:
        """Return whether an attempt ended as an error that is told."""
        _, marked, sentence = f"\n{self.told}".rpartition("\nsentence: ")
        return status in (1, 2) and bool(marked and sentence) and "\n" not in sentence

    def ends(self, case: Case, folder: Path, again: bool = True) -> None:
        """Let a case go on undisturbed, and compare its end. Raises: Failed: it is another one.

        Args:
            case: that was begun.
            folder: where.
            again: go on; otherwise the end must be there already.
        """
        inputs, wanted = self.inputs, self.whole(case).left
        if again:
            status = self.attempt(lambda: case.go(folder, inputs))
            if status:
                raise Failed(f"it does not go on ({status}): {self.told[-2000:]}")
        differs = difference(case.left(folder), wanted)
        if differs:
            raise Failed(f"its end differs in {differs}")

    def suffer(self, case: Case, faults: Sequence[Fault]) -> list[int]:
        """Attempt a case once for each fault and then undisturbed.

        Returns:
            The exit statuses of the attempts that met a fault.

        Raises:
            Failed: it did not end as one that was left alone.
        """
        folder = clear(self.folder / "attempts" / case.name)
        statuses = [self.met(case, folder, fault) for fault in faults]
        self.ends(case, folder)
        return statuses

    def power_at_the_end(self, case: Case, seed: int) -> None:
        """Lose power when a case is done. Raises: Failed: its result is not there afterwards."""
        folder = clear(self.folder / "attempts" / case.name)
        self.met(case, folder, Fault("power", 10**9, seed=seed))
        self.ends(case, folder, again=False)


def difference(found: Any, wanted: Any, where: str = "") -> str:
    """The first place where two nested values are not equal to the bit; empty where they are."""
    if isinstance(wanted, torch.Tensor) and isinstance(found, torch.Tensor):
        equal = found.dtype == wanted.dtype and torch.equal(found, wanted)
        return "" if equal else f"{where} (values)"
    if isinstance(wanted, dict) and isinstance(found, dict):
        if found.keys() != wanted.keys():
            return f"{where} (keys {sorted(map(str, found.keys() ^ wanted.keys()))[:5]})"
        places = [(key, found[key], wanted[key]) for key in wanted]
    elif isinstance(wanted, list | tuple) and type(found) is type(wanted):
        if len(found) != len(wanted):
            return f"{where} (length {len(found)} and not {len(wanted)})"
        places = [(number, *pair) for number, pair in enumerate(zip(found, wanted, strict=True))]
    else:
        return "" if found == wanted else f"{where} ({str(found)[:150]!r} and not {str(wanted)[:150]!r})"
    return next(filter(None, (difference(one, other, f"{where}/{key}") for key, one, other in places)), "")


def drawn(case: Case, calls: dict[str, int], rng: random.Random) -> list[Fault]:
    """One to three faults for a case, at random moments."""
    faults = []
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("signal", "signal", "disk", "error", "power"))
        seed = rng.randrange(10**6)
        if kind == "signal" and not case.jobs:
            what = rng.choices(SIGNALS, (2, 1, 1))[0]
            faults.append(Fault(what, rng.randint(1, calls["python"]), "python", seed=seed))
        else:
            at = rng.randint(1, calls["disk"])
            what = {"error": rng.choice(list(ERRORS)), "power": "power"}.get(kind, "SIGKILL")
            lasting = kind == "error" and rng.random() < 0.5
            faults.append(Fault(what, at, lasting=lasting, seed=seed))
    return faults


def at_every_call(calls: int) -> Iterator[Fault]:
    """A kill, each error and a loss of power at every call that changes the folder."""
    for at in range(1, calls + 1):
        for what in ("SIGKILL", *ERRORS, "power"):
            for lasting in (False, True) if what in ERRORS else (False,):
                yield Fault(what, at, lasting=lasting, seed=at)
        yield Fault("power", at, seed=-1)


def timed(work: Callable[[], object]) -> float:
    """The seconds of the processor that this takes, in forked processes too."""
    before = sum(os.times()[:4])
    work()
    return sum(os.times()[:4]) - before


def now() -> str:
    """The time of day."""
    return time.strftime("%H:%M:%S")
