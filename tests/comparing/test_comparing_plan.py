"""A comparison is fair: every method of a seed has the same subnets, weights and images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparisons import SPACE

from growtas.comparing.plan import RATE_SEED, Plan
from growtas.comparing.specs import MethodSpec
from growtas.space import load_space, space_from_dict
from growtas.training.data import load_splits
from growtas.training.loop import Trainer
from growtas.training.ranks import Ranks
from growtas.training.run import Run


@pytest.fixture(scope="module")
def plan():
    images = {"num_classes": 10, "train": 1151, "search": 287, "test": 359}
    space = space_from_dict(SPACE)
    return Plan(Path("out"), space, "digits", 4, "auto", {"batch_size": 96}, (), 4, 4, 2, images)


@pytest.fixture(scope="module")
def splits(plan):
    return load_splits("digits", plan.space)


METHODS = [MethodSpec.parse(text) for text in ("uniform", "growtas", "growtas:stages=3,transition=1,2")]


def test_settings_of_a_seed_differ_in_the_method_alone(plan):
    configs = [plan.cell_config(spec, 7, 1e-3).resolved().to_dict() for spec in METHODS]
    differing = [{k for k in configs[0] if config[k] != configs[0][k]} for config in configs]
    assert differing == [set(), {"method"}, {"method", "stages", "transition"}]
    assert configs[0]["seed"] == 7 and configs[0]["lr"] == 1e-3 and configs[0]["batch_size"] == 96


def begun(plan, splits, spec, seed):
    config = plan.cell_config(spec, seed, 1e-3).resolved()
    run = Run(Path("never"), config, plan.space, 10, 11, splits.summary(), {})
    trainer = Trainer(run, splits, torch.device("cpu"), Ranks())
    batches = trainer.loader.batches(0)
    return trainer.net.state_dict(), [next(batches) for _ in range(2)]


def test_runs_of_a_seed_begin_alike(plan, splits):
    first, others = begun(plan, splits, METHODS[0], 3), [begun(plan, splits, s, 3) for s in METHODS[1:]]
    for weights, batches in others:
        assert all(torch.equal(first[0][name], value) for name, value in weights.items())
        for ours, theirs in zip(first[1], batches, strict=True):
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    other_weights, other_batches = begun(plan, splits, METHODS[0], 4)
    assert any(not torch.equal(first[0][name], value) for name, value in other_weights.items())
    assert not torch.equal(first[1][0][0], other_batches[0][0])


def test_the_subnets_are_the_same_for_everybody(plan):
    for group, width in enumerate(plan.space.groups):
        subnets = plan.group_subnets(group)
        assert subnets == plan.group_subnets(group)
        assert len(set(subnets["random"])) == 4
        every = [*subnets["random"], *subnets["smallest"], *subnets["largest"]]
        assert all(subnet.embed_dim == width and subnet in plan.space for subnet in every)
        assert subnets["smallest"] == [plan.space.smallest((group,))]
        assert subnets["largest"] == [plan.space.largest((group,))]


def test_a_group_of_few_subnets_is_evaluated_whole():
    small = SPACE | {"mlp_ratio": [1], "num_heads": [1]}
    plan = Plan(Path("out"), space_from_dict(small), "digits", 1, "auto", {}, (), 10, 4, 2, {})
    assert len(plan.group_subnets(0)["random"]) == plan.space.count((0,)) == 2


def test_the_learning_rates_that_are_tried():
    images = {"num_classes": 10}
    base = (Path("nowhere"), load_space("digits"), "digits", None)
    rest = ({}, (), 10, 4, 2, images)
    assert Plan(*base, "auto", *rest).rates() == (1.5e-3, 3e-3, 6e-3)
    assert Plan(*base, "recipe", *rest).rates() == (3e-3,)
    assert Plan(*base, "0.01", *rest).rates() == (0.01,)
    trial = Plan(*base, "auto", *rest).rate_config(6e-3)
    assert (trial.method, trial.seed, trial.lr) == ("uniform", RATE_SEED, 6e-3)


def test_a_convolutional_space_takes_the_recipe_of_its_family(tmp_path):
    rest = ("folder:/images", None, "auto", {}, (), 1, 1, 1, {})
    convolutional = Plan(tmp_path, load_space("ofa-mobilenetv3"), *rest)
    assert convolutional.config({}).opt == "sgd" and convolutional.rates()[1] == pytest.approx(2.6)
    transformer = Plan(tmp_path, load_space("autoformer-tiny"), *rest)
    assert transformer.config({}).opt == "adamw" and transformer.rates()[1] == pytest.approx(1e-3)
