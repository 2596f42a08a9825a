"""Jobs as processes of this machine, spread over its GPUs."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from growtas import threads
from growtas.jobs import job as jobs

PATIENCE = 120.0  # seconds for a job to save and end after an interrupt


@dataclass
class LocalHandle:
    """A running process.

    Args:
        process: of the job.
        output: what it prints.
        gpus: that it was given.
    """

    process: subprocess.Popen
    output: Path
    gpus: tuple[str, ...]

    def poll(self) -> str | None:
        """See :class:`growtas.jobs.job.Handle`."""
        status = self.process.poll()
        if status is None:
            return None
        self.process.stdin.close()
        return jobs.outcome(status, self.output)


@dataclass
class Local:
    """Launches processes of this machine.

    Args:
        at_once: jobs that may run together.
        threads: of each process of a job.
        ranks: processes that a job trains with, each on a GPU of its own.
        gpus: what CUDA_VISIBLE_DEVICES calls the GPUs that jobs are spread over; where there are none, jobs
            see what this process sees.
    """

    at_once: int
    threads: int
    ranks: int = 1
    gpus: tuple[str, ...] = ()
    pause: float = 0.05
    _started: list[LocalHandle] = field(default_factory=list)

    def start(self, job: jobs.Job) -> LocalHandle:
        """Start a job on the GPUs that run the fewest."""
        self._started = [handle for handle in self._started if handle.process.poll() is None]
        busy = Counter(gpu for handle in self._started for gpu in handle.gpus)
        gpus = tuple(sorted(self.gpus, key=lambda gpu: busy[gpu])[: self.ranks])
        variables = threads.count_variables(self.threads)
        if self.at_once * self.ranks > 1 or not threads.alone():
            variables |= threads.waiting_variables()
        if gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        process = jobs.start_process(job.worker_arguments(), job.output, variables)
        handle = LocalHandle(process, job.output, gpus)
        self._started.append(handle)
        return handle

    def stop(self, handles: Sequence[LocalHandle], kill: bool = False) -> str:
        """Interrupt every process once and wait until it has saved its state; kill those that do not end."""
        for handle in handles:
            handle.process.send_signal(signal.SIGKILL if kill else signal.SIGINT)
        end = time.monotonic() + PATIENCE
        for handle in handles:
            with suppress(subprocess.TimeoutExpired):
                handle.process.wait(max(0.0, end - time.monotonic()))
            handle.process.kill()  # nothing where it has ended
            handle.process.wait()
            handle.process.stdin.close()
        return ""
