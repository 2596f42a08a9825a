"""A run that is killed, at any moment, ends bit for bit where one that was left alone does."""

from __future__ import annotations

import dataclasses
import signal

import pytest
import torch
from runs import SMALL, SPACE, assert_same_result, records, same
from thinning import thinned

import growtas
from growtas.errors import GrowtasError, UsageError
from growtas.training import Run, checkpoint
from growtas.training.guards import Interrupted
from growtas.training.loop import Trainer


def steps_logged(folder):
    path = folder / "log.jsonl"
    return path.read_bytes().count(b'"event": "step"') if path.exists() else 0


def test_sigkill(child, finished, tmp_path):
    """From outside, in the middle of an epoch; tests/faults does so at every other moment."""
    out = tmp_path / "run"
    process = child(**SMALL, out=out)
    process.wait_until(lambda: steps_logged(out) >= 17)
    status, _ = process.kill()
    assert status == -signal.SIGKILL
    run = growtas.train(resume=out)
    assert run.finished
    assert_same_result(out, finished.path)
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint.pt", "config.yaml", "log.jsonl"]


def test_ctrl_c_saves_and_says_how_to_go_on(child, finished, tmp_path):
    out = tmp_path / "run"
    process = child(**SMALL, out=out)
    process.wait_until(lambda: steps_logged(out) >= 3)
    status, output = process.kill(signal.SIGINT)
    assert status == 130, output
    assert f"growtas train --resume {out}" in output
    done = steps_logged(out)
    assert checkpoint.load(out / "checkpoint.pt")["step"] == done < 33
    growtas.train(resume=out)
    assert_same_result(out, finished.path)


@pytest.mark.parametrize(
    ("number", "status"), thinned([(signal.SIGINT, 130), (signal.SIGTERM, 143)], fast=(0,), several=True)
)
def test_signals_that_reach_the_loading_processes_too(child, image_folder, tmp_path, number, status):
    space = dataclasses.replace(SPACE, name="rgb", in_channels=3, image_size=16)
    given = {"data": f"folder:{image_folder}", "epochs": 300, "batch_size": 16, "tensorboard": False}
    out = tmp_path / "run"
    process = child(space=space, **given, workers=2, eval_every=0, out=out)
    process.wait_until(lambda: steps_logged(out) >= 4)
    ended, output = process.kill(number)
    assert ended == status and "--resume" in output, output
    assert Run.open(out).load_net() is not None


class Stop(Exception):
    pass


def stop_at(monkeypatch, step):
    """Let training die in front of a step."""
    original = Trainer._step

    def dying(self, *args):
        if self.progress.step == step:
            raise Stop
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_step", dying)


@pytest.mark.parametrize("step", [11, 32])
def test_resume_on_both_sides_of_a_transition(monkeypatch, finished, small, tmp_path, step):
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stop):
            growtas.train(**small, out=tmp_path / "run")
    growtas.train(resume=tmp_path / "run")
    assert_same_result(tmp_path / "run", finished.path)


def test_resume_with_files_and_the_published_augmentation(monkeypatch, image_folder, tmp_path):
    space = dataclasses.replace(SPACE, name="rgb", in_channels=3, image_size=16)
    given = {"data": f"folder:{image_folder}", "epochs": 3, "batch_size": 16, "tensorboard": False}
    growtas.train(space, **given, workers=2, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        with pytest.raises(Stop):
            growtas.train(space, **given, workers=0, checkpoint_every_steps=5, out=tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 6  # an epoch has 3 steps
    growtas.train(resume=tmp_path / "run", workers=1)
    assert_same_result(tmp_path / "run", tmp_path / "whole")


def test_settings_that_do_not_enter_the_result_may_change(monkeypatch, finished, small, tmp_path):
    with monkeypatch.context() as patch:
        stop_at(patch, 15)
        with pytest.raises(Stop):
            growtas.train(**small, out=tmp_path / "run")
    growtas.train(resume=tmp_path / "run", checkpoint_every_steps=2, workers=0)
    assert_same_result(tmp_path / "run", finished.path)


def test_resume_of_a_finished_run_changes_nothing(small, tmp_path):
    small["epochs"] = 2
    run = growtas.train(**small, out=tmp_path / "run")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.path.iterdir()}
    assert growtas.train(resume=run.path).finished
    assert before == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.path.iterdir()}


def test_other_settings_cannot_be_given_to_a_resume(finished):
    with pytest.raises(UsageError, match="lr cannot be given"):
        growtas.train(resume=finished.path, lr=1.0)
    with pytest.raises(UsageError, match="Did you mean 'workers'"):
        growtas.train(resume=finished.path, worker=1)


def test_the_users_generators_are_given_back(small, tmp_path):
    import random

    import numpy as np

    small["epochs"] = 2
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    growtas.train(**small, out=tmp_path / "run")
    assert expected == (random.random(), np.random.rand(), torch.rand(1))


def test_the_result_does_not_depend_on_what_was_drawn_before(finished, small, tmp_path):
    torch.manual_seed(77)
    growtas.train(**small, out=tmp_path / "run")
    assert_same_result(tmp_path / "run", finished.path)


def test_another_seed_gives_another_result(finished, small, tmp_path):
    run = growtas.train(**small, out=tmp_path / "run", seed=1)
    weights = [run.load_net().state_dict()["head.weight"] for run in (run, finished)]
    assert not torch.equal(*weights)


def test_a_log_that_was_cut_is_noticed(monkeypatch, small, tmp_path):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 15)
        with pytest.raises(Stop):
            growtas.train(**small, out=out)
    (out / "log.jsonl").write_bytes((out / "log.jsonl").read_bytes()[:100])
    with pytest.raises(GrowtasError, match="log.jsonl was cut or changed"):
        growtas.train(resume=out)
    assert (out / "log.jsonl").stat().st_size == 100


def test_a_log_that_was_removed_does_not_change_the_result(monkeypatch, finished, small, tmp_path, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 15)
        with pytest.raises(Stop):
            growtas.train(**small, out=out)
    (out / "log.jsonl").unlink()
    growtas.train(resume=out)
    assert "the records before step 11 are lost" in capsys.readouterr().err
    states = [checkpoint.load(folder / "checkpoint.pt") for folder in (out, finished.path)]
    assert same(*(state["weights"] for state in states))
    log = records(out)
    assert (log[0]["event"], log[0]["step"]) == ("gap", 11)
    assert log[1:] == [each for each in records(finished.path) if each["step"] >= 11]


def test_two_processes_do_not_write_one_run(monkeypatch, small, tmp_path):
    from growtas.training.log import RunLog

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 15)
        with pytest.raises(Stop):
            growtas.train(**small, out=out)
    log = RunLog(out)
    before = (out / "log.jsonl").read_bytes()
    with pytest.raises(UsageError, match="Another process"):
        growtas.train(resume=out)
    assert (out / "log.jsonl").read_bytes() == before
    log.close()
    assert growtas.train(resume=out).finished


def test_sigterm_in_process(monkeypatch, small, tmp_path):
    import os

    original = Trainer._step

    def terminated(self, *args):
        if self.progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_step", terminated)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="--resume") as caught:
        growtas.train(**small, out=tmp_path / "run")
    assert caught.value.exit_status == 143
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert checkpoint.load(Run.open(tmp_path / "run").checkpoint_path)["step"] == 6
