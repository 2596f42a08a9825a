"""choose.py: what enters the table of choices, what stays in it, and that `auto` follows it."""

from __future__ import annotations

import json

import choose
import pytest
import torch
from common import results

from growtas.ops import backend


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
        ([record("a", 1.2), record("b", 1.02)], None),  # not clear of torch at one size
        ([record("a", 1.2, step=0.9)], None),  # forward wins, the training step loses
        ([record("a", 1.2, name="triton"), record("a", 1.5, name="cuda")], "cuda"),
        ([record("a", 2.0), {**record("b", 2.0), "refused": "wrong"}], None),
        ([], None),
    ],
)
def test_a_back_end_enters_only_where_it_wins_everywhere(records, chosen):
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


def test_a_measured_choice_is_followed(tmp_path, monkeypatch, capsys):
    """From the measurement to the dispatcher, with one width and the odds fixed."""
    monkeypatch.setattr(choose, "shared_widths", lambda: {24: 32})
    monkeypatch.setattr(choose, "CPU_ROWS", (8,))
    monkeypatch.setattr(choose, "MARGIN", 0.0)  # whoever it is, it wins
    monkeypatch.setattr(backend, "CHOICES_FILE", tmp_path / "choices.json")
    arguments = ["--device", "cpu", "--dtypes", "float32", "--seconds", "0", "--threads", "1"]
    assert choose.main([*arguments, "--out", str(tmp_path / "choices.json")]) == 0
    assert "layer_norm 8×24" in capsys.readouterr().out
    data = json.loads((tmp_path / "choices.json").read_text())
    assert data["choices"]["cpu"] == {"layer_norm": {"float32": {"64": "cpu"}}}
    assert data["measurements"][0]["rounds"] >= 5 and data["sources"]["cpu"]["commit"]
    backend._choices.cache_clear()
    backend.choose.cache_clear()
    try:
        with backend.use("auto"):
            assert backend.choose("layer_norm", torch.device("cpu"), torch.float32, 24) == "cpu"
            assert backend.choose("layer_norm", torch.device("cpu"), torch.float32, 200) == "torch"
    finally:
        monkeypatch.undo()
        backend._choices.cache_clear()
        backend.choose.cache_clear()


def test_a_failing_contest_refuses_its_back_ends(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("an illegal memory access")

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
