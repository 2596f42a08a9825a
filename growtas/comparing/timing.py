"""What training took, over interruptions, and what made it."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

from growtas.comparing.plan import read_json, write_json


def cpu_seconds() -> float:
    """Processor time of this process and of the ended ones that it started."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Stopwatch:
    """Adds up the time of a ``with`` block over processes, in a file.

    A process that was killed leaves an attempt without an end: then the total is not known.

    Args:
        path: the file.
        device: what is computed on, noted beside the time.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        self._attempts: list[dict[str, float | None]] = []
        if path.exists():
            self._attempts = read_json(path)["attempts"]

    def __enter__(self) -> Stopwatch:
        self._attempts.append({"wall": None, "cpu": None})
        self._write()
        self._began = time.perf_counter(), cpu_seconds()
        return self

    def __exit__(self, *raised: object) -> None:
        wall, cpu = time.perf_counter() - self._began[0], cpu_seconds() - self._began[1]
        self._attempts[-1] = {"wall": round(wall, 3), "cpu": round(cpu, 3)}
        self._write()

    def _write(self) -> None:
        write_json(self.path, {"attempts": self._attempts})

    def total(self, before: list[dict[str, Any]]) -> dict[str, Any]:
        """The time of all phases.

        Args:
            before: the phases that went before this one.

        Returns:
            ``phases`` with ``wall`` and ``cpu`` seconds each, None where an attempt was killed; their sums;
            and ``device``, ``cpu`` or ``cuda``.
        """
        from growtas.training.distributed import choose_device

        sums = {
            name: None if any(each[name] is None for each in self._attempts) else sum_of(self._attempts, name)
            for name in ("wall", "cpu")
        }
        phases = [*before, sums]
        totals = {
            name: None if any(phase[name] is None for phase in phases) else sum_of(phases, name)
            for name in ("wall", "cpu")
        }
        return {**totals, "phases": phases, "device": choose_device(self.device).type}


def sum_of(parts: list[dict[str, Any]], name: str) -> float:
    """The sum of one entry over all parts, in seconds."""
    return round(sum(part[name] for part in parts), 3)
