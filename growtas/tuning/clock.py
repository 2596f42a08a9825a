"""Times two backends in turns, on inputs that are not in the cache.

A GPU is timed between two events. A wait of its own comes first, long enough for the host to queue all that
is timed, so that what is measured is the GPU's time and not the host's; the host's is kept beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from growtas.tuning.calls import Call

LEAST_ROUNDS = 5
MOST_ROUNDS = 60
SAMPLE_SECONDS = 1e-3
CYCLES_PER_SECOND = 2e9  # of torch.cuda._sleep, about; a wait that is too long costs only time
LONGEST_WAIT = 0.05

Way = Callable[[], AbstractContextManager]


def cache_bytes(device: torch.device) -> int:
    """The bytes that inputs must exceed together, so that none is in the cache when its turn comes."""
    if device.type != "cuda":
        return 32 * 2**20
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 50 * 2**20)


class _Timer:
    """Seconds per call of one pass of one backend, on all inputs in turn."""

    def __init__(self, runs: Sequence[Callable[[], object]], device: torch.device) -> None:
        self.runs, self.device = runs, device
        self.host = self.repeats = 0

    def prepare(self) -> None:
        """Run once unmeasured, then once to see how often a sample repeats the calls."""
        for run in self.runs:
            run()
        self._wait()
        begin = time.perf_counter()
        for run in self.runs:
            run()
        self.host = time.perf_counter() - begin
        self._wait()
        whole = time.perf_counter() - begin
        self.repeats = max(1, min(20, round(SAMPLE_SECONDS / whole)))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def sample(self) -> float:
        """Seconds per call."""
        self.runs[0]()  # what is looked up after a change of backends is not part of it
        self._wait()
        count = self.repeats * len(self.runs)
        if self.device.type != "cuda":
            begin = time.perf_counter()
            for _ in range(self.repeats):
                for run in self.runs:
                    run()
            return (time.perf_counter() - begin) / count
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wait = min(LONGEST_WAIT, 1.5 * self.host * self.repeats + 1e-4)
        torch.cuda._sleep(int(wait * CYCLES_PER_SECOND))
        start.record()
        begin = time.perf_counter()
        for _ in range(self.repeats):
            for run in self.runs:
                run()
        self.host = (time.perf_counter() - begin) / self.repeats
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / count


def race(calls: Sequence[Call], torch_way: Way, own_way: Way, seconds: float) -> dict[str, object]:
    """Forward passes, and forward with backward, of torch and of a candidate in turns.

    Args:
        calls: the same job on several tensors.
        torch_way, own_way: make the blocks within which each is in force.
        seconds: for all of it, about; five rounds are run in any case.

    Returns:
        ``forward`` and ``step``: times faster than torch, median and quartiles of the rounds; ``torch_us``
        and ``own_us``: medians of both; ``host_us`` of a step, of both; ``rounds``.
    """
    device = calls[0].gradient.device
    runs = {"forward": [call.forward for call in calls], "step": [call.step for call in calls]}
    ways = {"torch": torch_way, "own": own_way}
    timers = {(name, what): _Timer(run, device) for name in ways for what, run in runs.items()}
    for (name, _), timer in timers.items():
        with ways[name]():
            timer.prepare()
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in timers}
    begin = time.perf_counter()
    for turn in range(MOST_ROUNDS):
        if turn >= LEAST_ROUNDS and time.perf_counter() - begin > seconds:
            break
        for name in ("torch", "own") if turn % 2 else ("own", "torch"):
            with ways[name]():
                for what in runs:
                    samples[name, what].append(timers[name, what].sample())
    found: dict[str, object] = {what: _ratio(samples["torch", what], samples["own", what]) for what in runs}
    for name in ways:
        found[f"{name}_us"] = [1e6 * statistics.median(samples[name, what]) for what in runs]
    found["host_us"] = [1e6 * timers[name, "step"].host / len(calls) for name in ways]
    return {**_rounded(found), "rounds": len(samples["torch", "step"])}


def _ratio(torchs: Sequence[float], own: Sequence[float]) -> list[float]:
    """How many times faster than torch, pair by pair: median, lower and upper quartile."""
    pairs = [a / b for a, b in zip(torchs, own, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return [middle, low, high]


def _rounded(found: dict[str, object]) -> dict[str, object]:
    return {name: [float(f"{x:.4g}") for x in values] for name, values in found.items()}
