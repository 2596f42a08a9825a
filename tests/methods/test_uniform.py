"""Weights of groups under uniform sampling: counted draws, the ends of a step, and refused weights."""

from __future__ import annotations

from collections import Counter

import pytest

import growtas
from growtas.comparing.specs import MethodSpec
from growtas.errors import UsageError
from growtas.methods import MethodSettings, create_method
from growtas.space import load_space
from growtas.training.log import read_log

DIGITS, MOBILENET = load_space("digits"), load_space("digits-mobilenet")


def uniform(weights: str | None = None, space=DIGITS, **given):
    options = "" if weights is None else f"group_weights={weights}"
    return create_method("uniform", MethodSettings(space, 10, 4, 5, options=options, **given))


@pytest.mark.parametrize("space", [DIGITS, MOBILENET], ids=lambda space: space.name)
@pytest.mark.parametrize("weights", [(5, 5, 2), (11, 5, 2), (1, 0, 0), (0, 0.5, 1.5)])
def test_groups_are_drawn_in_proportion_to_their_weights(space, weights):
    weights = weights[: len(space.groups)]
    method, draws = uniform(",".join(map(str, weights)), space), 2000
    counts = Counter(space.group_of(method.subnets(step)[0]) for step in range(draws))
    for group, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(counts[group] / draws - share) <= 4 * (share * (1 - share) / draws) ** 0.5
    assert method.stages[0].groups == tuple(group for group, weight in enumerate(weights) if weight)


def test_every_choice_within_a_group_is_uniform():
    method = uniform("1,0,0")
    drawn = [method.subnets(step)[0] for step in range(1500)]
    for values in (
        Counter(subnet.depth for subnet in drawn),
        Counter(subnet.num_heads[0] for subnet in drawn),
        Counter(subnet.mlp_ratio[0] for subnet in drawn),
    ):
        expected = len(drawn) / len(values)
        assert len(values) > 1 and all(abs(n - expected) < 5 * expected**0.5 for n in values.values())


def test_without_weights_nothing_changes():
    method = uniform()
    assert [method.subnets(step) for step in range(20)] == [
        (DIGITS.sample(method.rng(step)),) for step in range(20)
    ]
    assert method.stages[0].groups == (0, 1, 2)


def test_only_proportions_count():
    same = [uniform(weights) for weights in ("5,5,2", "1e308,1e308,4e307", " 0.5, 5e-1,.2")]
    assert len({tuple(method.subnets(step) for step in range(50)) for method in same}) == 1


def test_the_sandwich_and_the_teacher_are_of_the_groups_that_are_trained():
    expected = DIGITS.smallest((0, 1)), DIGITS.largest((0, 1))
    assert uniform("2,1,0").extremes(3) == expected
    assert uniform("2,1,0", sandwich=True, distill="inplace").subnets(3)[:2] == expected[::-1]


def test_a_comparison_hands_the_weights_on():
    spec = MethodSpec.parse("uniform:group_weights=5,5,2,epochs=3")
    assert spec.settings() == {"epochs": 3, "method_options": "group_weights=5,5,2"}


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (
            "5,5",
            "group_weights='5,5' .* 2 of the 3 weights .* embed_dim 24, 36, 48. Give one",
        ),
        ("1,1,1,1", "4 of the 3 weights"),
        ("", "1 of the 3 weights"),
        ("0,0,0", "leaves no group to train: all weights are 0. Give one per group, such as group_weights="),
        ("1,-1,1", "holds '-1'; a weight must be a finite number of 0 or more"),
        ("1,inf,1", "holds 'inf'"),
        ("1,nan,1", "holds 'nan'"),
        ("1,small,1", "holds 'small'"),
    ],
)
def test_weights_that_are_refused(weights, sentence):
    with pytest.raises(UsageError, match=sentence):
        uniform(weights)


def test_a_run_trains_the_weighted_groups_alone(tmp_path):
    settings = {"epochs": 1, "batch_size": 576, "eval_every": 0, "eval_subnets": 0, "tensorboard": False}
    settings |= {"device": "cpu", "sandwich": True, "distill": "inplace"}
    options = {"method": "uniform", "method_options": "group_weights=1,1,0"}
    run = growtas.train("digits", **settings, **options, out=tmp_path / "run")
    (stage,) = read_log(run.path, "stage")
    assert (stage["groups"], stage["embed_dims"], stage["group_weights"]) == ([0, 1], [24, 36], [1, 1])
    assert {group for step in read_log(run.path, "step") for group in step["group"]} == {0, 1}
