"""Runs lists of jobs through a launcher, several at once, and stops cleanly."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from growtas.jobs.job import Handle, Job, Launcher
from growtas.progress import Progress


@dataclass(frozen=True)
class Runner:
    """Runs lists of jobs.

    Args:
        launcher: starts them.
        again: the end of the sentence that an interrupt is answered with.
    """

    launcher: Launcher
    again: str

    def run(self, jobs: Iterable[Job], title: str, unit: str) -> dict[str, str]:
        """Run jobs in order, each as soon as there is room and its predecessor is done.

        Args:
            jobs: to run.
            title: of the progress bar.
            unit: that it counts.

        Returns:
            For each job that failed, by name: the sentence with which it did.

        Raises:
            GrowtasError: the launcher can start no job.
            Interrupted: SIGINT or SIGTERM; the launcher has answered it.
        """
        from growtas.training.guards import Interrupted, stop_signals

        jobs = list(jobs)
        pool = _Pool(
            [job for job in jobs if not job.done],
            self.launcher,
            Progress(len(jobs), title, unit, sum(job.done for job in jobs)),
        )
        try:
            with pool.progress, stop_signals() as received:
                while (pool.waiting or pool.running) and not received:
                    pool.start_what_can()
                    time.sleep(self.launcher.pause)
                    pool.collect()
                going_on = pool.stop() if received else ""
            if received:
                told = " ".join(filter(None, (going_on, self.again)))
                raise Interrupted(f"Interrupted; what was trained is kept. {told}", received[0])
        finally:
            pool.stop(kill=True)  # only after a second signal, or an error of our own
        return pool.failed


class _Pool:
    """Jobs that wait, that run, and that failed."""

    def __init__(self, jobs: list[Job], launcher: Launcher, progress: Progress) -> None:
        self.waiting, self.launcher, self.progress = jobs, launcher, progress
        self.running: dict[Job, Handle] = {}
        self.failed: dict[str, str] = {}

    def start_what_can(self) -> None:
        """Fill the room there is."""
        for job in list(self.waiting):
            if len(self.running) >= self.launcher.at_once:
                return
            if job.after in self.failed:
                self.waiting.remove(job)
                self._end(job, f"{job.after} failed, from which it goes on.")
            elif job.after not in {other.name for other in (*self.waiting, *self.running)}:
                self.waiting.remove(job)
                self.running[job] = self.launcher.start(job)
                self.progress.show(", ".join(job.name for job in self.running))

    def collect(self) -> None:
        """Take note of the jobs that have ended."""
        for job, handle in list(self.running.items()):
            failure = handle.poll()
            if failure is not None:
                del self.running[job]
                self._end(job, failure or None)
                self.progress.show(", ".join(job.name for job in self.running))

    def _end(self, job: Job, failure: str | None) -> None:
        progress = self.progress
        progress.update()
        if failure is not None:
            self.failed[job.name] = failure
        if failure is not None or not progress.has_bar:
            sentence = f"{job.name} is done" if failure is None else f"{job.name} failed: {failure}"
            progress.say(f"{progress.done} of {progress.total}: {sentence}")

    def stop(self, kill: bool = False) -> str:
        """See :class:`growtas.jobs.job.Launcher`."""
        going_on = self.launcher.stop(list(self.running.values()), kill)
        self.running.clear()
        return going_on
