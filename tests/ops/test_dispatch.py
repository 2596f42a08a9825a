"""Which backend runs: explicit requests fail loudly, ``auto`` follows measurements."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch

from growtas import ops
from growtas.errors import GrowtasError, UsageError
from growtas.ops import dispatch, records
from growtas.ops.linear import LINEAR, cpu, reference

CPU = torch.device("cpu")


@pytest.fixture
def table(monkeypatch):
    """Replace the record in force on the CPU."""

    def replace(choices: dict) -> None:
        found = records.Found({"choices": choices}, Path("of-the-test.json"), "user")
        monkeypatch.setattr(records, "find", lambda device: found)
        dispatch.changed()

    yield replace
    monkeypatch.undo()
    dispatch.changed()


def test_use_restores_what_was_in_force():
    before = dispatch.requested()
    with ops.use("torch"):
        assert dispatch.requested() == "torch"
        with ops.use("cpu"):
            assert dispatch.choose("layer_norm", CPU, torch.float32, 64) == "cpu"
            assert dispatch.choose("mlp", CPU, torch.float32, 64) == "torch"  # no C++ kernel: a composition
        assert dispatch.requested() == "torch"
    assert dispatch.requested() == before


@pytest.mark.skipif(not dispatch.interpreted(), reason="Triton takes CPU tensors in its interpreter alone")
def test_what_cublas_lacks_is_tritons():
    with ops.use("cublas"):
        chosen = {op: dispatch.choose(op, CPU, torch.bfloat16, 64) for op in dispatch.OPERATIONS}
    assert {op for op, name in chosen.items() if name == "triton"} == {"layer_norm", "relative_attention"}
    assert set(chosen.values()) == {"cublas", "triton"}


def test_unknown_name():
    with pytest.raises(UsageError, match="no backend 'tritn'. Did you mean 'triton'"):
        ops.use("tritn")


def test_explicit_request_fails_loudly():
    with ops.use("cpu"), pytest.raises(UsageError, match="float64, which it has no kernel for"):
        dispatch.choose("layer_norm", CPU, torch.float64, 64)
    if not torch.cuda.is_available():
        with pytest.raises(GrowtasError, match="Backend 'cuda' cannot run here: .+ .+"):
            ops.use("cuda")
    with ops.use("cpu"), pytest.raises(UsageError, match="the tensors are on 'meta'"):
        dispatch.choose("layer_norm", torch.device("meta"), torch.float32, 64)


def test_a_backend_is_looked_up_once_until_something_changes(monkeypatch):
    asked, x = [], torch.zeros(2, 8)
    choose = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda *which: asked.append(which) or choose(*which))
    with ops.use("torch"):
        found = [LINEAR(x, 8) for _ in range(3)]
        assert len(asked) == 1
        assert found == [reference] * 3
        LINEAR(x, 8, torch.bfloat16)
        LINEAR(x, 16)
        assert len(asked) == 3
    with ops.use("cpu"):
        assert LINEAR(x, 8) is cpu
    assert len(asked) == 4


def test_every_backend_offers_every_step():
    """A Protocol names the steps; each module of a table has them, with as many parameters."""
    for name, operation in {**dispatch.OPERATIONS, **dispatch.FOLLOWERS}.items():
        home = importlib.import_module(f"growtas.ops.{name.removesuffix('_gelu')}")
        steps = [step for step in vars(home.Backend) if not step.startswith("_")]
        assert steps
        for backend in operation.backends:
            module = operation.load(backend)
            for step in steps:
                wanted = list(inspect.signature(getattr(home.Backend, step)).parameters)[1:]
                given = list(inspect.signature(getattr(module, step)).parameters)
                assert len(given) == len(wanted), f"{module.__name__}.{step} takes {given}, not {wanted}"


def test_an_operation_that_follows_another_is_not_raced_and_runs_where_that_one_does(monkeypatch):
    names = {"triton": object(), "torch": object()}
    monkeypatch.setattr(dispatch, "FOLLOWERS", {})
    found = dispatch.Operation("follower", names, follows="layer_norm")
    assert "follower" not in dispatch.OPERATIONS
    x = torch.randn(2, 8)
    for chosen, expected in (("triton", "triton"), ("cpu", "torch"), ("torch", "torch")):
        with dispatch.assigned({"layer_norm": chosen}):
            assert found(x, 8) is names[expected]


def test_tables_name_modules_that_another_process_can_import():
    for operation in (*dispatch.OPERATIONS.values(), *dispatch.FOLLOWERS.values()):
        for backend, module in operation.backends.items():
            assert pkgutil.resolve_name(dispatch.place_of(module)) is operation.load(backend)


@pytest.mark.parametrize(("value", "expected"), [("torch", "torch"), ("", "auto"), (None, "auto")])
def test_environment_request(value, expected, monkeypatch):
    monkeypatch.setattr(dispatch, "_request", None)  # as in a fresh process
    if value is None:
        monkeypatch.delenv("GROWTAS_BACKEND", raising=False)
    else:
        monkeypatch.setenv("GROWTAS_BACKEND", value)
    assert dispatch.requested() == expected


def test_wrong_environment_request(monkeypatch):
    monkeypatch.setattr(dispatch, "_request", None)
    monkeypatch.setenv("GROWTAS_BACKEND", "gpu")
    with pytest.raises(UsageError, match="There is no backend 'gpu'. Did you mean 'cpu'"):
        dispatch.requested()


def test_auto_follows_the_table(table):
    table({"layer_norm": {"float32": {"256": "cpu"}}})
    with ops.use("auto"):
        assert dispatch.choose("layer_norm", CPU, torch.float32, 216) == "cpu"
        assert dispatch.choose("layer_norm", CPU, torch.float32, 448) == "torch"
        assert dispatch.choose("layer_norm", CPU, torch.bfloat16, 216) == "torch"
        assert dispatch.choose("layer_norm", CPU, torch.float64, 216) == "torch"


def test_auto_falls_back_quietly(table, monkeypatch):
    table({"layer_norm": {"float32": {"256": "cpu"}}, "linear": {"float32": {"256": "cpu"}}})
    monkeypatch.setattr(
        dispatch, "available", lambda name: dispatch.Availability(name == "torch", "it was not built", "")
    )
    with dispatch._Use(dispatch.requested()):
        dispatch._set("auto")
        assert dispatch.choose("layer_norm", CPU, torch.float32, 216) == "torch"
        assert dispatch.choose("linear", CPU, torch.float32, 216) == "torch"  # no such kernel


def test_what_auto_lacks_is_named(table, monkeypatch):
    table({"layer_norm": {"float32": {"256": "cpu"}}})
    with ops.use("auto"):
        assert dispatch.missing(CPU) == ""
        monkeypatch.setattr(
            dispatch,
            "available",
            lambda name: dispatch.Availability(name == "torch", "it was not built", "Build."),
        )
        assert dispatch.missing(CPU) == (
            "Backend 'cpu' cannot run here: it was not built. PyTorch's own operations take its place, and "
            "are slower. Build."
        )
        assert "'triton'" in dispatch.missing(torch.device("cuda", 0))  # no record names it
        table({})
        assert dispatch.missing(torch.device("meta")) == ""
        table({"layer_norm": {"float32": {"256": {"backend": "cuda", "tile": {"rows": 4}}, "64": "torch"}}})
        assert "'cuda'" in dispatch.missing(CPU)
    with dispatch._Use("auto"):
        dispatch._set("torch")
        assert dispatch.missing(CPU) == ""  # it was asked for


@pytest.mark.parametrize(
    ("width", "expected"), [(1, "64"), (64, "64"), (65, "128"), (840, "1024"), (4000, "1024")]
)
def test_shape_class(width, expected):
    assert dispatch.shape_class(width) == expected


def test_a_choice_may_name_a_tile(table):
    with ops.use("auto"):
        assert dispatch.tile("layer_norm", CPU, torch.float32, 216) is None  # forgotten when a record comes
    table({"layer_norm": {"float32": {"256": {"backend": "cpu", "tile": {"rows": 4}}, "64": "cpu"}}})
    with ops.use("auto"):
        assert dispatch.choose("layer_norm", CPU, torch.float32, 216) == "cpu"
        assert dispatch.tile("layer_norm", CPU, torch.float32, 216) == {"rows": 4}
        assert dispatch.tile("layer_norm", CPU, torch.float32, 64) is None
    with ops.use("cpu"):
        assert dispatch.tile("layer_norm", CPU, torch.float32, 216) is None  # of the record, not of a request


def test_the_epoch_changes_with_every_answer(table):
    seen = {dispatch.epoch()}
    with ops.use("torch"):
        seen.add(dispatch.epoch())
        assert dispatch.choose("layer_norm", CPU, torch.float32, 64) == "torch"
        with dispatch.assigned({"layer_norm": "cpu"}, {"qkv": {"float32": {"64": "triton"}}}):
            seen.add(dispatch.epoch())
            meta = torch.device("meta")  # who assigns is not asked whether it runs
            assert dispatch.choose("layer_norm", meta, torch.float64, 64) == "cpu"
            assert dispatch.choose("qkv", meta, torch.float32, 64) == "triton"
            assert dispatch.choose("qkv", meta, torch.float32, 65) == "torch"
        seen.add(dispatch.epoch())
        assert dispatch.choose("layer_norm", CPU, torch.float32, 64) == "torch"
    table({})
    seen |= {dispatch.epoch()}
    assert len(seen) == 5


def test_adopted_records_come_first(table, monkeypatch):
    table({})
    monkeypatch.setattr(dispatch, "_adopted", {})
    choices = {"layer_norm": {"float32": {"64": "cpu"}}}
    with ops.use("auto"):
        assert dispatch.choose("layer_norm", CPU, torch.float32, 64) == "torch"
        dispatch.adopt(CPU, records.Found({"choices": choices}, Path("of-rank-0.json"), "user"))
        assert dispatch.choose("layer_norm", CPU, torch.float32, 64) == "cpu"
