"""Timing: in turns, in pairs, and on a GPU between events that the host does not hold up."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from growtas.tuning import clock


class FakeGPU:
    """Runs what is queued in order on a clock of its own, which also the host's clock reads."""

    def __init__(self) -> None:
        self.host = self.device = 0.0
        self.speed = 1.0

    def queue(self, gpu: float, host: float) -> None:
        self.host += host
        self.device = max(self.device, self.host) + gpu

    def event(self, enable_timing: bool) -> SimpleNamespace:
        own = SimpleNamespace(at=0.0)
        own.record = lambda: setattr(own, "at", max(self.device, self.host))
        own.synchronize = lambda: setattr(self, "host", max(self.host, self.device))
        own.elapsed_time = lambda other: 1e3 * (other.at - own.at)
        return own

    def synchronize(self, *_) -> None:
        self.host = max(self.host, self.device)


@pytest.fixture
def fake(monkeypatch):
    gpu = FakeGPU()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    monkeypatch.setattr(
        torch.cuda, "_sleep", lambda cycles: gpu.queue(cycles / clock.CYCLES_PER_SECOND, 5e-6)
    )
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: gpu.host))
    return gpu


def ways(gpu: FakeGPU, own: float):
    @contextmanager
    def way(speed: float):
        gpu.speed = speed
        yield

    return (lambda: way(1.0)), (lambda: way(own))


def call(gpu: FakeGPU, forward: float, step: float, host: float) -> SimpleNamespace:
    return SimpleNamespace(
        gradient=SimpleNamespace(device=torch.device("cuda", 0)),
        forward=lambda: gpu.queue(forward / gpu.speed, host),
        step=lambda: gpu.queue(step / gpu.speed, 3 * host),
    )


@pytest.mark.parametrize("host", [1e-6, 4e-4])
def test_the_gpus_time_is_measured_and_not_the_hosts(fake, host):
    """Calls of 60 and 180 us that the host queues in 1 us, or in 0.4 and 1.2 ms."""
    torchs, own = ways(fake, 1.5)
    calls = [call(fake, 60e-6, 180e-6, host) for _ in range(3)]
    found = clock.race(calls, torchs, own, 0.0)
    assert found["forward"] == pytest.approx([1.5] * 3, rel=0.02)
    assert found["step"] == pytest.approx([1.5] * 3, rel=0.02)
    assert found["torch_us"] == pytest.approx([60, 180], rel=0.02)
    assert found["own_us"] == pytest.approx([40, 120], rel=0.02)
    assert found["host_us"] == pytest.approx([3e6 * host] * 2, rel=0.02)
    assert found["rounds"] == clock.LEAST_ROUNDS


def test_time_that_is_there_is_used(fake):
    torchs, own = ways(fake, 0.5)
    found = clock.race([call(fake, 60e-6, 180e-6, 1e-6)], torchs, own, 0.2)
    assert found["forward"][0] == pytest.approx(0.5, rel=0.02)
    assert clock.LEAST_ROUNDS < found["rounds"] <= clock.MOST_ROUNDS
