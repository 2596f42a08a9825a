"""Runs cells, and other work, in processes of their own, several at once, and stops them cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from growtas.progress import Progress
from growtas.training.guards import Interrupted, stop_signals

_POLL = 0.05  # seconds
_PATIENCE = 120.0  # seconds for a cell to save and end after an interrupt


@dataclass(frozen=True)
class Job:
    """A cell, or another piece of work, to run.

    Args:
        name: for messages; unique.
        arguments: of ``python -m MODULE``.
        output: file for what it prints.
        after: name of the job that must have succeeded before; one that is not among the jobs counts so.
        module: that does the work, as :func:`growtas.comparing.worker.run_worker` does.
    """

    name: str
    arguments: tuple[str, ...]
    output: Path
    after: str | None = None
    module: str = "growtas.comparing.cell"


def run_jobs(
    jobs: Iterable[Job],
    at_once: int,
    threads: int,
    done: int,
    title: str,
    again: str,
    unit: str = "cell",
) -> dict[str, str]:
    """Run jobs in order, each as soon as there is room and its predecessor is done.

    Args:
        jobs: to run.
        at_once: processes.
        threads: of each process.
        done: jobs finished earlier, for the progress bar.
        title: of the bar.
        again: the end of the sentence that an interrupt is answered with.
        unit: what the bar counts.

    Returns:
        For each job that failed, by name: the sentence with which it did.

    Raises:
        Interrupted: SIGINT or SIGTERM; every process was told, saved its state and ended.
    """
    jobs = list(jobs)
    pool = _Pool(jobs, at_once, threads, Progress(done + len(jobs), title, unit, done))
    try:
        with pool.progress, stop_signals() as received:
            while not pool.ended and not received:
                pool.start_what_can()
                time.sleep(_POLL)
                pool.collect()
            if received:
                pool.stop()
        if received:
            raise Interrupted(f"Interrupted; what was trained is kept. {again}", received[0])
    finally:
        pool.kill()  # only after a second signal, or an error of our own
    return pool.failed


class _Pool:
    """Jobs that wait, that run, and that failed."""

    def __init__(self, jobs: list[Job], at_once: int, threads: int, progress: Progress) -> None:
        self.waiting, self.at_once, self.threads, self.progress = list(jobs), at_once, threads, progress
        self.running: dict[Job, subprocess.Popen] = {}
        self.failed: dict[str, str] = {}

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return not self.waiting and not self.running

    def start_what_can(self) -> None:
        """Fill the room there is."""
        for job in list(self.waiting):
            if len(self.running) >= self.at_once:
                return
            if job.after in self.failed:
                self.waiting.remove(job)
                self._end(job, f"{job.after} failed, from which it goes on.")
            elif job.after not in {other.name for other in (*self.waiting, *self.running)}:
                self.waiting.remove(job)
                self.running[job] = _start(job, self.threads)
                self.progress.show(", ".join(job.name for job in self.running))

    def collect(self) -> None:
        """Take note of the processes that have ended."""
        for job, process in list(self.running.items()):
            status = process.poll()
            if status is not None:
                del self.running[job]
                process.stdin.close()
                self._end(job, _reason(job, status) if status else None)
                self.progress.show(", ".join(job.name for job in self.running))

    def _end(self, job: Job, failure: str | None) -> None:
        progress = self.progress
        progress.update()
        if failure is not None:
            self.failed[job.name] = failure
        if failure is not None or not progress.has_bar:
            sentence = f"{job.name} is done" if failure is None else f"{job.name} failed: {failure}"
            progress.say(f"{progress.done} of {progress.total}: {sentence}")

    def stop(self) -> None:
        """Interrupt every process once and wait until it has saved its state."""
        for process in self.running.values():
            process.send_signal(signal.SIGINT)
        end = time.monotonic() + _PATIENCE
        for job, process in list(self.running.items()):
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
                process.stdin.close()
                del self.running[job]

    def kill(self) -> None:
        """End what still runs."""
        for process in self.running.values():
            process.kill()
            process.wait()
            process.stdin.close()


def _start(job: Job, threads: int) -> subprocess.Popen:
    environment = {**os.environ, **_threads(threads)}
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with open(job.output, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", job.module, *job.arguments, "--guarded"],
            stdin=subprocess.PIPE,  # its other end closes with this process: then the cell stops, too
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on once
        )


def _threads(count: int) -> Mapping[str, str]:
    return {name: str(count) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def _reason(job: Job, status: int) -> str:
    lines = job.output.read_text(errors="replace").strip().splitlines()
    said = lines[-1].strip() if lines else "it said nothing"
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{said} ({how}; see {job.output})"
