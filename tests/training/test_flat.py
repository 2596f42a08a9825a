"""Memory, caches and file descriptors do not grow with the steps of a run, nor with the subnets it draws."""

from __future__ import annotations

import functools
import gc
import os
import random
import sys
from operator import itemgetter

import pytest
import torch
from runs import SMALL, SPACE

import growtas
from growtas.training.loop import Trainer


@pytest.fixture(autouse=True)
def _few_objects():
    """Leave out of the counts, and of the collections before them, what other tests imported and keep."""
    gc.collect()
    gc.freeze()


def caches() -> dict[str, int]:
    """Entries of every cache of functions, and of every collection at the top of a module, of growtas."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "growtas":
            for key, value in vars(module).items():
                if isinstance(value, functools._lru_cache_wrapper):
                    found[f"{name}.{key}"] = value.cache_info().currsize
                elif isinstance(value, dict | list | set) and not key.startswith("__"):
                    found[f"{name}.{key}"] = len(value)
    return found


def state() -> tuple[int, int, dict[str, int]]:
    """Objects that the garbage collector knows, open descriptors, and entries of caches."""
    gc.collect()
    return len(gc.get_objects()), len(os.listdir("/proc/self/fd")), caches()


def assert_flat(before, after, steps):
    """Less than one object for every second step is new, no descriptor, and few entries of caches."""
    grown = {name: count - before[2].get(name, 0) for name, count in after[2].items()}
    assert after[1] == before[1]
    assert sum(count for count in grown.values() if count > 0) < steps / 4, grown  # rare sizes are met late
    assert after[0] - before[0] < steps / 2


@pytest.mark.parametrize(
    ("backend", "steps"), [pytest.param("torch", 60, marks=pytest.mark.slow), ("cpu", 200)]
)
def test_subnets_leave_nothing_behind(backend, steps):
    net, rng = growtas.Supernet(SPACE, num_classes=4), random.Random(0)
    images = torch.zeros(2, 1, 8, 8)

    def work(count: int) -> None:
        for _ in range(count):
            net(images, SPACE.sample(rng)).sum().backward()
            net.zero_grad()

    with growtas.ops.use(backend):
        work(60)
        before = state()
        work(steps)
        assert_flat(before, state(), steps)


def test_steps_leave_nothing_behind(tmp_path, monkeypatch):
    """A run is looked at in two spans of steps: how many gradients there are depends on the subnet."""
    seen, step = [], Trainer._step

    def looking(self, *args):
        if self.progress.step in (*range(60, 64), *range(135, 139)):
            seen.append(state())
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", looking)
    settings = SMALL | {"batch_size": 32, "epochs": 4, "eval_every": 0, "stages": 1, "log_steps": 10}
    growtas.train(**settings | {"transition": "size-aware"}, out=tmp_path / "run")
    assert_flat(min(seen[:4], key=itemgetter(0)), min(seen[4:], key=itemgetter(0)), steps=75)


def test_what_is_kept_of_every_step_is_noticed():
    before, kept = state(), []
    kept += [[step] for step in range(200)]
    with pytest.raises(AssertionError):
        assert_flat(before, state(), 200)
