"""Runs whose stages open when the run itself says so; tests/faults kills one."""

from __future__ import annotations

import pytest
from runs import SPACE, records

import growtas
from growtas.comparing.specs import MethodSpec
from growtas.errors import GrowtasError, UsageError
from growtas.training import TrainConfig, checkpoint

LEARNING = {
    "space": SPACE,
    "data": "digits",
    "epochs": 12,
    "batch_size": 96,
    "lr": 2e-2,
    "warmup_epochs": 1,
    "eval_every": 0,
    "eval_subnets": 0,
    "tensorboard": False,
    "device": "cpu",
}
"""A run of 132 steps that learns a good deal of the digits."""


def of_kind(folder, event):
    return [record for record in records(folder) if record["event"] == event]


def test_the_rule_opens_the_stage(tmp_path):
    run = growtas.train(**LEARNING, transition="plateau", out=tmp_path / "run")
    watched, stages = of_kind(run.path, "method"), of_kind(run.path, "stage")
    epoch = stages[1]["epoch"]
    assert 2 <= epoch < 9 and [record["epoch"] for record in watched] == list(range(epoch))
    assert {"opens": 1, "at_epoch": epoch, "opened_by": "plateau"}.items() <= watched[-1].items()
    assert stages[1]["opened_by"] == "plateau" and stages[1]["groups"] == [0, 1, 2]
    steps = of_kind(run.path, "step")
    for record in watched:
        losses = [step["loss"] for step in steps if step["epoch"] == record["epoch"]]
        assert record["loss"] == pytest.approx(sum(losses) / 11)
    assert {group for step in steps if step["epoch"] < epoch for group in step["group"]} == {0, 1}
    assert {group for step in steps if step["epoch"] >= epoch for group in step["group"]} == {0, 1, 2}


def test_a_run_that_does_not_learn_opens_at_the_latest_epoch(tmp_path):
    settings = {**LEARNING, "epochs": 4, "batch_size": 512, "lr": 0.0, "transition": "plateau"}
    run = growtas.train(**settings, min_lr=0.0, warmup_lr=0.0, out=tmp_path / "run")
    second = of_kind(run.path, "stage")[1]
    assert (second["epoch"], second["opened_by"]) == (3, "latest epoch")


def test_one_stage_has_nothing_to_open(tmp_path):
    short = {**LEARNING, "epochs": 2, "batch_size": 512, "stages": 1}
    runs = [growtas.train(**short, transition=rule, out=tmp_path / rule) for rule in ("midpoint", "plateau")]
    assert records(runs[0].path) == records(runs[1].path)


def test_compare_takes_the_rule_and_its_options():
    spec = MethodSpec.parse("growtas:transition=plateau,window=5,tolerance=0.02")
    settings = spec.settings()
    assert settings == {"transition": "plateau", "method_options": "tolerance=0.02,window=5"}
    TrainConfig.from_dict({"space": "digits", "method": spec.name, **settings})


def test_a_checkpoint_of_fixed_epochs_is_refused(tmp_path):
    run = growtas.train(**{**LEARNING, "epochs": 2, "batch_size": 512}, transition="1", out=tmp_path / "run")
    state = checkpoint.load(run.checkpoint_path)
    state["run"]["transition"], state["step"] = "plateau", 3
    checkpoint.save(run.checkpoint_path, {key: value for key, value in state.items() if key != "format"})
    config = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(config.replace("transition: '1'", "transition: plateau"))
    with pytest.raises(GrowtasError, match="does not hold the stages of transition='plateau'"):
        growtas.train(resume=run.path)


def test_an_unknown_rule_names_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'plateau'.*midpoint"):
        growtas.train(**LEARNING, transition="plateaus", out=tmp_path / "run")
    with pytest.raises(UsageError, match="only with transition='plateau', not with '3'"):
        growtas.train(**LEARNING, transition="3", method_options="window=2", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
