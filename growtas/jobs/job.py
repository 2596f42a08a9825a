"""A job, and the interface of the launchers that run jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from growtas import atomic


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


class Handle(Protocol):
    """A job that was started."""

    def poll(self) -> str | None:
        """Return None while it runs, an empty text where it succeeded, else the sentence of its failure."""


class Launcher(Protocol):
    """Runs jobs somewhere.

    Args:
        at_once: jobs that may run together.
        pause: seconds between two looks at them.
    """

    at_once: int
    pause: float

    def start(self, job: Job) -> Handle:
        """Start a job. Raises: GrowtasError: no job can be started here."""

    def stop(self, handles: Sequence[Any], kill: bool = False) -> str:
        """Answer an interrupt.

        Args:
            handles: of the jobs that have not ended.
            kill: this is the second interrupt, or an error: do not wait.

        Returns:
            A sentence on jobs that go on; empty where all have ended.
        """


def start_process(
    arguments: Sequence[str],
    output: Path,
    environment: Mapping[str, str],
    before: Callable[[], object] | None = None,
) -> subprocess.Popen:
    """Start the process of a job.

    Args:
        arguments: of :func:`growtas.jobs.worker.main`.
        output: file for what it prints.
        environment: variables in which it differs from this process.
        before: is called in the new process first.

    Raises:
        GrowtasError: the file cannot be written.
    """
    atomic.make_folder(output.parent)
    try:
        file = open(output, "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise atomic.not_written(output, error) from error
    with file:
        return subprocess.Popen(
            [sys.executable, "-m", "growtas.jobs.worker", *arguments],
            stdin=subprocess.PIPE,  # its other end closes with this process: then the job stops, too
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on once
            preexec_fn=before,
        )


def outcome(status: int, output: Path) -> str:
    """An empty text, or why a job's process failed. Args: status: as subprocess.Popen gives it."""
    if status == 0:
        return ""
    lines = output.read_text(errors="replace").strip().splitlines() if output.exists() else []
    last = lines[-1].strip() if lines else "it said nothing"
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{last} ({how}; see {output})"
