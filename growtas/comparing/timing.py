"""How long training took, over interruptions."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from growtas.jobs.folder import read_json, write_json

_CLOCKS = ("wall", "cpu")
Times = dict[str, float | None]  # seconds by clock; None where a process was killed


def cpu_seconds() -> float:
    """Processor time of this process and of the ended ones that it started."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def timed(path: Path) -> Iterator[None]:
    """Add the time of a ``with`` block to a file; a killed process leaves an attempt without an end."""
    attempts: list[Times] = [*_attempts(path), dict.fromkeys(_CLOCKS)]
    write_json(path, {"attempts": attempts})
    began = time.perf_counter(), cpu_seconds()
    try:
        yield
    finally:
        ends = time.perf_counter(), cpu_seconds()
        spent = (round(end - begin, 3) for begin, end in zip(began, ends, strict=True))
        attempts[-1] = dict(zip(_CLOCKS, spent, strict=True))
        write_json(path, {"attempts": attempts})


def total(path: Path, before: list[Times]) -> dict[str, Any]:
    """The ``wall`` and ``cpu`` seconds of all ``phases``: those before, and the attempts in the file."""
    phases = [*before, _sums(_attempts(path))]
    return {**_sums(phases), "phases": phases}


def _attempts(path: Path) -> list[Times]:
    if not path.exists():
        return []
    return read_json(path, lambda data: [{name: each[name] for name in _CLOCKS} for each in data["attempts"]])


def _sums(parts: list[Times]) -> Times:
    known = {name: [part[name] for part in parts] for name in _CLOCKS}
    return {name: None if None in own else round(sum(own), 3) for name, own in known.items()}
