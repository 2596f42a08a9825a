"""Jobs of Slurm, through submitit (``pip install 'growtas[slurm]'``).

A Slurm job starts the same worker process that a local one does. Before its time is over, Slurm signals
submitit, which lets the worker save its state and queues the job again. Jobs outlive the process that
submitted them: it notes their numbers beside their outputs, and another call waits for those in the queue.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas import atomic, threads
from growtas.errors import GrowtasError, UsageError, quoted
from growtas.jobs.job import Job, outcome, start_process

if TYPE_CHECKING:
    from growtas.jobs.placement import Placement

REQUEUES = 100  # times that a job is queued again at its time limit, where the user names no number
_OURS = ("array", "error", "nodes", "ntasks", "ntasks_per_node", "output", "signal")
_GPUS = ("gpus", "gpus_per_node", "gpus_per_task", "gres")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Options:
    """Options of sbatch.

    Args:
        minutes: after which a job is saved and queued again.
        requeues: how often at most.
        others: by name, with underscores; True where an option has no value.
    """

    minutes: int
    requeues: int
    others: dict[str, str | bool]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Options:
        """Read ``KEY=VALUE`` texts. Raises: UsageError: one is missing, or not the user's to set."""
        given: dict[str, str | bool] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            given[name.lstrip("-").replace("-", "_")] = value if equals else True
        for name in _OURS:
            if name in given:
                raise UsageError(
                    f"slurm has {name}={given[name]}, which growtas sets itself: a job is one task on one "
                    "node, and ranks=N trains it on several GPUs."
                )
        limit, requeues = given.pop("time", None), given.pop("requeue", str(REQUEUES))
        if limit is None:
            raise UsageError(
                "slurm needs time=MINUTES (or HH:MM:SS, D-HH:MM:SS), the time limit of a job. A job that "
                "reaches it is saved and queued again."
            )
        if not str(requeues).isdecimal() or len(str(requeues)) > 6:
            raise UsageError(
                f"slurm has requeue={quoted(requeues)}; it must be a whole number from 0 to 999,999."
            )
        return cls(_minutes(str(limit)), int(requeues), given)


def _minutes(text: str) -> int:
    """The minutes of a time as Slurm writes it. Raises: UsageError: it is none, or under one minute."""
    found = _TIME.fullmatch(text)
    minutes = 0
    if found:
        days, *rest = (int(part) if part is not None else None for part in found.groups())
        first, second, third = rest
        if days is not None:
            minutes = (days * 24 + first) * 60 + (second or 0)
        else:
            minutes = first if second is None or third is None else first * 60 + second
    if minutes < 1:
        raise UsageError(f"slurm has time={text}; give minutes, MM:SS, HH:MM:SS or D-HH:MM:SS, at least 1.")
    return minutes


