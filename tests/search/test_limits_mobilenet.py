"""Limits in MobileNetV3 spaces: exact in a small one, drawn and walked to in OFA's."""

import random
from collections import Counter

import pytest

from growtas import cost
from growtas.errors import UsageError
from growtas.searching.evolution import Evolution, EvolutionConfig
from growtas.searching.feasible import feasible_set
from growtas.searching.feasible_mobilenet import every_subnet
from growtas.searching.limits import Limits
from growtas.searching.result import Evaluation, SearchResult
from growtas.space import load_space
from growtas.spaces.mobilenet import MobileNetSpace

OFA = load_space("ofa-mobilenetv3")
SMALL = MobileNetSpace(
    "small",
    kernel=[3, 5],
    expand=[2, 4],
    depth=[1, 2],
    widths=[8, 16],
    strides=[1, 2],
    activations=["relu", "h-swish"],
    squeeze_excite=[False, True],
    image_size=16,
)


def limits_within(space: MobileNetSpace, low: float, high: float, macs: float) -> Limits:
    """A window of parameters and a limit of MACs, as shares of what the space spans."""
    least, most = cost.parameter_range(space, 10)
    fewest, all_macs = cost.macs_range(space, 10)
    span = most - least
    return Limits(least + high * span, least + low * span, fewest + macs * (all_macs - fewest))


def test_every_subnet_is_listed_once():
    listed = list(every_subnet(SMALL))
    assert len(listed) == len(set(listed)) == SMALL.count() and all(subnet in SMALL for subnet in listed)


@pytest.mark.parametrize("window", [(0.2, 0.4, 0.9), (0.0, 0.1, 1.0), (0.6, 1.0, 0.8)])
def test_a_small_space_is_exact(window):
    limits = limits_within(SMALL, *window)
    expected = {
        subnet
        for subnet in every_subnet(SMALL)
        if limits.min_params <= cost.parameters(subnet, SMALL, 10) <= limits.max_params
        and cost.macs(subnet, SMALL, 10) <= limits.max_macs
    }
    feasible = feasible_set(SMALL, 10, limits)
    assert 0 < len(expected) < SMALL.count()
    assert set(feasible) == expected and feasible.count == len(list(feasible)) == len(expected)
    assert all(feasible.sample(random.Random(seed)) in expected for seed in range(50))
    assert all((subnet in feasible) == (subnet in expected) for subnet in every_subnet(SMALL))


def test_costs_are_those_of_growtas_cost():
    feasible, rng = feasible_set(OFA, 7, Limits()), random.Random(0)
    for _ in range(50):
        subnet = OFA.sample(rng)
        assert feasible.cost(subnet) == (cost.parameters(subnet, OFA, 7), cost.macs(subnet, OFA, 7))


def test_drawing_has_the_distribution_of_drawing_from_the_space_and_discarding():
    limits = Limits(max_params=4e6)
    feasible, rng, other = feasible_set(OFA, 1000, limits), random.Random(0), random.Random(1)
    assert feasible.count is None
    drawn = Counter(OFA.group_of(feasible.sample(rng)) for _ in range(800))
    kept = Counter(OFA.group_of(s) for s in (OFA.sample(other) for _ in range(2500)) if s in feasible)
    share, sampled = drawn[0] / 800, kept[0] / kept.total()
    assert abs(share - sampled) < 5 * (sampled * (1 - sampled) * (1 / 800 + 1 / kept.total())) ** 0.5


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_params=3.42e6),
        Limits(min_params=7.64e6),
        Limits(max_macs=125e6),
        Limits(max_params=5.002e6, min_params=5e6, max_macs=260e6),
    ],
    ids=str,
)
def test_narrow_limits_are_met_by_walks(limits):
    feasible, rng = feasible_set(OFA, 1000, limits), random.Random(2)
    found = [feasible.sample(rng) for _ in range(4)]
    assert all(subnet in feasible for subnet in found) and len(set(found)) > 1


def test_the_ends_themselves_are_found():
    for limits, subnet in (
        (Limits(max_params=3_410_792), OFA.smallest()),
        (Limits(min_params=7_664_760), OFA.largest()),
        (Limits(max_macs=121_278_672), OFA.smallest()),
    ):
        assert feasible_set(OFA, 1000, limits).sample(random.Random(0)) == subnet


def test_impossible_limits_say_what_there_is():
    for limits, sentence in (
        (Limits(max_params=3_410_791), r"smallest subnet of ofa-mobilenetv3 \(3,410,792 parameters\)"),
        (Limits(min_params=7_664_761), r"largest subnet of ofa-mobilenetv3 \(7,664,760 parameters\)"),
        (Limits(max_macs=121e6), r"\(121,278,672 MACs\); choose between 121,278,672 and 566,170,656"),
    ):
        with pytest.raises(UsageError, match=sentence):
            feasible_set(OFA, 1000, limits)
    with pytest.raises(UsageError, match="No subnet of small meets max_params=.*the nearest has"):
        feasible_set(SMALL, 10, limits_within(SMALL, 0.9, 1.0, 0.02))


def test_evolution_searches_the_space():
    feasible = feasible_set(OFA, 1000, Limits(max_params=4.5e6))
    evolution = Evolution(feasible, EvolutionConfig(16, 4, 4, 8, 8), seed=1)
    best, seen = [], []
    while candidates := evolution.ask():
        assert all(subnet in feasible for subnet in candidates)
        seen += candidates
        evolution.tell([sum(subnet.kernel) for subnet in candidates])
        best.append(sum(evolution.best.kernel))
    assert len(seen) == len(set(seen)) == 64 and best[-1] > best[0]


def test_evolution_ends_when_a_small_space_is_exhausted():
    feasible = feasible_set(SMALL, 10, limits_within(SMALL, 0.0, 0.15, 1.0))
    evolution, seen = Evolution(feasible, EvolutionConfig(10, 100, 4, 5, 5)), set()
    while candidates := evolution.ask():
        seen |= set(candidates)
        evolution.tell([0.0] * len(candidates))
    assert seen == set(feasible)


def test_results_read_either_family(tmp_path):
    for subnet in (OFA.largest(), load_space("digits").largest()):
        evaluation = Evaluation(subnet, 50.0, 7, 8, 0)
        assert Evaluation.from_json(evaluation.to_json()) == evaluation
    result = SearchResult(evaluation, (evaluation,), 49.0, None, tmp_path)
    assert str(result).endswith("the best of 1 evaluated among more than can be counted within the limits.")
