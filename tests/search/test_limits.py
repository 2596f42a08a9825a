"""Limits on a subnet's cost: the feasible set is exact, and limits that cannot be met say what can."""

import functools
import itertools
import random
from collections import Counter

import pytest
from thinning import thinned

from growtas import cost
from growtas.errors import UsageError
from growtas.searching.feasible import feasible_set
from growtas.searching.limits import Limits
from growtas.space import SearchSpace, Subnet, load_space, preset_names

DIGITS = load_space("digits")
UNEVEN = SearchSpace("uneven", (20, 30, 50), (1.7, 2.2, 3.1), (1, 2, 5), (2, 3), image_size=8, patch_size=4)


def every_subnet(space: SearchSpace) -> list[Subnet]:
    """The whole space the plain way."""
    from itertools import product

    return [
        Subnet(embed_dim, depth, heads, ratios)
        for embed_dim in space.embed_dim
        for depth in space.depth
        for heads in product(space.num_heads, repeat=depth)
        for ratios in product(space.mlp_ratio, repeat=depth)
    ]


@functools.cache
def every_cost(space: SearchSpace) -> list[tuple[Subnet, int, int]]:
    """The whole space with each subnet's parameters and MACs."""
    return [(s, cost.parameters(s, space, 10), cost.macs(s, space, 10)) for s in every_subnet(space)]


@pytest.mark.parametrize("name", preset_names())
def test_without_limits_the_set_is_the_space(name):
    space = load_space(name)
    feasible = feasible_set(space, 1000, Limits())
    assert feasible.count == space.count()
    for seed in range(20):
        assert feasible.sample(random.Random(seed)) in space


WINDOWS = [(0.2, 0.3, 0.9), (0.0, 0.05, 1.0), (0.6, 1.0, 0.7)]


@pytest.mark.parametrize(
    ("space", "window"),
    thinned(list(itertools.product([DIGITS, UNEVEN], WINDOWS)), fast=(0, 2, 4), several=True),
    ids=lambda value: getattr(value, "name", None),
)
def test_the_set_is_exactly_what_meets_the_limits(space, window):
    low, high = cost.parameter_range(space, 10)
    least, most = cost.macs_range(space, 10)
    limits = Limits(
        min_params=low + window[0] * (high - low),
        max_params=low + window[1] * (high - low),
        max_macs=least + window[2] * (most - least),
    )
    expected = {
        subnet
        for subnet, params, macs in every_cost(space)
        if limits.min_params <= params <= limits.max_params and macs <= limits.max_macs
    }
    feasible = feasible_set(space, 10, limits)
    listed = list(feasible)
    assert 0 < len(expected) < space.count()
    assert len(listed) == feasible.count == len(expected)
    assert set(listed) == expected
    assert all(feasible.sample(random.Random(seed)) in expected for seed in range(200))
    assert [subnet in feasible for subnet in every_subnet(space)] == [
        s in expected for s in every_subnet(space)
    ]


@pytest.mark.parametrize("draws", [2000, pytest.param(6000, marks=pytest.mark.slow)])
def test_drawing_has_the_distribution_of_drawing_from_the_space_and_discarding(draws):
    limits = Limits(max_params=45_000, min_params=25_000)
    feasible, rng, other = feasible_set(DIGITS, 10, limits), random.Random(0), random.Random(1)
    drawn = Counter(shape(feasible.sample(rng)) for _ in range(draws))
    kept = [shape(s) for s in (DIGITS.sample(other) for _ in range(20 * draws // 3)) if s in feasible]
    expected = Counter(kept)
    for key, count in expected.items():
        share = count / len(kept)
        sigma = (share * (1 - share) * (1 / draws + 1 / len(kept))) ** 0.5
        assert abs(drawn[key] / draws - share) < 5 * sigma + 1e-3, key


def shape(subnet: Subnet) -> tuple:
    return subnet.embed_dim, subnet.depth, subnet.num_heads[0], subnet.mlp_ratio[-1]


def test_an_outside_subnet_is_not_in_the_set():
    feasible = feasible_set(DIGITS, 10, Limits())
    assert Subnet(25, 3, (2, 2, 2), (2, 2, 2)) not in feasible


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_params": 1000}, "max_params=1,000 is below the smallest subnet of digits ({low} parameters)"),
        (
            {"min_params": 1e9},
            "min_params=1,000,000,000 is above the largest subnet of digits ({high} parameters)",
        ),
        ({"max_macs": 10}, "max_macs=10 is below the smallest subnet of digits ({least} MACs)"),
    ],
)
def test_an_impossible_limit_states_the_range(limits, sentence):
    low, high = (f"{value:,}" for value in cost.parameter_range(DIGITS, 10))
    least, most = (f"{value:,}" for value in cost.macs_range(DIGITS, 10))
    with pytest.raises(UsageError) as caught:
        feasible_set(DIGITS, 10, Limits(**limits))
    assert sentence.format(low=low, high=high, least=least) in str(caught.value)
    span = (least, most) if "max_macs" in limits else (low, high)
    assert "choose between {} and {}.".format(*span) in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_window_between_two_subnets_names_them():
    counts = sorted({cost.parameters(subnet, DIGITS, 10) for subnet in every_subnet(DIGITS)})
    below, above = max(zip(counts, counts[1:], strict=False), key=lambda pair: pair[1] - pair[0])
    with pytest.raises(UsageError, match=f"nearest subnets have {below:,} and {above:,} parameters"):
        feasible_set(DIGITS, 10, Limits(min_params=below + 1, max_params=above - 1))


def test_limits_that_exclude_each_other_say_how():
    subnets = every_subnet(DIGITS)
    needed = min(cost.macs(s, DIGITS, 10) for s in subnets if cost.parameters(s, DIGITS, 10) >= 90_000)
    with pytest.raises(UsageError, match=f"within the parameter limits need {needed:,} MACs or more"):
        feasible_set(DIGITS, 10, Limits(min_params=90_000, max_macs=needed - 1))
    assert feasible_set(DIGITS, 10, Limits(min_params=90_000, max_macs=needed)).count > 0


@pytest.mark.parametrize("value", [0, -5, float("nan"), float("inf"), True, "6M"])
@pytest.mark.parametrize("name", ["max_params", "min_params", "max_macs"])
def test_a_limit_that_is_no_count_is_refused(name, value):
    with pytest.raises(UsageError, match=name):
        Limits(**{name: value})


def test_a_reversed_window_is_refused():
    with pytest.raises(UsageError, match="min_params=7,000,000 is above max_params=6,000,000"):
        Limits(max_params=6e6, min_params=7e6)


def test_limits_round_inward():
    limits = Limits(max_params=10.9, min_params=1.1, max_macs=5.5)
    assert (limits.max_params, limits.min_params, limits.max_macs) == (10, 2, 5)
