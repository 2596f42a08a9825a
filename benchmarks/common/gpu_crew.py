"""Runs the jobs of ``make gpu`` in processes of their own, each with a limit; one that fails costs itself.

Three lanes: ``main`` runs one job at a time, since it times the device; ``burst`` runs several that use the
device, never beside a ``main`` one; ``side`` runs several that compile, whatever else goes on. Jobs start in
the order of the list as soon as their lane is free and what they need is done. A job is a function of
``common/gpu_jobs.py``, done by a worker that was started beforehand, or a command. Needs no torch: it starts
at once and survives whatever torch does.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.gpu_worker import append

WORKER = Path(__file__).with_name("gpu_worker.py")
ROOT = WORKER.parents[2]
BIRTH_SECONDS = 90.0  # for a worker to import what it needs, on a cold disk


@dataclass
class Job:
    """One thing to do.

    Args:
        name: for the report, unique.
        do: a function of the jobs' module; empty for a command.
        args: of the function.
        command: what runs in place of a worker.
        limit: seconds after which it is ended.
        lane: ``main``, ``burst`` or ``side``.
        needs: names of jobs that must have ended before.
        requires: names of jobs that must have ended well.
        by: seconds after the start of the run after which it does not start any more.
        on: the name of an earlier job whose process it continues, where that is still alive.
        keep: keep the process for a later job.
        after: called with the job when it has ended.
    """

    name: str
    do: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    limit: float = 30.0
    lane: str = "main"
    needs: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    by: float = float("inf")
    on: str = ""
    keep: bool = False
    after: Callable[[Job], None] | None = None
    status: str = ""
    seconds: float = 0.0


class Worker:
    """A process that waits for jobs."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Any) -> None:
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        self.born = time.monotonic()
        self.ready = False
        self.job: Job | None = None
        self.begin = 0.0
        self.rest = b""

    def start(self, job: Job) -> None:
        """Give it a job; the time of a worker that is still importing does not count for the job's limit."""
        self.job, self.begin = job, time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write((json.dumps({"do": job.do, "args": job.args}) + "\n").encode())
            self.process.stdin.flush()

    def heard(self) -> list[dict[str, Any]] | None:
        """Its lines since the last call; None where it is gone."""
        data = os.read(self.process.stdout.fileno(), 65536)
        if not data:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it and all that it started."""
        end(self.process, number)


def end(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """End a process with its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
    if number == signal.SIGKILL:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


