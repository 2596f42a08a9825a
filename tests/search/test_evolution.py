"""The evolution keeps its promises for any seed, size and limit."""

import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas import cost
from growtas.errors import UsageError
from growtas.searching.evolution import Evolution, EvolutionConfig
from growtas.searching.feasible import feasible_set
from growtas.searching.limits import Limits
from growtas.searching.result import Evaluation
from growtas.space import Subnet, load_space

DIGITS = load_space("digits")
TINY = load_space("autoformer-tiny")


def score(subnet: Subnet) -> float:
    """A stand-in for accuracy: a fixed number that depends on every choice."""
    return random.Random(str(subnet)).random() + 0.1 * sum(subnet.num_heads) / subnet.depth


def run(evolution: Evolution, score=score) -> list[tuple[Subnet, ...]]:
    generations = []
    while candidates := evolution.ask():
        generations.append(candidates)
        evolution.tell([score(subnet) for subnet in candidates])
    return generations


configs = st.integers(1, 12).flatmap(
    lambda population: st.builds(
        EvolutionConfig,
        population=st.just(population),
        generations=st.integers(1, 6),
        parents=st.integers(1, 12),
        mutations=st.integers(0, population // 2),
        crossovers=st.integers(0, population - population // 2),
    )
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(config=configs, seed=st.integers(0, 2**32), spot=st.floats(0, 1), width=st.floats(0.001, 1))
def test_candidates_are_new_well_formed_and_within_the_limits(config, seed, spot, width):
    low, high = cost.parameter_range(DIGITS, 10)
    ceiling = low + spot * (high - low)
    limits = Limits(max_params=ceiling, min_params=max(1, min(ceiling - width * (high - low), ceiling)))
    try:
        feasible = feasible_set(DIGITS, 10, limits)
    except UsageError as error:
        assert "parameters" in str(error)  # an empty window: said, not searched
        return
    evolution = Evolution(feasible, config, seed)
    generations = run(evolution)
    seen = [subnet for generation in generations for subnet in generation]
    assert len(seen) == len(set(seen)) == min(config.population * config.generations, feasible.count)
    for subnet in seen:
        DIGITS.validate(subnet)
        assert limits.min_params <= cost.parameters(subnet, DIGITS, 10) <= limits.max_params
    # every generation is ranked, the last one included, and the best so far lead
    assert score(evolution.best) == max(map(score, seen))
    assert list(evolution.parents) == sorted(seen, key=score, reverse=True)[: config.parents]


def test_the_last_generation_is_ranked():
    evolution = Evolution(feasible_set(DIGITS, 10, Limits()), EvolutionConfig(10, 4, 3, 5, 5))
    told = 0
    while candidates := evolution.ask():
        told += 1
        evolution.tell([float(told)] * len(candidates))
        last = candidates
    assert told == 4
    assert evolution.best in last


def test_the_defaults_are_autoformers():
    evolution = Evolution(feasible_set(TINY, 1000, Limits(max_params=6e6, min_params=5e6)), EvolutionConfig())
    generations = run(evolution)
    assert [len(generation) for generation in generations] == [50] * 20
    assert len(evolution.parents) == 10


def test_children_descend_from_the_parents():
    """Half of a generation are mutations, which share most choices with one of the ten parents; half are
    crossovers, each choice of which comes from a parent of the same depth."""
    evolution = Evolution(feasible_set(TINY, 1000, Limits()), EvolutionConfig(), seed=3)
    evolution.tell([score(subnet) for subnet in evolution.ask()])
    parents = evolution.parents
    children = evolution.ask()
    crossed = children[25:]
    for child in crossed:
        same_depth = [parent for parent in parents if parent.depth == child.depth]
        assert any(is_cross(child, a, b) for a in same_depth for b in same_depth if a != b)
    assert not all(any(is_cross(c, a, b) for a in parents for b in parents) for c in children[:25])


@pytest.mark.parametrize(
    ("rate", "changes"),
    [
        ("p_embed", {"embed_dim"}),
        ("p_layer", {"num_heads", "mlp_ratio"}),
        ("p_depth", {"depth", "num_heads", "mlp_ratio"}),
    ],
)
def test_mutations_have_the_rates_of_the_settings(rate, changes):
    rates = {"p_depth": 0.0, "p_layer": 0.0, "p_embed": 0.0, rate: 1.0}
    config = EvolutionConfig(4, 2, 2, mutations=4, crossovers=0, **rates)
    evolution = Evolution(feasible_set(TINY, 1000, Limits()), config)
    evolution.tell([score(subnet) for subnet in evolution.ask()])
    child, parents = evolution.ask()[0].to_json(), [parent.to_json() for parent in evolution.parents]
    assert any({name for name in child if child[name] != parent[name]} <= changes for parent in parents)


def evaluated(subnets):
    """Evaluations of a generation, and the scores that they hold."""
    return [
        Evaluation(subnet, score(subnet), 0, 0, 0, 8, bytes([number]))
        for number, subnet in enumerate(subnets)
    ]


def test_the_bar_is_the_worst_parent():
    evolution = Evolution(feasible_set(DIGITS, 10, Limits()), EvolutionConfig(12, 2, 5, 6, 6))
    assert evolution.bar is None
    told = evaluated(evolution.ask())
    evolution.rank(told)
    worst = sorted(told, key=lambda each: -each.top1)[4]
    assert evolution.bar == (worst.top1, worst.correct)


def test_what_a_predictor_leaves_out_may_be_proposed_again():
    evolution = Evolution(feasible_set(DIGITS, 10, Limits()), EvolutionConfig(10, 3, 4, 5, 5))
    evolution.predictor = SimpleNamespace(
        ranking=SimpleNamespace(good=True),
        predict=lambda pool: [score(subnet) for subnet in pool],
        learn=lambda evaluations, chosen: None,
    )
    asked = set()
    while candidates := evolution.ask():
        asked |= set(candidates)
        evolution.rank(evaluated(candidates))
        assert evolution._visited == asked and len(asked) == 10 * (evolution.generation + 1)


def is_cross(child: Subnet, a: Subnet, b: Subnet) -> bool:
    lists = ("num_heads", "mlp_ratio")
    return (
        child.depth == a.depth == b.depth
        and child.embed_dim in (a.embed_dim, b.embed_dim)
        and all(
            c in pair
            for name in lists
            for c, *pair in zip(getattr(child, name), getattr(a, name), getattr(b, name), strict=True)
        )
    )


def test_without_two_parents_of_one_depth_random_subnets_take_the_place_of_crossovers():
    config = EvolutionConfig(population=30, generations=2, parents=3, mutations=0, crossovers=30)
    evolution = Evolution(feasible_set(DIGITS, 10, Limits()), config, seed=0)
    first = evolution.ask()
    chosen = {depth: next(s for s in first if s.depth == depth) for depth in DIGITS.depth}
    evolution.tell([float(subnet in chosen.values()) for subnet in first])
    assert sorted(parent.depth for parent in evolution.parents) == [3, 4, 5]
    second = evolution.ask()
    assert len(second) == 30
    assert all(subnet in DIGITS for subnet in second)


def test_the_same_seed_and_scores_give_the_same_search():
    feasible = feasible_set(DIGITS, 10, Limits(max_params=60_000))
    config = EvolutionConfig(12, 5, 4, 6, 6)
    first, second, other = (run(Evolution(feasible, config, seed)) for seed in (7, 7, 8))
    assert first == second
    assert first != other
    random.seed(123)  # the module-level generator plays no part
    assert run(Evolution(feasible, config, 7)) == first


def test_a_small_window_is_searched_to_its_last_subnet():
    """Where limits leave fewer subnets than the search wants, each is asked for once, and then it ends."""
    feasible = feasible_set(DIGITS, 10, Limits(max_params=22_000))
    everything = set(feasible)
    evolution = Evolution(feasible, EvolutionConfig(), seed=1)
    assert 0 < len(everything) < 1000
    generations = run(evolution)
    assert set().union(*generations) == everything
    assert sum(map(len, generations)) == len(everything)
    assert evolution.exhausted


def test_the_one_subnet_of_a_huge_space_is_found():
    smallest, _ = cost.parameter_range(TINY, 1000)
    evolution = Evolution(feasible_set(TINY, 1000, Limits(max_params=smallest)), EvolutionConfig())
    assert run(evolution) == [(TINY.smallest(),)]


def test_equal_scores_go_to_the_smaller_subnet():
    evolution = Evolution(feasible_set(DIGITS, 10, Limits()), EvolutionConfig(20, 1, 5, 0, 0))
    (candidates,) = run(evolution, score=lambda subnet: 90.0)
    sizes = [cost.parameters(subnet, DIGITS, 10) for subnet in candidates]
    assert cost.parameters(evolution.best, DIGITS, 10) == min(sizes)


def test_a_generation_must_be_told_before_the_next():
    evolution = Evolution(feasible_set(DIGITS, 10, Limits()), EvolutionConfig(4, 2, 2, 2, 2))
    candidates = evolution.ask()
    with pytest.raises(RuntimeError, match="tell"):
        evolution.ask()
    with pytest.raises(ValueError, match="4 finite scores"):
        evolution.tell([1.0])
    with pytest.raises(ValueError, match="finite"):
        evolution.tell([float("nan")] * 4)
    evolution.tell([score(subnet) for subnet in candidates])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"population": 0}, "population=0 must be"),
        ({"generations": 2.5}, "generations=2.5 must be"),
        ({"parents": 0}, "parents=0 must be"),
        ({"mutations": -1}, "mutations=-1 must be"),
        ({"population": 10}, "25 mutations and 25 crossovers do not fit a population of 10"),
        ({"p_embed": 1.5}, "p_embed=1.5 is a probability"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        EvolutionConfig(**values)
