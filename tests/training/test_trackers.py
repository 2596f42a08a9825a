"""Where curves go: each tracker against local files, one run over a resume, and none that ends a run."""

from __future__ import annotations

import json
import time

import pytest
from runs import SPACE

import growtas
from growtas.errors import UsageError
from growtas.training import trackers
from growtas.training.loop import Trainer

SETTINGS = {"epochs": 2, "batch_size": 256, "stages": 1, "eval_every": 1, "eval_subnets": 0, "device": "cpu"}


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch, tmp_path):
    """No account, no server and no settings of the user who runs the tests."""
    for name in (
        "WANDB_MODE",
        "WANDB_API_KEY",
        "WANDB_PROJECT",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


class Kept:
    """A tracker that keeps what it is given, and fails when it is told to."""

    made: list[Kept] = []
    fails_at = None

    def __init__(self, run, first_step):
        self.first_step, self.points, self.closed = first_step, [], 0
        Kept.made.append(self)

    def add(self, step, **values):
        if step == self.fails_at:
            raise ConnectionError("the server is gone\nand more")
        self.points.append((step, values))

    def flush(self):
        pass

    def close(self):
        self.closed += 1


@pytest.fixture
def kept(monkeypatch):
    Kept.made = []
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(trackers.TRACKERS, name, Kept)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
    return Kept.made


def train(out, **settings):
    return growtas.train(SPACE, data="digits", out=out, **(SETTINGS | settings))


def test_names():
    assert trackers.names_of(None, True) == ("tensorboard",)
    assert trackers.names_of(None, False) == trackers.names_of("none", True) == ()
    assert trackers.names_of("wandb, mlflow", True) == ("wandb", "mlflow")
    with pytest.raises(UsageError, match="names 'wandbb', which is unknown. Did you mean 'wandb'"):
        trackers.names_of("tensorboard,wandbb", True)


def test_a_package_that_is_missing_is_a_sentence_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package mlflow: pip install 'growtas\[mlflow\]'"):
        train(tmp_path / "run", trackers="mlflow")
    assert not (tmp_path / "run").exists()


def test_every_tracker_gets_every_curve(kept, tmp_path):
    run = train(tmp_path / "run", trackers="tensorboard,wandb,mlflow")
    first, second = kept
    assert first.points == second.points and first.closed == 1
    steps = [step for step, values in first.points if "train__loss" in values]
    assert steps == list(range(run.steps))
    assert first.points[-1][1].keys() == {"search_top1__smallest", "search_top1__largest"}
    assert list((run.path / "tensorboard").iterdir())


def test_a_tracker_that_fails_is_left_out_with_one_notice(kept, tmp_path, monkeypatch, capsys):
    class Failing(Kept):
        fails_at = 3

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Failing)
    run = train(tmp_path / "run", trackers="wandb,tensorboard")
    assert run.finished and [step for step, _ in kept[0].points][-1] == 2 and kept[0].closed == 1
    notices = [line for line in capsys.readouterr().err.splitlines() if "wandb failed" in line]
    assert len(notices) == 1 and notices[0].endswith("log.jsonl has them all: the server is gone")


def test_a_tracker_that_does_not_begin_is_left_out(kept, tmp_path, monkeypatch, capsys):
    def refused(run, first_step):
        raise OSError("no route to host")

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", refused)
    assert train(tmp_path / "run", trackers="mlflow,wandb").finished
    assert "mlflow failed and gets no more curves" in capsys.readouterr().err and kept[0].points


def test_the_curves_of_tensorboard_do_not_end_a_run(tmp_path, monkeypatch, capsys):
    from growtas.training.curves import Curves

    def full(self, step, **values):
        raise growtas.GrowtasError("no space is left on the device")

    monkeypatch.setattr(Curves, "add", full)
    assert train(tmp_path / "run").finished
    assert capsys.readouterr().err.count("tensorboard failed") == 1


def interrupted(monkeypatch, out, **settings):
    """A run that is stopped at its sixth step, after a checkpoint, and then resumed."""
    record = Trainer._record

    def killed(self, step, *arguments):
        if step == 6:
            raise KeyboardInterrupt
        record(self, step, *arguments)

    monkeypatch.setattr(Trainer, "_record", killed)
    with pytest.raises(KeyboardInterrupt):
        train(out, **settings)
    monkeypatch.setattr(Trainer, "_record", record)
    return growtas.train(resume=out)


def test_mlflow_in_a_local_folder_over_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="growtas[mlflow] is not installed")
    from mlflow.tracking import MlflowClient

    run = interrupted(monkeypatch, tmp_path / "run", trackers="mlflow")
    client = MlflowClient(tracking_uri=(run.path / "mlruns").as_uri())
    number = json.loads((run.path / "trackers.json").read_text())["mlflow"]
    found = client.search_runs([client.get_experiment_by_name("growtas").experiment_id])
    assert [each.info.run_id for each in found] == [number]
    assert found[0].info.status == "FINISHED" and found[0].data.params["batch_size"] == "256"
    points = client.get_metric_history(number, "train/loss")
    assert {point.step for point in points} == set(range(run.steps))
    assert client.get_metric_history(number, "search_top1/largest")[-1].value > 5


def test_wandb_offline_over_a_resume(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb", reason="growtas[wandb] is not installed")
    run = interrupted(monkeypatch, tmp_path / "run", trackers="wandb")
    number = json.loads((run.path / "trackers.json").read_text())["wandb"]
    files = sorted((run.path / "wandb").glob(f"offline-run-*/run-{number}.wandb"))
    end = time.monotonic() + 300  # its own process may still be writing
    while (found := [b"train/loss" in file.read_bytes() for file in files]) != [True] * 2:
        assert time.monotonic() < end, found
        time.sleep(0.1)
    assert "W&B has no key here" in capfd.readouterr().out
    assert not (tmp_path / "wandb").exists()
