"""Which backend runs: explicit requests fail loudly, ``auto`` follows measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from growtas import ops
from growtas.errors import GrowtasError, UsageError
from growtas.ops import backend, records
from growtas.ops.reference import products

CPU = torch.device("cpu")


@pytest.fixture
def table(monkeypatch):
    """Replace the record in force on the CPU."""

    def replace(choices: dict) -> None:
        found = records.Found({"choices": choices}, Path("of-the-test.json"), "user")
        monkeypatch.setattr(records, "find", lambda device: found)
        backend.changed()

    yield replace
    monkeypatch.undo()
    backend.changed()


def test_use_restores_what_was_in_force():
    before = backend.requested()
    with ops.use("torch"):
        assert backend.requested() == "torch"
        with ops.use("cpu"):
            assert backend.choose("layer_norm", CPU, torch.float32, 64) == "cpu"
            assert backend.choose("mlp", CPU, torch.float32, 64) == "torch"  # no C++ kernel: a composition
        assert backend.requested() == "torch"
    assert backend.requested() == before


def test_unknown_name():
    with pytest.raises(UsageError, match="no backend 'tritn'. Did you mean 'triton'"):
        ops.use("tritn")


def test_explicit_request_fails_loudly():
    with ops.use("cpu"), pytest.raises(UsageError, match="float64, which it has no kernel for"):
        backend.choose("layer_norm", CPU, torch.float64, 64)
    if not torch.cuda.is_available():
        with pytest.raises(GrowtasError, match="Backend 'cuda' cannot run here: .+ .+"):
            ops.use("cuda")
    with ops.use("cpu"), pytest.raises(UsageError, match="the tensors are on 'meta'"):
        backend.choose("layer_norm", torch.device("meta"), torch.float32, 64)


def test_a_kernel_is_looked_up_once_until_something_changes(monkeypatch):
    asked, x = [], torch.zeros(2, 8)
    choose = backend.choose
    monkeypatch.setattr(backend, "choose", lambda *which: asked.append(which) or choose(*which))
    with ops.use("torch"):
        found = [backend.kernel("linear", "linear_forward", x, 8) for _ in range(3)]
        assert len(asked) == 1
        assert found == [products.linear_forward] * 3
        assert backend.kernel("linear", "linear_backward_weight", x, 8) is products.linear_backward_weight
        backend.kernel("linear", "linear_forward", x, 8, torch.bfloat16)
        backend.kernel("linear", "linear_forward", x, 16)
        assert len(asked) == 4
    with ops.use("torch"):
        backend.kernel("linear", "linear_forward", x, 8)
    assert len(asked) == 5


@pytest.mark.parametrize(("value", "expected"), [("torch", "torch"), ("", "auto"), (None, "auto")])
def test_environment_request(value, expected, monkeypatch):
    monkeypatch.setattr(backend, "_request", None)  # as in a fresh process
    if value is None:
        monkeypatch.delenv("GROWTAS_BACKEND", raising=False)
    else:
        monkeypatch.setenv("GROWTAS_BACKEND", value)
    assert backend.requested() == expected


def test_wrong_environment_request(monkeypatch):
    monkeypatch.setattr(backend, "_request", None)
    monkeypatch.setenv("GROWTAS_BACKEND", "gpu")
    with pytest.raises(UsageError, match="There is no backend 'gpu'. Did you mean 'cpu'"):
        backend.requested()


def test_auto_follows_the_table(table):
    table({"layer_norm": {"float32": {"256": "cpu"}}})
    with ops.use("auto"):
        assert backend.choose("layer_norm", CPU, torch.float32, 216) == "cpu"
        assert backend.choose("layer_norm", CPU, torch.float32, 448) == "torch"
        assert backend.choose("layer_norm", CPU, torch.bfloat16, 216) == "torch"
        assert backend.choose("layer_norm", CPU, torch.float64, 216) == "torch"


def test_auto_falls_back_quietly(table, monkeypatch):
    table({"layer_norm": {"float32": {"256": "cpu"}}, "linear": {"float32": {"256": "cpu"}}})
    monkeypatch.setattr(
        backend, "available", lambda name: backend.Availability(name == "torch", "it was not built", "")
    )
    with backend._Use(backend.requested()):
        backend._set("auto")
        assert backend.choose("layer_norm", CPU, torch.float32, 216) == "torch"
        assert backend.choose("linear", CPU, torch.float32, 216) == "torch"  # no such kernel


@pytest.mark.parametrize(
    ("width", "expected"), [(1, "64"), (64, "64"), (65, "128"), (840, "1024"), (4000, "1024")]
)
def test_shape_class(width, expected):
    assert backend.shape_class(width) == expected


def test_a_choice_may_name_a_tile(table):
    table({"layer_norm": {"float32": {"256": {"backend": "cpu", "tile": {"rows": 4}}, "64": "cpu"}}})
    with ops.use("auto"):
        assert backend.choose("layer_norm", CPU, torch.float32, 216) == "cpu"
        assert backend.tile("layer_norm", CPU, torch.float32, 216) == {"rows": 4}
        assert backend.tile("layer_norm", CPU, torch.float32, 64) is None
    with ops.use("cpu"):
        assert backend.tile("layer_norm", CPU, torch.float32, 216) is None  # of the record, not of a request


def test_the_epoch_changes_with_every_answer(table):
    seen = {backend.epoch()}
    with ops.use("torch"):
        seen.add(backend.epoch())
        assert backend.choose("layer_norm", CPU, torch.float32, 64) == "torch"
        with backend.assigned({"layer_norm": "cpu"}, {"qkv": {"float32": {"64": "triton"}}}):
            seen.add(backend.epoch())
            meta = torch.device("meta")  # who assigns is not asked whether it runs
            assert backend.choose("layer_norm", meta, torch.float64, 64) == "cpu"
            assert backend.choose("qkv", meta, torch.float32, 64) == "triton"
            assert backend.choose("qkv", meta, torch.float32, 65) == "torch"
        seen.add(backend.epoch())
        assert backend.choose("layer_norm", CPU, torch.float32, 64) == "torch"
    table({})
    seen |= {backend.epoch()}
    assert len(seen) == 5


def test_adopted_records_come_first(table, monkeypatch):
    table({})
    monkeypatch.setattr(backend, "_adopted", {})
    choices = {"layer_norm": {"float32": {"64": "cpu"}}}
    backend.adopt(CPU, records.Found({"choices": choices}, Path("of-rank-0.json"), "user"))
    with ops.use("auto"):
        assert backend.choose("layer_norm", CPU, torch.float32, 64) == "cpu"
