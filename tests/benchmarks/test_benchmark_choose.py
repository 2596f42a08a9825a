"""choose.py: what enters the table of choices, what stays in it, and that `auto` follows it."""

from __future__ import annotations

import importlib
import json

import choose
import pytest
import torch
from common import contests, results
from common.works import Layer

from growtas import load_space
from growtas.ops import backend
from growtas.space import SearchSpace, preset_names


def record(size: str, low: float, *, op="layer_norm", name="cpu", step: float | None = None, **more):
    ratios = {"forward": (low + 0.1, low, low + 0.2)}
    ratios["step"] = ratios["forward"] if step is None else (step + 0.1, step, step + 0.2)
    return {
        "op": op,
        "dtype": "float32",
        "class": "256",
        "size": size,
        "rows": 1,
        "backend": name,
        **ratios,
        **more,
    }


@pytest.mark.parametrize(
    ("records", "chosen"),
    [
        ([record("a", 1.2), record("b", 1.04)], "cpu"),
        ([record("a", 1.2), record("b", 0.9)], "cpu"),  # as fast as torch at one size
        ([record("a", 1.9), record("b", 0.7)], None),  # slower at one size beyond doubt
        ([record("a", 0.92), record("b", 0.92)], None),  # within the margin everywhere
        ([record("a", 1.2, step=0.9)], None),  # forward wins, the training step loses
        ([record("a", 1.2, name="triton"), record("a", 1.5, name="cuda")], "cuda"),
        ([record("a", 2.0), {**record("b", 2.0), "refused": "wrong"}], None),
        ([], None),
    ],
)
def test_a_back_end_enters_only_where_it_wins_on_the_whole_and_loses_nowhere(records, chosen):
    expected = {"layer_norm": {"float32": {"256": chosen}}} if chosen else {}
    assert choose.decide(records) == expected


def test_merging_keeps_other_devices(tmp_path):
    path = tmp_path / "choices.json"
    choose.merge(path, "sm_90", {"date": "1"}, [record("a", 2.0, name="triton")])
    choose.merge(path, "cpu", {"date": "2"}, [record("a", 2.0)])
    choose.merge(path, "cpu", {"date": "3"}, [record("b", 0.5)])  # measured again: it has lost since
    data = results.read(path)
    assert data["choices"] == {"cpu": {}, "sm_90": {"layer_norm": {"float32": {"256": "triton"}}}}
    assert data["sources"] == {"cpu": {"date": "3"}, "sm_90": {"date": "1"}}
    assert [(r["device"], r["size"]) for r in data["measurements"]] == [("sm_90", "a"), ("cpu", "b")]


def only_norms(monkeypatch):
    """No contests but those of LayerNorm."""
    monkeypatch.setattr(choose, "backends", norm_backends)


def norm_backends(op, device, every=choose.backends):
    return every(op, device) if op == "layer_norm" else ["torch"]


CPU = torch.device("cpu")


def test_every_operation_with_a_kernel_on_the_cpu_has_contests():
    """Choices go by the shared width, or by the head dim, and every class that a preset has is measured."""
    found = [
        contest
        for contest in choose.contests(CPU, torch.float32)
        if len(choose.backends(contest.op, CPU)) > 1
    ]
    measured = {contest.op for contest in found}
    assert measured == {op for op in backend.KERNELS if len(choose.backends(op, CPU)) > 1}
    transformers = [s for s in map(load_space, preset_names()) if isinstance(s, SearchSpace)]
    shared = {space.super_embed_dim for space in transformers}
    heads = {space.head_dim for space in transformers}
    for op in measured:
        classes = {backend.shape_class(contest.width) for contest in found if contest.op == op}
        wanted = (
            heads if op == "relative_attention" else shared - ({48} if op in ("linear", "qkv") else set())
        )
        assert {backend.shape_class(width) for width in wanted} <= classes, op


