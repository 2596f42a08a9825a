"""Runs along which interference is measured: the same weights as without. tests/faults kills one."""

from __future__ import annotations

import pytest
from runs import SMALL, SPACE, records, same
from test_mobilenet_run import SPACE as CONVOLUTIONAL

import growtas
from growtas.errors import UsageError
from growtas.space import SearchSpace
from growtas.training import checkpoint

LAYERS = ["embedding", "blocks.0", "blocks.1", "blocks.2", "head"]


def measured(folder):
    return [record for record in records(folder) if record["event"] == "interference"]


def test_measuring_changes_nothing_but_the_log(tmp_path, finished):
    run = growtas.train(**SMALL, interference_every=2, out=tmp_path / "run")
    found = measured(run.path)
    assert [(record["step"], record["epoch"]) for record in found] == [(0, 0), (22, 2), (33, 3)]
    for record in found:
        assert (record["small"], record["large"], record["pairs"], record["images"]) == (0, 2, 16, 64)
        assert list(record["layers"]) == list(record["control"]["layers"]) == LAYERS
        assert -1 <= record["cosine"] <= record["control"]["cosine"] <= 1
        assert record["control"]["pairs"] == 6
    assert [record for record in records(run.path) if record["event"] != "interference"] == records(
        finished.path
    )
    states = [checkpoint.load(each.checkpoint_path) for each in (run, finished)]
    for key in states[0].keys() - {"log_offset", "log_check"}:
        assert same(states[0][key], states[1][key]), key


def test_a_convolutional_run(tmp_path):
    short = {"epochs": 1, "batch_size": 512, "stages": 1, "eval_subnets": 0, "tensorboard": False}
    runs = [
        growtas.train(
            CONVOLUTIONAL, data="digits", **short, interference_every=every, out=tmp_path / str(every)
        )
        for every in (0, 1)
    ]
    assert [record["step"] for record in measured(runs[1].path)] == [0, runs[1].steps]
    states = [checkpoint.load(run.checkpoint_path) for run in runs]
    assert same(states[0]["weights"], states[1]["weights"])  # the running statistics are among them


def test_a_space_of_one_group_cannot_be_measured(tmp_path):
    one = SearchSpace(**{**SPACE.to_dict(), "embed_dim": (16,)})
    with pytest.raises(UsageError, match="only one"):
        growtas.train(
            **{**SMALL, "space": one, "method": "uniform"}, interference_every=1, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
