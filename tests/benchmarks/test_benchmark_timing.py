"""Paired timing, with a GPU that is made of a list and a clock."""

from __future__ import annotations

import contextlib

import pytest
import torch
from common import timing


def test_spread_interpolates_quartiles():
    assert timing.spread([4.0, 1.0, 3.0, 2.0]) == (2.5, 1.75, 3.25)
    assert timing.spread([7.0]) == (7.0, 7.0, 7.0)


def test_ratio_is_paired_by_round():
    """Drift that hits both alike leaves the ratio exact, where a ratio of medians would be off."""
    load = [1.0, 5.0, 2.0]
    assert timing.ratio([3 * x for x in load], [2 * x for x in load]) == (1.5, 1.5, 1.5)


def test_calmed_drops_single_disturbances():
    assert timing.calmed([1.0, 90.0, 1.0, 2.0, 2.0, 90.0, 7.0], block=3) == [1.0, 2.0]
    assert timing.calmed([1.0, 3.0], block=3) == [2.0]


def test_interleave_takes_turns_and_stops_in_time():
    turns: list[str] = []

    def sampler(name):
        return lambda: turns.append(name) or 1.0

    samples = timing.interleave({"a": sampler("a"), "b": sampler("b")}, seconds=60, rounds=20)
    assert [len(own) for own in samples.values()] == [20, 20]
    rounds = list(zip(turns[::2], turns[1::2], strict=True))
    assert all(sorted(pair) == ["a", "b"] for pair in rounds)
    assert len(set(rounds)) == 2, "the order is the same in every round"
    short = timing.interleave({"a": sampler("a")}, seconds=0, rounds=20, least=3)
    assert len(short["a"]) == 3


@pytest.mark.parametrize(("bytes_", "sets"), [(1, 8), (2**20, 5), (2**30, 2)])
def test_rotation_leaves_the_cache_cold(bytes_, sets):
    assert timing.rotation(bytes_, cache_bytes=2 * 2**20) == sets


def test_cpu_sampler_walks_through_the_inputs_and_divides_by_the_calls():
    now, called = [0.0], []

    def call(name):
        def work():
            called.append(name)
            now[0] += 0.25

        return work

    sample = timing.cpu_sampler([call("a"), call("b")], least_seconds=1.0, clock=lambda: now[0])
    called.clear()
    assert sample() == 0.25
    assert called == ["a", "b", "a", "b"]


class FakeGPU:
    """As much of torch.cuda as the sampler uses: time passes when work runs; captured work is replayed."""

    def __init__(self, capture_fails: bool = False) -> None:
        self.now, self.graph_calls, self.active = 0.0, None, ["default"]
        self.capture_fails = capture_fails

    def work(self, name: str, seconds: float, log: list[tuple[str, str]]):
        def call():
            if self.graph_calls is not None:
                if self.capture_fails:
                    raise RuntimeError("operation not permitted when stream is capturing\nand more")
                self.graph_calls.append(call)
                return
            log.append((name, self.active[-1]))
            self.now += seconds

        return call

    def Stream(self):
        return FakeStream()

    def current_stream(self):
        return FakeStream()

    def synchronize(self):
        pass

    @contextlib.contextmanager
    def stream(self, stream):
        self.active.append("side")
        yield
        self.active.pop()

    def CUDAGraph(self):
        return FakeGraph()

    @contextlib.contextmanager
    def graph(self, graph, stream):
        self.graph_calls = graph.calls
        try:
            with self.stream(stream):
                yield
        finally:
            self.graph_calls = None

    def Event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self)


class FakeStream:
    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class FakeGraph:
    def __init__(self):
        self.calls = []

    def replay(self):
        for call in self.calls:
            call()


class FakeEvent:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self, stream):
        self.at = self.gpu.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.mark.parametrize("capture_fails", [False, True])
@pytest.mark.parametrize("use_graph", [True, False])
def test_cuda_sampler_gives_seconds_per_call(use_graph, capture_fails):
    gpu, log = FakeGPU(capture_fails), []
    made_on = []

    def maker(name, seconds):
        def make():
            made_on.append(gpu.active[-1])
            return gpu.work(name, seconds, log)

        return make

    sample, how = timing.cuda_sampler(
        [maker("a", 1e-4), maker("b", 3e-4)], least_seconds=1.5e-3, use_graph=use_graph, cuda=gpu
    )
    assert made_on == ["side", "side"], "a backward pass would run on another stream than the capture's"
    log.clear()
    assert sample() == pytest.approx(2e-4)
    assert [name for name, _ in log] == ["a", "b"] * 4
    assert {stream for _, stream in log} == {"side"}
    if use_graph and capture_fails:
        assert (
            how == "CUDA events, since the capture failed: operation not permitted when stream is capturing"
        )
    else:
        assert how == ("CUDA graph" if use_graph else "CUDA events")


def test_sampler_on_one_thread_does_not_count_other_programs():
    assert torch.get_num_threads() == 1
    _, how = timing.sampler([lambda: lambda: None], torch.device("cpu"), 0.0)
    assert how == "CPU time"