class Crew:
    """Runs jobs.

    Args:
        seconds: of the whole run.
        records: files of JSON lines, which workers append to and where the end of each job is noted.
        log: an open file for all that is printed.
        environment: of all processes.
        device: as workers take it.
        jobs: the module that has the jobs' functions.
        side: how many jobs of the other lanes run at once.
        ready: how many workers are kept ahead of the jobs that wait.
        patience: what the limits of all jobs are multiplied by, where the device is slower than a GPU.
        python: the interpreter.
    """

    def __init__(
        self,
        seconds: float,
        records: Sequence[str],
        log: Any,
        environment: dict[str, str],
        device: str = "cuda",
        jobs: str = "common.gpu_jobs",
        side: int = 12,
        ready: int = 3,
        patience: float = 1.0,
        python: str = sys.executable,
    ) -> None:
        self.start = time.monotonic()
        self.deadline = self.start + seconds
        self.records, self.log, self.environment, self.side = list(records), log, environment, side
        self.ready, self.patience = ready, patience
        self.command = [python, "-P", str(WORKER), "--device", device, "--jobs", jobs, "--records", *records]
        self.waiting: list[Job] = []
        self.done: dict[str, Job] = {}
        self.spares: list[Worker] = []
        self.busy: list[Worker] = []
        self.kept: dict[str, Worker] = {}
        self.stillborn = 0
        self.commands: list[tuple[Job, subprocess.Popen, float]] = []
        self.selector = selectors.DefaultSelector()

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.start

    def hire(self, count: int) -> None:
        """Start workers ahead, so that importing is done when their job comes."""
        for _ in range(count):
            worker = Worker(self.command, self.environment, self.log)
            self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            self.spares.append(worker)

    def run(self, jobs: Sequence[Job], until: Callable[[], bool] | None = None) -> None:
        """Add jobs, and run until all of these have ended; others go on in later calls.

        Args:
            jobs: to add to those that wait already.
            until: end as soon as this holds, in place of that.
        """
        self.waiting += jobs
        names = [job.name for job in jobs]
        finished = until or (lambda: all(name in self.done for name in names))
        while not finished() and (self.waiting or self.busy or self.commands):
            self._dispatch()
            self._listen(0.1)
            self._enforce()
            if time.monotonic() > self.deadline:
                for job in self.waiting:
                    self._finish(job, "no time was left")
                self.waiting.clear()

    def end(self) -> None:
        """End every process."""
        for job in self.waiting:
            self._finish(job, "no time was left")
        self.waiting.clear()
        for job, process, begin in self.commands:
            end(process)
            self._finish(job, "the run ended before it did", begin)
        for worker in [*self.busy, *self.spares, *self.kept.values()]:
            worker.end()
            if worker.job:
                self._finish(worker.job, "the run ended before it did", worker.begin)
        self.commands, self.busy, self.spares, self.kept = [], [], [], {}

    # -- inside ----------------------------------------------------------------------------------------------

    def _finish(self, job: Job, status: str, begin: float | None = None) -> None:
        job.status = status
        job.seconds = time.monotonic() - begin if begin is not None else 0.0
        self.done[job.name] = job
        note = {"kind": "job", "job": job.name, "status": status, "seconds": round(job.seconds, 1)}
        append(self.records, {**note, "at": round(self.elapsed(), 1)})
        if job.after:
            job.after(job)

    def _dispatch(self) -> None:
        for job in list(self.waiting):
            failed = [n for n in job.requires if n in self.done and self.done[n].status != "ok"]
            if failed or self.elapsed() > job.by:
                self.waiting.remove(job)
                self._finish(job, f"left out: {failed[0]} failed" if failed else "no time was left")
                continue
            if not all(name in self.done for name in (*job.needs, *job.requires)) or not self._free(job):
                continue
            self.waiting.remove(job)
            self._begin(job)
        if self.stillborn >= 3 and not self.busy:
            for job in [job for job in self.waiting if job.do]:
                self.waiting.remove(job)
                self._finish(job, "no worker starts: the log says why")
        wanted = min(self.ready, sum(bool(job.do and not job.on) for job in self.waiting))
        if len(self.spares) < wanted:
            self.hire(wanted - len(self.spares))

    def _free(self, job: Job) -> bool:
        running = [w.job.lane for w in self.busy] + [other.lane for other, _, _ in self.commands]
        if job.lane == "main":
            return not {"main", "burst"} & set(running)
        return running.count(job.lane) < self.side and (job.lane == "side" or "main" not in running)

    def _begin(self, job: Job) -> None:
        if job.command:
            process = subprocess.Popen(
                job.command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self.commands.append((job, process, time.monotonic()))
            return
        worker = self.kept.pop(job.on, None)
        if worker is None:
            if not self.spares:
                self.hire(1)
            worker = next((w for w in self.spares if w.ready), self.spares[0])
            self.spares.remove(worker)
        self.busy.append(worker)
        worker.start(job)

    def _listen(self, seconds: float) -> None:
        for key, _ in self.selector.select(seconds):
            worker = key.data
            heard = worker.heard()
            for reply in heard or ():
                if reply["status"] == "ready":
                    worker.ready = True
                    worker.begin = time.monotonic()
                else:
                    self._reply(worker, reply["status"])
            if heard is None:
                self._gone(worker)

    def _reply(self, worker: Worker, status: str) -> None:
        job, worker.job = worker.job, None
        self.busy.remove(worker)
        if job.keep and status == "ok":
            self.kept[job.name] = worker
        else:
            self._release(worker)
        self._finish(job, status, worker.begin)

    def _release(self, worker: Worker) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(worker.process.stdout)
        worker.end()

    def _gone(self, worker: Worker) -> None:
        """A worker whose end of the pipe is closed: it crashed, or it has nothing left to do."""
        self._release(worker)
        self.stillborn += not worker.ready
        code = worker.process.returncode
        self.spares = [w for w in self.spares if w is not worker]
        self.kept = {name: w for name, w in self.kept.items() if w is not worker}
        if worker in self.busy:
            self.busy.remove(worker)
            why = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
            self._finish(worker.job, f"its process died: {why}", worker.begin)

    def _enforce(self) -> None:
        """End what is over its limit, and take notice of commands that ended."""
        now = time.monotonic()
        for worker in list(self.busy):
            job = worker.job
            limit = (
                min(worker.begin + self.patience * job.limit, self.deadline)
                if worker.ready
                else worker.born + BIRTH_SECONDS
            )
            if now > min(limit, self.deadline):
                self.busy.remove(worker)
                self._release(worker)
                self._finish(job, f"stopped after {now - worker.begin:.0f} s", worker.begin)
        for worker in [w for w in self.spares if not w.ready and now > w.born + BIRTH_SECONDS]:
            self.spares.remove(worker)
            self._release(worker)
        for entry in list(self.commands):
            job, process, begin = entry
            code = process.poll()
            if code is None and now > min(begin + self.patience * job.limit, self.deadline):
                end(process)
                status = f"stopped after {now - begin:.0f} s"
            elif code is None:
                continue
            else:
                status = "ok" if code == 0 else f"exit status {code}"
            self.commands.remove(entry)
            self._finish(job, status, begin)
