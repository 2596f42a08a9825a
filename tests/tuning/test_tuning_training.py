"""Training on a GPU without a record tunes first; the command line and the doctor tell what is in force."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_gpu import GPU, KEY

import growtas
from growtas import cli, doctor, load_space
from growtas.errors import GrowtasError, UsageError
from growtas.ops import dispatch, records
from growtas.training import start
from growtas.training.ranks import Ranks
from growtas.tuning import before_training, children, ptxas
from growtas.tuning.before_training import tune_before_training

SPACE = load_space("autoformer-tiny")


@pytest.fixture
def asked(gpu, monkeypatch):
    """Workers that answer at once; the cases that they were asked about."""
    found: list[tuple[str, str]] = []

    def ask(self, request):
        case = request["case"]
        found.append((self.name, f"{case['op']} {case['dtype']} {case['width_class']}"))
        if self.name == "cuda":
            return {"refused": "its process crashed (SIGSEGV)", "kind": "crash"}
        fast = {"forward": [1.5, 1.4, 1.6], "step": [1.5, 1.4, 1.6], "own_us": [1.0, 1.0]}
        return {"measurements": [{"size": j["name"], "rows": j["batch"], **fast} for j in case["jobs"]]}

    monkeypatch.setattr(children.Child, "ask", ask)
    return found


def test_a_gpu_without_a_record_is_tuned_once(asked, capsys):
    found = tune_before_training(SPACE, GPU, "bfloat16", 128, "auto")
    assert found.source == "user" and found.record["key"] == KEY
    assert {name for name, _ in asked} == {"triton", "cublas", "cuda"}
    assert not [case for name, case in asked if name == "cublas" and "float32" in case]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "--tune off" in line]
    assert line.startswith("Test GPU has no tuning record for 8 classes of autoformer-tiny in bfloat16")
    assert str(records.path_of(KEY)) in line
    with dispatch.use("auto"):
        assert dispatch.choose("mlp", GPU, torch.bfloat16, 240) in ("triton", "cublas")
        assert dispatch.choose("mlp", GPU, torch.float16, 240) == "torch"
    asked.clear()
    again = tune_before_training(SPACE, GPU, "bfloat16", 64, "auto")  # another batch needs no new record
    assert asked == [] and again.path == found.path
    assert "tuning record" not in capsys.readouterr().out


def test_only_what_is_missing_is_raced(asked):
    tune_before_training(SPACE, GPU, "bfloat16", 128, "auto")
    asked.clear()
    tune_before_training(SPACE, GPU, "none", 128, "auto")
    assert asked and all("float32" in case for _, case in asked)


@pytest.mark.parametrize("why", ["off", "cpu", "requested", "convolutions"])
def test_nothing_is_tuned_where_nothing_is_to_be(asked, why):
    space, device, mode = SPACE, GPU, "auto"
    if why == "off":
        mode = "off"
    elif why == "cpu":
        device = torch.device("cpu")
    elif why == "convolutions":
        space = load_space("ofa-mobilenetv3")
    with dispatch.use("torch" if why == "requested" else "auto"):
        assert tune_before_training(space, device, "bfloat16", 128, mode) is None
    assert asked == []


def test_a_shipped_record_of_the_same_key_is_enough(asked, monkeypatch, tmp_path):
    tune_before_training(SPACE, GPU, "bfloat16", 128, "auto")
    (tmp_path / "shipped").mkdir()
    records.path_of(KEY).rename(tmp_path / "shipped" / "gpu.json")
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "shipped")
    dispatch.changed()
    asked.clear()
    assert tune_before_training(SPACE, GPU, "bfloat16", 128, "auto").source == "shipped"
    assert asked == []
    monkeypatch.setattr(records, "key", lambda device: {**KEY, "torch": "another"})
    dispatch.changed()
    tune_before_training(SPACE, GPU, "bfloat16", 128, "auto")
    assert asked  # that one is looser than what a race here would say


def test_a_tuning_that_fails_does_not_end_the_run(gpu, monkeypatch):
    def fail(*_):
        raise GrowtasError("the disk is full")

    monkeypatch.setattr(before_training, "tune", fail)
    with pytest.warns(
        UserWarning, match="Tuning failed .the disk is full.; what has no record runs on torch"
    ):
        assert tune_before_training(SPACE, GPU, "bfloat16", 128, "auto") is None


def test_training_asks_before_its_first_step(tmp_path, monkeypatch):
    seen = []

    def ask(space, device, amp, batch, mode):
        seen.append((space.name, device.type, amp, batch, mode, list(tmp_path.glob("run/*"))))

    monkeypatch.setattr(start, "tune_before_training", ask)
    settings = {
        "epochs": 1,
        "method": "uniform",
        "eval_every": 0,
        "tensorboard": False,
        "device": "cpu",
        "out": tmp_path / "run",
    }
    growtas.train("digits", batch_size=512, tune="off", **settings)
    growtas.train(resume=tmp_path / "run", tune="auto")  # finished: there is nothing to tune for
    assert seen == [("digits", "cpu", "none", 512, "off", [])]
    with pytest.raises(UsageError, match="tune='on' is unknown"):
        growtas.train("digits", tune="on", **settings)


def test_every_rank_follows_what_rank_0_found(asked, monkeypatch):
    """Rank 1 of two, whose machine has no record: what it gets is rank 0's."""
    theirs = records.Found({"choices": {"mlp": {"bfloat16": {"256": "triton"}}}}, Path("x.json"), "user")
    monkeypatch.setattr(Ranks, "on_first", lambda self, work: theirs)
    monkeypatch.setattr(dispatch, "_adopted", {})

    class Run:
        space = SPACE
        config = growtas.training.TrainConfig("autoformer-tiny", batch_size=256)

    start._tune(Run, GPU, Ranks(1, 2))
    with dispatch.use("auto"):
        assert dispatch.choose("mlp", GPU, torch.bfloat16, 240) == "triton"
    assert asked == []


