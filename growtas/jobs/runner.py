"""Runs jobs in processes of their own, several at once, and stops them cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growtas import cost
from growtas.progress import Progress
from growtas.space import Space

SMALL_NET = 1_000_000  # parameters; below, several runs side by side use a CPU better than one with threads
_POLL = 0.05  # seconds
_PATIENCE = 120.0  # seconds for a job to save and end after an interrupt
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A piece of work that can be killed at any moment and started again.

    Args:
        name: unique among the jobs; for messages.
        work: ``MODULE:FUNCTION`` that does it.
        arguments: of that function, by name; plain values.
        output: file for what its process prints.
        after: name of the job that must succeed first; one that is not among the jobs has.
        done: it was finished earlier: it is counted and not run.
    """

    name: str
    work: str
    arguments: Mapping[str, Any] = field(hash=False)
    output: Path
    after: str | None = None
    done: bool = False

    def worker_arguments(self) -> list[str]:
        """The arguments of :func:`growtas.jobs.worker.main`."""
        return [self.work, json.dumps(dict(self.arguments)), "--guarded"]


@dataclass(frozen=True)
class Runner:
    """Runs lists of jobs.

    Args:
        at_once: processes.
        threads: of each process.
        device: for the jobs to compute on.
        again: the end of the sentence that an interrupt is answered with.
    """

    at_once: int
    threads: int
    device: str
    again: str

    @classmethod
    def for_space(cls, space: Space, num_classes: int, jobs: int | None, device: str, again: str) -> Runner:
        """A runner for networks of a space. Args: jobs: processes; chosen by the device and size if None."""
        from growtas.training.distributed import choose_device

        chosen, cores = choose_device(device), len(os.sched_getaffinity(0))
        if jobs is None:
            small = cost.parameters(space.largest(), space, num_classes) < SMALL_NET
            jobs = cores if chosen.type == "cpu" and small else 1
        return cls(jobs, max(1, cores // jobs), str(chosen), again)

    def run(self, jobs: Iterable[Job], title: str, unit: str) -> dict[str, str]:
        """Run jobs in order, each as soon as there is room and its predecessor is done.

        Args:
            jobs: to run.
            title: of the progress bar.
            unit: that it counts.

        Returns:
            For each job that failed, by name: the sentence with which it did.

        Raises:
            Interrupted: SIGINT or SIGTERM; every process was told, saved its state and ended.
        """
        from growtas.training.guards import Interrupted, stop_signals

        jobs = list(jobs)
        pool = _Pool(
            [job for job in jobs if not job.done],
            self,
            Progress(len(jobs), title, unit, sum(job.done for job in jobs)),
        )
        try:
            with pool.progress, stop_signals() as received:
                while (pool.waiting or pool.running) and not received:
                    pool.start_what_can()
                    time.sleep(_POLL)
                    pool.collect()
                if received:
                    pool.stop()
            if received:
                raise Interrupted(f"Interrupted; what was trained is kept. {self.again}", received[0])
        finally:
            pool.kill()  # only after a second signal, or an error of our own
        return pool.failed


class _Pool:
    """Jobs that wait, that run, and that failed."""

    def __init__(self, jobs: list[Job], runner: Runner, progress: Progress) -> None:
        self.waiting, self.runner, self.progress = jobs, runner, progress
        self.running: dict[Job, subprocess.Popen] = {}
        self.failed: dict[str, str] = {}

    def start_what_can(self) -> None:
        """Fill the room there is."""
        for job in list(self.waiting):
            if len(self.running) >= self.runner.at_once:
                return
            if job.after in self.failed:
                self.waiting.remove(job)
                self._end(job, f"{job.after} failed, from which it goes on.")
            elif job.after not in {other.name for other in (*self.waiting, *self.running)}:
                self.waiting.remove(job)
                self.running[job] = _start(job, self.runner.threads)
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
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with open(job.output, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "growtas.jobs.worker", *job.worker_arguments()],
            stdin=subprocess.PIPE,  # its other end closes with this process: then the job stops, too
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | dict.fromkeys(_THREADS, str(threads)),
            start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on once
        )


def _reason(job: Job, status: int) -> str:
    lines = job.output.read_text(errors="replace").strip().splitlines()
    said = lines[-1].strip() if lines else "it said nothing"
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{said} ({how}; see {job.output})"
