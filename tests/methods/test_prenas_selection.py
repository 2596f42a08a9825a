"""PreNAS without a network: bins, layer ranking, enumeration, the best of each bin, sampling groups."""

from __future__ import annotations

import random
from math import comb

import pytest

from growtas import cost
from growtas.errors import UsageError
from growtas.methods.prenas_bins import Bins, parse_bins, parse_depths
from growtas.methods.prenas_selection import (
    Candidate,
    Preferred,
    Scores,
    allocate,
    candidate_params,
    choice_counts,
    enumerate_candidates,
    grouped,
    probabilities,
    select,
)
from growtas.space import SearchSpace, Subnet, load_space

# Parameters, embed_dim and depth of the subnets that the authors published.
PUBLISHED = {
    "autoformer-tiny": [
        (5_994_760, 192, 12),
        (6_997_192, 216, 12),
        (7_996_552, 240, 12),
        (8_967_016, 240, 12),
        (9_978_232, 240, 14),
        (10_517_272, 240, 14),
    ],
    "autoformer-small": [
        (17_991_400, 320, 13),
        (22_989_928, 384, 13),
        (27_976_008, 448, 13),
        (32_981_640, 448, 14),
    ],
    "autoformer-base": [(41_966_944, 528, 14), (53_876_104, 576, 14), (65_916_448, 624, 14)],
}
CANDIDATES = {"autoformer-tiny": 1770, "autoformer-small": 57_918, "autoformer-base": 17_421}


def random_scores(space: SearchSpace, seed: int = 0) -> Scores:
    """Scores of every part, positive and different; wider parts of a layer score more, as real ones do."""
    rng = random.Random(seed)
    layers = range(max(space.depth))
    grow = [rng.random() for _ in layers]
    return Scores(
        {d: d * rng.random() for d in space.embed_dim},
        {(d, h): [d * h * grow[i] for i in layers] for d in space.embed_dim for h in space.num_heads},
        {(d, r): [d * r * grow[-1 - i] for i in layers] for d in space.embed_dim for r in space.mlp_ratio},
        {h: [rng.random() for _ in layers] for h in space.num_heads[1:]},
        {r: [rng.random() for _ in layers] for r in space.mlp_ratio[1:]},
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_enumeration_counts_are_the_published_ones(name):
    space = load_space(name)
    depths = parse_depths("", space)
    ways = [comb(d + 1, len(space.mlp_ratio) - 1) * comb(d + 1, len(space.num_heads) - 1) for d in depths]
    found = list(enumerate_candidates(space, random_scores(space), 1000, depths))
    assert len(found) == CANDIDATES[name] == len(space.embed_dim) * sum(ways)
    assert len({candidate[:3] for candidate in found}) == len(found)
    rng = random.Random(1)
    scores = random_scores(space)
    for candidate in rng.sample(found, 100):
        assert candidate.params == cost.parameters(candidate.subnet, space)
        assert candidate.score == pytest.approx(scores.of(candidate.subnet), rel=1e-12)
        assert candidate.subnet in space
    assert {candidate.params for candidate in found} == candidate_params(space, 1000, depths)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_subnets_are_candidates_one_in_each_bin_that_has_any(name):
    space = load_space(name)
    depths = parse_depths("", space)
    bins = parse_bins("", space, 1000, depths)
    possible = candidate_params(space, 1000, depths)
    for params, embed_dim, depth in PUBLISHED[name]:
        one = SearchSpace(**{**space.to_dict(), "embed_dim": [embed_dim], "depth": [depth]})
        assert params in candidate_params(one, 1000, (depth,)) <= possible
    filled = {bins.index(params) for params in possible} - {None}
    assert sorted(filled) == [bins.index(params) for params, *_ in PUBLISHED[name]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("autoformer-tiny", [1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8]),
        ("autoformer-small", [1 / 4] * 4),
        ("autoformer-base", [1 / 3] * 3),
    ],
)
def test_probabilities_of_the_published_subnets(name, expected):
    subnets = [Subnet(d, depth, (1,) * depth, (1,) * depth) for _, d, depth in PUBLISHED[name]]
    assert probabilities(grouped(subnets)) == pytest.approx(expected)


