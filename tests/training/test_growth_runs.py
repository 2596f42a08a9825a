"""Every way to stage a run, with every way to start new regions, through the whole of growtas.train."""

from __future__ import annotations

import pytest
from runs import SPACE, records
from thinning import thinned

import growtas
from growtas.methods.regions import new_region

SHORT = {
    "space": SPACE,
    "data": "digits",
    "epochs": 4,
    "batch_size": 512,
    "warmup_epochs": 0,
    "eval_every": 0,
    "eval_subnets": 0,
    "tensorboard": False,
    "device": "cpu",
}

STAGES = [
    (2, "1", {0: (0, 1), 1: (0, 1, 2)}),
    (3, "midpoint", {0: (0,), 2: (0, 1), 3: (0, 1, 2)}),
    ("0/0,2/0,1,2", "1,3", {0: (0,), 1: (0, 2), 3: (0, 1, 2)}),  # cumulative
    ("0/1/2", "1,2", {0: (0,), 1: (1,), 2: (2,)}),  # exclusive
]


def test_one_stage_is_uniform_sampling(tmp_path):
    growth, uniform = (
        growtas.train(**SHORT, method=method, stages=1, new_region="standard", out=tmp_path / method)
        for method in ("growtas", "uniform")
    )
    assert records(growth.path) == records(uniform.path)


PLANS = [(stages, mode) for stages in STAGES for mode in ("keep", "standard", "near_zero", "pretrained")]


@pytest.mark.parametrize(("plan", "new_region_mode"), thinned(PLANS, fast=(0, 5, 10, 15), several=True))
def test_staged_runs(tmp_path, plan, new_region_mode):
    stages, transition, expected = plan
    given = {"new_region": new_region_mode, "new_region_moments": "reset", "opt": "sgd"}
    run = growtas.train(**SHORT, **given, stages=stages, transition=transition, out=tmp_path / "run")
    log = records(run.path)
    begun = [record for record in log if record["event"] == "stage"]
    assert {record["epoch"]: tuple(record["groups"]) for record in begun} == expected
    net, past = run.load_net(), set(begun[0]["groups"])
    for record in begun[1:]:
        new = new_region(net, sorted(past), record["groups"])
        past |= set(record["groups"])
        assert record["new_region"] == new_region_mode and record["new_entries"] == sum(
            int(mask.sum()) for mask in new.values()
        )
        assert (record["reset_moments"] > 0) == bool(new)  # SGD's momentum holds weight decay
    active = {}
    for record in log:
        if record["event"] == "stage":
            active = set(record["groups"])
        if record["event"] == "step":
            assert set(record["group"]) <= active and record["loss"] is not None
    assert run.finished
