"""A focusformer run as a whole: it trains, resumes to the bit, and names subnets for budgets."""

from __future__ import annotations

import pytest
from runs import SMALL, SPACE, records

import growtas
from growtas import cli, cost
from growtas.errors import GrowtasError, UsageError

FOCUS = {**SMALL, "method": "focusformer", "method_options": "update_every=7,samples=4,images=64"}
"""33 steps: uniform in the first 3, the sampler updated after steps 10, 17, 24 and 31."""

LOW, HIGH = (cost.parameters(end, SPACE, 10) for end in (SPACE.smallest(), SPACE.largest()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return growtas.train(**FOCUS, out=tmp_path_factory.mktemp("focus") / "run")


def test_updates_are_logged(trained):
    told = [record for record in records(trained.path) if record["event"] == "method"]
    assert [record["step"] for record in told] == [9, 16, 23, 30]
    for record in told:
        assert {"reward", "baseline", "entropy", "accuracy"} <= set(record)
        assert record["reward"] <= record["accuracy"]
    (stage,) = (record for record in records(trained.path) if record["event"] == "stage")
    assert (stage["uniform_steps"], stage["sampler_updates"]) == (3, 4)


def read(folder):
    return (folder / "log.jsonl").read_bytes()


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.9, 1, 2])
def test_emission_meets_its_budget(trained, share):
    limit = LOW + share * (HIGH - LOW)
    subnet = growtas.emit(trained, max_params=limit)
    assert subnet in SPACE and cost.parameters(subnet, SPACE, 10) <= limit
    assert growtas.emit(trained.path, max_params=limit) == subnet


def test_emission_meets_a_second_limit(trained):
    low, high = cost.macs_range(SPACE, 10)
    subnet = growtas.emit(trained, max_params=HIGH, max_macs=(low + high) / 2)
    assert cost.macs(subnet, SPACE, 10) <= (low + high) / 2


def test_the_verb_says_what_the_function_gives(trained, capsys):
    assert cli.main(["emit", str(trained.path), "--max-params", "3e3"]) == 0
    out = capsys.readouterr().out
    subnet = growtas.emit(trained, max_params=3000)
    assert out.startswith(f"{subnet}: {cost.parameters(subnet, SPACE, 10):,} parameters, ")
    assert f"growtas evaluate {trained.path} --subnet {subnet}" in out


def test_emission_that_cannot_be(trained, finished, tmp_path):
    with pytest.raises(UsageError, match=f"the smallest has {LOW:,} parameters"):
        growtas.emit(trained, max_params=LOW - 1)
    with pytest.raises(UsageError, match="trained with budgets in params: give max_params"):
        growtas.emit(trained, max_macs=1e9)
    with pytest.raises(UsageError, match="method 'growtas', which has no sampler"):
        growtas.emit(finished, max_params=HIGH)
    settings = {**FOCUS, "epochs": 1, "method_options": ""}
    early = growtas.train(**settings, out=tmp_path / "early")
    with pytest.raises(
        GrowtasError, match="has not been updated yet at step 11: it draws uniformly for 1 steps"
    ):
        growtas.emit(early, max_params=HIGH)