@dataclass
class Remote:
    """The work of a Slurm job: starts the worker process of a job and waits for it.

    Args:
        arguments: of the worker.
        output: what it prints.
        threads: of each process; the allocated cores are shared by the ranks where None.
        ranks: processes that it trains with.
    """

    arguments: list[str]
    output: Path
    threads: int | None
    ranks: int
    _worker: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Return the exit status of the worker."""
        count = self.threads or max(1, threads.cores() // self.ranks)
        self._worker = start_process(self.arguments, self.output, threads.count_variables(count), _deaf)
        while not self._ended():
            time.sleep(0.1)
        return self._worker.wait()

    def checkpoint(self) -> Any:
        """Let the worker save its state; submitit calls this in a signal handler and requeues the job."""
        from submitit.helpers import DelayedSubmission

        if self._worker is not None:
            self._worker.send_signal(signal.SIGINT)
            while not self._ended():
                time.sleep(0.1)
        return DelayedSubmission(Remote(self.arguments, self.output, self.threads, self.ranks))

    def _ended(self) -> bool:
        """Return whether the worker has ended. Popen.poll has a lock that the handler could find taken."""
        return os.waitid(os.P_PID, self._worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _deaf() -> None:
    """Ignore the signal that is for submitit: Slurm sends it to every process of a job."""
    name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)


def numbers_in_queue() -> set[str] | None:
    """The numbers of the user's jobs that wait or run; None where Slurm does not answer."""
    try:
        done = subprocess.run(["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else set(done.stdout.split())


def _state(number: str) -> str:
    """The state that a job ended in, where the cluster keeps accounts."""
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=State", f"--jobs={number}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class _Plain(pickle.Unpickler):
    """Reads values that no class is needed for: a folder of jobs may be somebody else's."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every class and function."""
        raise pickle.UnpicklingError(f"since it asks for {module}.{name}")


def _plain(data: bytes) -> Any:
    """Numbers, texts and tuples of a pickle. Raises: pickle.UnpicklingError: it asks for anything else."""
    return _Plain(io.BytesIO(data)).load()


@dataclass
class SlurmHandle:
    """A job in the queue, running or ended.

    Args:
        submitted: submitit's job.
        output: what its worker prints.
        launcher: that submitted it.
    """

    submitted: Any
    output: Path
    launcher: Slurm
    _gone: float | None = None

    def poll(self) -> str | None:
        """See :class:`growtas.jobs.job.Handle`."""
        number, paths = self.submitted.job_id, self.submitted.paths
        if paths.result_pickle.exists():
            try:
                how, result = _plain(paths.result_pickle.read_bytes())
                if how == "success":
                    return outcome(int(result), self.output)
                said = str(result).strip().splitlines()[-1]
            except Exception as error:  # an unpickler that is fed garbage may raise anything
                said = f"its result cannot be read, {error}"
            return f"Slurm job {number} failed: {said} (see {paths.stderr})"
        if self.launcher.has(number):
            self._gone = None
            return None
        self._gone = time.monotonic() if self._gone is None else self._gone
        if time.monotonic() - self._gone < self.launcher.grace:
            return None
        state = _state(number)
        return f"Slurm job {number} ended without a result{state and f', as {state}'} (see {paths.stderr})"


@dataclass
class Slurm:
    """Submits jobs to Slurm.

    Args:
        executor: of submitit.
        at_once: jobs that may be in the queue together.
        threads: of each process of a job; as many as it is given cores where None.
        ranks: processes that a job trains with.
        pause: seconds between two looks for results.
        every: seconds between two looks at the queue.
        grace: seconds for the result of a job that has left the queue to appear on a shared disk.
        queue: gives the numbers of the jobs in the queue.
    """

    executor: Any
    at_once: int
    threads: int | None
    ranks: int
    pause: float = 1.0
    every: float = 10.0
    grace: float = 30.0
    queue: Callable[[], set[str] | None] = numbers_in_queue
    _looked: float = -math.inf
    _numbers: set[str] | None = None

    @classmethod
    def of(cls, placement: Placement, folder: Path, count: int | None) -> Slurm:
        """A launcher for the user's choice.

        Args:
            placement: the choice.
            folder: for what submitit writes; every node must see it.
            count: threads of each process.

        Raises:
            UsageError: submitit or Slurm is not there, or an option is not possible.
        """
        options = Options.parse(placement.slurm)
        others = {"requeue": True} | options.others
        if placement.device != "cpu" and not any(name in others for name in _GPUS):
            others["gpus_per_node"] = placement.ranks
        try:
            import submitit

            executor = submitit.SlurmExecutor(folder.resolve(), max_num_timeout=options.requeues)
        except ImportError as error:
            raise UsageError("slurm needs submitit: pip install 'growtas[slurm]'.") from error
        except RuntimeError as error:
            raise UsageError("slurm needs Slurm's commands sbatch and srun, which are not here.") from error
        executor.update_parameters(time=options.minutes, additional_parameters=others)
        return cls(executor, placement.jobs or sys.maxsize, count, placement.ranks)

    def start(self, job: Job) -> SlurmHandle:
        """Submit a job, or find it in the queue where an earlier call has submitted it."""
        note = job.output.with_suffix(".slurm")
        number = note.read_text().strip() if note.exists() else ""
        if number and number in (self.queue() or ()):
            return SlurmHandle(self.executor.job_class(self.executor.folder, number), job.output, self)
        work = Remote(job.worker_arguments(), job.output.resolve(), self.threads, self.ranks)
        atomic.make_folder(note.parent)
        self.executor.update_parameters(job_name=re.sub(r"[^\w.=+-]+", "-", job.name))
        try:
            submitted = self.executor.submit(work)
        except Exception as error:  # submitit has several, and what sbatch said is in them
            said = ([line for line in str(error).splitlines() if line.strip()] or [repr(error)])[-1]
            raise GrowtasError(f"Slurm refused the job {job.name!r}: {said}") from error
        atomic.write_text(note, f"{submitted.job_id}\n")
        self._looked = -math.inf
        return SlurmHandle(submitted, job.output, self)

    def has(self, number: str) -> bool:
        """Return whether a job waits or runs, by a look at the queue that is not older than ``every``."""
        if time.monotonic() - self._looked >= self.every:
            self._numbers, self._looked = self.queue(), time.monotonic()
        return self._numbers is None or number in self._numbers

    def stop(self, handles: Sequence[SlurmHandle], kill: bool = False) -> str:
        """Leave the jobs to Slurm: whoever submits them need not stay. Returns: how to cancel them."""
        numbers = [handle.submitted.job_id for handle in handles]
        if not numbers:
            return ""
        jobs = "1 job goes on" if len(numbers) == 1 else f"{len(numbers)} jobs go on"
        return f"{jobs} in Slurm; to cancel: scancel {' '.join(numbers)}."
