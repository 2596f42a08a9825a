"""Which back end runs: explicit requests fail loudly, ``auto`` follows measurements."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from growtas import ops
from growtas.errors import GrowtasError, UsageError
from growtas.ops import backend

CPU = torch.device("cpu")


@pytest.fixture
def table(monkeypatch):
    """Replace the committed measurements."""

    def replace(choices: dict) -> None:
        monkeypatch.setattr(backend, "_choices", lambda: choices)
        backend._choose.cache_clear()

    yield replace
    backend._choose.cache_clear()


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
    with pytest.raises(UsageError, match="no back end 'tritn'. Did you mean 'triton'"):
        ops.use("tritn")


def test_explicit_request_fails_loudly():
    with ops.use("cpu"), pytest.raises(UsageError, match="float64, which it has no kernel for"):
        backend.choose("layer_norm", CPU, torch.float64, 64)
    if not torch.cuda.is_available():
        with pytest.raises(GrowtasError, match="Back end 'cuda' cannot run here: .+ .+"):
            ops.use("cuda")
    with ops.use("cpu"), pytest.raises(UsageError, match="the tensors are on 'meta'"):
        backend.choose("layer_norm", torch.device("meta"), torch.float32, 64)


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
    with pytest.raises(UsageError, match="There is no back end 'gpu'. Did you mean 'cpu'"):
        backend.requested()


def test_auto_follows_the_table(table):
    table({"cpu": {"layer_norm": {"float32": {"256": "cpu"}}}})
    with ops.use("auto"):
        assert backend.choose("layer_norm", CPU, torch.float32, 216) == "cpu"
        assert backend.choose("layer_norm", CPU, torch.float32, 448) == "torch"
        assert backend.choose("layer_norm", CPU, torch.bfloat16, 216) == "torch"
        assert backend.choose("layer_norm", CPU, torch.float64, 216) == "torch"


def test_auto_falls_back_quietly(table, monkeypatch):
    table({"cpu": {"layer_norm": {"float32": {"256": "cpu"}}, "linear": {"float32": {"256": "cpu"}}}})
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


def test_the_committed_table_names_existing_kernels_and_their_measurements():
    """A kernel may be chosen only where a committed measurement shows that it wins."""
    document = json.loads(backend.CHOICES_FILE.read_text())
    assert document["choices"], "nothing was ever measured"
    for device, by_op in document["choices"].items():
        for op, by_dtype in by_op.items():
            for dtype, by_width in by_dtype.items():
                for width, name in by_width.items():
                    assert name in backend.KERNELS[op] and name != "torch"
                    key = (device, op, dtype, width, name)
                    own = [m for m in document["measurements"] if _measured(m) == key]
                    assert own and not any("refused" in m for m in own), key
                    for step in ("forward", "step"):
                        assert statistics.geometric_mean(m[step][0] for m in own) > 1, (key, step)
                        assert all(upper > 0.97 for _, _, upper in (m[step] for m in own)), (key, step)


def _measured(measurement: dict) -> tuple[str, ...]:
    return tuple(measurement[field] for field in ("device", "op", "dtype", "class", "backend"))
