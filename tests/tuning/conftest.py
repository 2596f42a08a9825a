"""A small case, and backends that must be left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # workers import fake_backends by the path of this process

from fake_gpu import GPU, KEY
from forked_worker import Forked

from growtas import load_space
from growtas.ops import dispatch, records
from growtas.tuning import children, driver
from growtas.tuning.cases import Case, cases


@pytest.fixture
def norm() -> Case:
    """LayerNorm at the digits' sizes, without the branch that it is checked in."""
    every = cases(load_space("digits"), 2, ("float32",), "cuda")  # where it is raced for itself
    (found,) = [case for case in every if case.op == "layer_norm"]
    return Case(found.op, found.dtype, found.width_class, found.jobs[:1], ())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("GROWTAS_CACHE", str(tmp_path / "cache"))
    dispatch.changed()
    yield tmp_path / "cache"
    monkeypatch.undo()
    dispatch.changed()


@pytest.fixture
def fake(monkeypatch):
    """Puts a fake in the place of the C++ LayerNorm."""

    def replace(prefix: str) -> None:
        table = dispatch.OPERATIONS["layer_norm"].backends
        monkeypatch.setitem(table, "cpu", dispatch.Lazy(f"fake_backends:{prefix}"))

    return replace


@pytest.fixture
def forked(monkeypatch):
    """Workers are forked from this process."""
    monkeypatch.setattr(children.subprocess, "Popen", Forked)


@pytest.fixture
def gpu(cache, monkeypatch):
    """A GPU on which all backends are available, and nothing to compile."""
    monkeypatch.setattr(records, "key", lambda device: KEY)
    monkeypatch.setattr(driver, "_device", lambda name: GPU)
    monkeypatch.setattr(dispatch, "available", lambda name: dispatch.Availability(True))
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    monkeypatch.setattr(driver.compiling, "compile_ahead", lambda *_: None)
    monkeypatch.setattr(driver.compiling, "processes", lambda *_: 1)
    dispatch.changed()