@pytest.mark.parametrize("op", ["linear_gelu", "norm_qkv", "mlp", "relative_attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launchers_are_compared_with_torch_and_timed(op, dtype):
    layer = Layer("tiny", d=24, heads=2, hidden=72, D=32, H=3, M=96, e=32, grid=(2, 3), clamp=3)
    names = tuple(f"growtas {name}" for name in choose.backends(op, CPU))
    race = contests.WorkRace(op, layer, names, CPU, dtype)
    inputs = race.inputs(2, seed=0)
    passed, refused = race.check(list(names), inputs, None, yardstick="growtas torch")
    assert refused == {} and list(passed) == list(names)
    for direction in ("forward", "backward"):
        samples, methods = race.run(list(names), [inputs], direction, seconds=0, rounds=3, least=3)
        assert all(len(own) == 3 for own in samples.values()) and set(methods) == set(names)


def implementation(op: str):
    """The module with the C++ launchers of an operation."""
    return importlib.import_module(backend.IMPLEMENTATIONS[op]["cpu"].partition(":")[0])


def test_a_wrong_launcher_is_refused(monkeypatch):
    layer = Layer("tiny", d=24, heads=2, hidden=72, D=32, H=3, M=96, e=32, grid=(2, 3), clamp=3)
    race = contests.WorkRace("linear_gelu", layer, ("growtas torch", "growtas cpu"), CPU, torch.float32)
    module = implementation("linear_gelu")
    right = module.cpu_linear_gelu_backward_input
    monkeypatch.setattr(module, "cpu_linear_gelu_backward_input", lambda *a: (2 * right(*a)[0], right(*a)[1]))
    passed, refused = race.check(race.names, race.inputs(2, 0), None, yardstick="growtas torch")
    assert list(passed) == ["growtas torch"] and "error against fp64" in refused["growtas cpu"]


def test_a_size_that_does_not_fit_is_left_out(monkeypatch):
    monkeypatch.setattr(implementation("relative_attention"), "cpu_unsupported", lambda *_: "too large")
    assert not contests.fits("relative_attention", "cpu", contests.OTHER_HEADS[0], torch.float32)
    assert contests.fits("linear_gelu", "cpu", contests.OTHER_HEADS[0], torch.float32)


def test_a_measured_choice_is_followed(tmp_path, monkeypatch, capsys):
    """From the measurement to the dispatcher, with one width and the odds fixed."""
    only_norms(monkeypatch)
    monkeypatch.setattr(choose, "shared_widths", lambda: {24: 32})
    monkeypatch.setattr(choose, "CPU_ROWS", (8,))
    monkeypatch.setattr(choose, "MARGIN", 0.0)  # whoever it is, it wins
    monkeypatch.setattr(choose, "TOLERANCE", 0.0)
    monkeypatch.setattr(backend, "CHOICES_FILE", tmp_path / "choices.json")
    arguments = ["--device", "cpu", "--dtypes", "float32", "--seconds", "0", "--threads", "1"]
    assert choose.main([*arguments, "--out", str(tmp_path / "choices.json")]) == 0
    assert "layer_norm 8×24" in capsys.readouterr().out
    data = json.loads((tmp_path / "choices.json").read_text())
    assert data["choices"]["cpu"] == {"layer_norm": {"float32": {"64": "cpu"}}}
    assert data["measurements"][0]["rounds"] >= 5 and data["sources"]["cpu"]["commit"]
    backend._choices.cache_clear()
    backend._choose.cache_clear()
    try:
        with backend.use("auto"):
            assert backend.choose("layer_norm", torch.device("cpu"), torch.float32, 24) == "cpu"
            assert backend.choose("layer_norm", torch.device("cpu"), torch.float32, 200) == "torch"
    finally:
        monkeypatch.undo()
        backend._choices.cache_clear()
        backend._choose.cache_clear()


def test_a_failing_contest_refuses_its_back_ends(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("an illegal memory access")

    only_norms(monkeypatch)
    monkeypatch.setattr(choose, "measure", fail)
    monkeypatch.setattr(choose, "shared_widths", lambda: {24: 32})
    out = tmp_path / "choices.json"
    assert choose.main(["--device", "cpu", "--threads", "1", "--out", str(out)]) == 1
    data = results.read(out)
    assert data["choices"] == {"cpu": {}}
    assert {r["refused"] for r in data["measurements"]} == {"RuntimeError: an illegal memory access"}


def test_an_interrupted_measurement_decides_nothing(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(choose, "measure", interrupt)
    assert choose.main(["--device", "cpu", "--threads", "1", "--out", str(tmp_path / "choices.json")]) == 130
    assert not (tmp_path / "choices.json").exists()
    assert "nothing was written" in capsys.readouterr().err


def test_the_committed_choices_follow_from_the_committed_measurements():
    data = results.read(backend.CHOICES_FILE)
    assert data["choices"]
    for device, table in data["choices"].items():
        own = [record for record in data["measurements"] if record["device"] == device]
        assert own and choose.decide(own) == table
        assert {"machine", "versions", "commit", "date"} <= set(data["sources"][device])