# -- the command line and the doctor ---------------------------------------------------------------------


def test_the_command_line(cache, monkeypatch, capsys):
    assert cli.main(["tune", "--help"]) == 0
    told = capsys.readouterr().out
    for word in ("[SPACE]", "--device", "--dtype", "--seconds", "--again", "--out", "--patience"):
        assert word in told
    for arguments, sentence in (
        (["digitz"], "Did you mean 'digits'"),
        (["digits", "--dtype", "bf16"], "There is no dtype 'bf16' to tune."),
        (["digits", "--seconds", "-1"], "seconds=-1.0 is not possible"),
        (["digits", "--batch", "0"], "batch=0 is not possible"),
        (["digits", "--device", "gpu"], "device='gpu' cannot be used here"),
        (["digits", "--device", "meta"], "device='meta' has no backends to race"),
        (["digits-mobilenet"], "runs on torch's convolutions"),
    ):
        assert cli.main(["tune", *arguments]) == 2
        assert sentence in capsys.readouterr().err

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(children.Child, "ask", stop)
    assert cli.main(["tune", "digits", "--device", "cpu"]) == 130
    assert "Finished classes are kept: repeat the command to continue." in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(cache, monkeypatch, capsys):
    monkeypatch.setattr(children.Child, "ask", lambda self, request: {"measurements": []})
    cache.write_text("a file, where the folder should be")
    assert cli.main(["tune", "digits", "--device", "cpu"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_the_doctor_tells_what_is_chosen_and_why(cache):
    facts = doctor.collect()
    assert facts["tuning"][0]["source"] == "shipped"
    text = doctor.report(facts, [])
    assert "a record that comes with growtas" in text and "growtas tune --device cpu" in text
    head = {"dtype": "float32", "class": "64", "backend": "cpu"}
    fast = {"forward": [1.5, 1.4, 1.6], "step": [1.25, 1.1, 1.3], "rows": 8, "size": "d24"}
    own = {
        "format": 1, "key": records.key(torch.device("cpu")), "date": "2026-11-28T00:00:00", "finished": [],
        "choices": {"qkv": {"float32": {"64": "cpu"}}},
        "measurements": [{**head, "op": "qkv", **fast},
                         {**head, "op": "linear", "refused": "3 runs gave different bits", "kind": "bits"}],
    }  # fmt: skip
    path = records.path_of(own["key"])
    records.write(path, own)
    dispatch.changed()
    text = doctor.report(doctor.collect(), [])
    assert f"your record, 2026-11-28, {path}" in text
    assert "1.50 (1.50), 1.25 (1.25)" in text and "left out: 3 runs gave different bits" in text


def test_an_old_ptxas_is_told_where_it_matters(monkeypatch):
    monkeypatch.setattr(ptxas, "version", lambda *capability: ("/opt/ptxas", (12, 8)))
    assert "Triton uses ptxas 12.8; before 13.3" in ptxas.notice(["8.0", "9.0"])
    assert ptxas.notice(["8.0"]) == ""
    monkeypatch.setattr(ptxas, "version", lambda *capability: ("/opt/ptxas", (13, 3)))
    assert ptxas.notice(["9.0"]) == ""
    facts = doctor.collect()
    facts["ptxas"] = {"path": "/opt/ptxas", "version": "12.8", "notice": "It is old."}
    assert "Triton's ptxas 12.8: /opt/ptxas\n  It is old." in doctor.report(facts, [])


def test_tritons_own_ptxas_is_found():
    pytest.importorskip("triton")
    ptxas.version.cache_clear()
    path, numbers = ptxas.version()
    assert Path(path).exists() and numbers >= (12, 0)
