"""Paired timing: rivals take turns in one process, so that a busy machine disturbs all of them alike.

A *sampler* is a function that times its work once and gives seconds per call. :func:`interleave` calls
samplers round by round in shuffled order; :func:`ratio` compares two of them round by round, which drift
and load disturb far less than a ratio of two medians.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]
Maker = Callable[[], Call]
Sampler = Callable[[], float]


class Spread(NamedTuple):
    """Median and quartiles of some samples."""

    median: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles, interpolated linearly.

    Args:
        samples: at least one number.
    """
    ordered = sorted(samples)

    def quantile(share: float) -> float:
        place = share * (len(ordered) - 1)
        below, above = math.floor(place), math.ceil(place)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    return Spread(quantile(0.5), quantile(0.25), quantile(0.75))


def ratio(baseline: Sequence[float], contender: Sequence[float]) -> Spread:
    """How many times faster the contender is than the baseline, paired by round: over 1 is faster.

    Args:
        baseline, contender: seconds, one entry per round, as :func:`interleave` gives them.
    """
    return spread([b / c for b, c in zip(baseline, contender, strict=True)])


def calmed(samples: Sequence[float], block: int) -> list[float]:
    """The medians of blocks of neighbouring rounds: turns that another program cut into drop out.

    Args:
        samples: seconds, one entry per round.
        block: rounds in a block; a rest at the end is left out, unless there is nothing else.
    """
    if len(samples) < block:
        return [spread(samples).median]
    return [spread(samples[i : i + block]).median for i in range(0, len(samples) - block + 1, block)]


def interleave(
    samplers: Mapping[str, Sampler], *, seconds: float, rounds: int = 30, least: int = 3, seed: int = 0
) -> dict[str, list[float]]:
    """Let samplers take turns, in another order every round.

    Args:
        samplers: by name.
        seconds: after which no further round begins, once ``least`` rounds are done.
        rounds: at most.
        least: at least, whatever the time.
        seed: of the shuffling.

    Returns:
        Seconds per call, by name; entry i of every list comes from round i.
    """
    order, samples = list(samplers), {name: [] for name in samplers}
    shuffle = random.Random(seed).shuffle
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= least and time.perf_counter() > end:
            break
        shuffle(order)
        for name in order:
            samples[name].append(samplers[name]())
    return samples


def rotation(set_bytes: int, cache_bytes: int, most: int = 8) -> int:
    """How many sets of inputs a sampler has to walk through so that each is cold in the cache again.

    Args:
        set_bytes: inputs and outputs of one call.
        cache_bytes: of the last-level cache.
        most: never more sets than this.
    """
    return min(most, 1 + math.ceil(2 * cache_bytes / max(1, set_bytes)))


def cpu_sampler(
    calls: Sequence[Call], least_seconds: float = 2e-3, clock: Callable[[], float] = time.perf_counter
) -> Sampler:
    """Time work on the CPU.

    Args:
        calls: the same work on different inputs, walked through in turn.
        least_seconds: calls are repeated until one sample lasts this long, so that the clock's step and the
            loop's own cost vanish in it.
        clock: in seconds.
    """
    for call in calls:
        call()
    begin = clock()
    calls[0]()
    once = clock() - begin
    repeats = max(1, min(10_000, math.ceil(least_seconds / max(once, 1e-7))))
    turn = 0

    def sample() -> float:
        nonlocal turn
        begin = clock()
        for _ in range(repeats):
            calls[turn % len(calls)]()
            turn += 1
        return (clock() - begin) / repeats

    return sample


def cuda_sampler(
    makers: Sequence[Maker], least_seconds: float = 1e-3, use_graph: bool = True, cuda: Any = torch.cuda
) -> tuple[Sampler, str]:
    """Time work on a GPU with events, from a CUDA graph where the work can be captured.

    A graph leaves the host's launch cost out: what is timed is the device. Its calls walk through the inputs,
    so that no call finds its own in the L2 cache.

    Args:
        makers: make the calls, the same work on different inputs.
        least_seconds: one sample lasts at least about this long.
        use_graph: False times eager launches, host cost included.
        cuda: torch.cuda, or a stand-in for it in tests.

    Returns:
        The sampler and how it times: ``"CUDA graph"`` or ``"CUDA events"``, with the reason why no graph.
    """
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        # Made on this stream: autograd runs a backward pass on the stream of its forward pass, and a capture
        # takes work of one stream only.
        calls = [make() for make in makers]
        for _ in range(2):  # compiles, tunes and fills the allocator, none of which a capture allows
            for call in calls:
                call()
    stream.synchronize()
    once = _event_seconds(cuda, stream, calls, len(calls)) / len(calls)
    # Whole walks through the inputs, so that every replay does the same work.
    repeats = len(calls) * max(1, min(64, math.ceil(least_seconds / max(once * len(calls), 1e-7))))
    how = "CUDA events"
    if use_graph:
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph, stream=stream):
                for turn in range(repeats):
                    calls[turn % len(calls)]()
        except RuntimeError as error:
            how = f"CUDA events, since the capture failed: {str(error).splitlines()[0]}"
            cuda.synchronize()
        else:
            with cuda.stream(stream):
                graph.replay()
            stream.synchronize()
            return lambda: _event_seconds(cuda, stream, [graph.replay], 1) / repeats, "CUDA graph"
    return lambda: _event_seconds(cuda, stream, calls, repeats) / repeats, how


def _event_seconds(cuda: Any, stream: Any, calls: Sequence[Call], repeats: int) -> float:
    """Device time of ``repeats`` calls in turn, in seconds."""
    begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    with cuda.stream(stream):
        begin.record(stream)
        for turn in range(repeats):
            calls[turn % len(calls)]()
        end.record(stream)
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3  # elapsed_time is in milliseconds


def sampler(
    makers: Sequence[Maker], device: torch.device, least_seconds: float, use_graph: bool = True
) -> tuple[Sampler, str]:
    """The sampler for a device, and how it times.

    Args:
        makers: make the calls, the same work on different inputs.
        device: where the work runs.
        least_seconds: of one sample.
        use_graph: on a GPU, capture the work in a CUDA graph.
    """
    if device.type == "cuda":
        return cuda_sampler(makers, least_seconds, use_graph)
    calls = [make() for make in makers]
    if torch.get_num_threads() == 1:
        # With one thread the work is what the process ran: other programs' turns on the core do not count.
        return cpu_sampler(calls, least_seconds, time.process_time), "CPU time"
    return cpu_sampler(calls, least_seconds), "wall clock"