def test_cut_points_leave_out_no_middle_choice():
    assert list(choice_counts(2, 1)) == [(2,)]
    assert list(choice_counts(2, 2)) == [(0, 2), (1, 1), (2, 0)]
    assert list(choice_counts(3, 3)) == [(0, 1, 2), (0, 2, 1), (0, 3, 0), (1, 1, 1), (1, 2, 0), (2, 1, 0)]
    assert all(middle for _, *middle, _ in choice_counts(7, 4) for middle in middle)
    assert list(choice_counts(1, 4)) == []


def test_the_largest_choice_goes_to_the_best_layers_and_ties_to_the_deeper():
    rank = {7: [1.0, 5.0, 3.0, 5.0], 6: [4.0, 9.0, 2.0, 9.0]}
    assert allocate((1, 1, 2), (5, 6, 7), rank) == (6, 7, 5, 7)
    assert allocate((3, 0, 1), (5, 6, 7), rank) == (5, 5, 5, 7)
    assert allocate((0, 4, 0), (5, 6, 7), rank) == (6, 6, 6, 6)
    assert allocate((1, 1), (5, 7), rank) == (5, 7)  # a shallower subnet: only its own layers compete


def test_bins_are_half_open_and_whole():
    tiny = parse_bins("", load_space("autoformer-tiny"), 1000, (12, 13, 14))
    assert tiny == parse_bins("5e6-12e6/1e6", load_space("autoformer-tiny"), 1000, (12,)) and tiny.count == 7
    assert [tiny.index(p) for p in (4_999_999, 5_000_000, 5_999_999, 6_000_000)] == [None, 0, 0, 1]
    assert [tiny.index(p) for p in (11_999_999, 12_000_000)] == [6, None]
    base = parse_bins("", load_space("autoformer-base"), 1000, (14,))
    assert base.count == 3 and base.index(65_999_999) == 2 and base.index(66_000_000) is None


@pytest.mark.parametrize(("text", "count"), [("", 6), ("1", 1), ("4", 4)])
def test_equal_bins_hold_the_smallest_and_the_largest(text, count):
    space = load_space("digits")
    bins = parse_bins(text, space, 10, space.depth)
    low, high = cost.parameter_range(space, 10)
    assert (bins.count, bins.index(low), bins.index(high)) == (count, 0, count - 1)
    assert bins.index(low - 1) is None
    shallow = parse_bins(text, space, 10, space.depth[:1])
    assert shallow.low == low and shallow.high < bins.high


def test_best_of_each_bin_and_the_first_of_equals():
    def made(heads, params, score):
        return Candidate(8, (heads,), (1,), params, score)

    found = [made(1, 12, 3.0), made(2, 10, 4.0), made(3, 19, 4.0), made(4, 35, 0.0), made(5, 50, 9.0)]
    chosen = select(iter(found), Bins(10, 40, 10))
    assert chosen == [Preferred(found[1].subnet, 10, 4.0), Preferred(found[3].subnet, 35, 0.0)]
    assert select(iter(found), Bins(60, 70, 10)) == []


def test_best_of_each_bin_by_looking_at_every_candidate():
    space = load_space("autoformer-tiny")
    bins = parse_bins("", space, 1000, space.depth)
    found = list(enumerate_candidates(space, random_scores(space, 3), 1000, space.depth))
    for chosen in select(iter(found), bins):
        low, high = bins.limits(bins.index(chosen.params))
        rivals = [c.score for c in found if low <= c.params < high]
        assert low <= chosen.params < high and chosen.score == max(rivals) and len(rivals) > 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0", "at least one bin"),
        ("many", "neither a number of bins nor low-high/step"),
        ("5e6/1e6", "neither a number of bins nor low-high/step"),
        ("5e6-inf/1e6", "neither a number of bins nor low-high/step"),
        ("5e6-5.5e6/1e6", "no whole bin"),
        ("5e6-7e6/0", "no whole bin"),
    ],
)
def test_bins_that_cannot_be(text, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse_bins(text, load_space("digits"), 10, (3,))


def test_depths():
    small, digits = load_space("autoformer-small"), load_space("digits")
    assert parse_depths("", small) == (13, 14) and parse_depths("", digits) == (3, 4, 5)
    assert parse_depths("14,12,14", small) == (12, 14)
    with pytest.raises(UsageError, match="has no depth 11, only 12, 13, 14"):
        parse_depths("11,12", small)
    with pytest.raises(UsageError, match="no list of whole numbers"):
        parse_depths("deep", small)
