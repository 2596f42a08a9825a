"""Search spaces and subnets: counts, sampling, helpers, text forms, bad input."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

import growtas
from growtas.errors import UsageError
from growtas.space import SearchSpace, Space, Subnet, load_space, preset_names, seeded_rng
from growtas.subnet import parse_subnet, subnet_from_json


@pytest.fixture(params=preset_names())
def space(request) -> Space:
    return load_space(request.param)


COUNTS = {
    "autoformer-tiny": 1_056_964_608,
    "autoformer-small": 77_103_263_459_313,
    "autoformer-base": 10_108_977_168_384,
    "autoformer-base-search": 6_245_364_340_204_353,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_counts(name, count):
    space = load_space(name)
    assert space.count() == count
    assert sum(space.count([group]) for group in range(3)) == count


def test_count_equals_enumeration():
    space = SearchSpace("small", (8, 16), (2, 3), (1, 2), (1, 2))
    rng = random.Random(0)
    assert len({space.sample(rng) for _ in range(5000)}) == space.count() == 2 * (4 + 16)


def test_samples_belong_and_round_trip(space):
    rng = random.Random(1)
    for _ in range(50):
        subnet = space.sample(rng)
        assert subnet in space
        assert parse_subnet(str(subnet)) == space.parse(str(subnet)) == subnet
        assert subnet_from_json(json.dumps(subnet.to_json())) == subnet
        assert hash(space.subnet_from_json(subnet.to_json())) == hash(subnet)


def test_sampling_is_uniform_over_groups():
    space, rng = load_space("digits"), random.Random(0)
    counts = Counter(space.sample(rng, groups=(0, 2)).embed_dim for _ in range(2000))
    assert set(counts) == {24, 48}
    assert abs(counts[24] - 1000) < 120  # five standard deviations
    depths = Counter(space.sample(rng).depth for _ in range(3000))
    assert all(abs(depths[d] - 1000) < 130 for d in space.depth)


def test_seeded_rng_is_pure():
    assert seeded_rng("subnet", 0, 5).random() == seeded_rng("subnet", 0, 5).random()
    assert seeded_rng("subnet", 0, 5).random() != seeded_rng("subnet", 0, 6).random()
    # pinned: a run resumed on another machine or Python must go on with the same subnets
    assert seeded_rng("subnet", 0, 5).random() == 0.9515983383580534


def test_mutation_and_crossover_stay_inside(space):
    rng = random.Random(2)
    for _ in range(200):
        parent = space.sample(rng)
        assert space.mutate(parent, rng) in space
        other = space.sample(rng)
        if space.can_cross(parent, other):
            child = space.crossover(parent, other, rng)
            assert child in space
            for name in ("num_heads", "mlp_ratio") if space.group_axis == "embed_dim" else ("depth",):
                triples = zip(*(getattr(net, name) for net in (child, parent, other)), strict=True)
                assert all(c in (a, b) for c, a, b in triples)
        else:
            with pytest.raises(UsageError, match="parents of one depth"):
                space.crossover(parent, other, rng)


def test_mutation_rates():
    space, rng = load_space("autoformer-small"), random.Random(3)
    parent = space.sample(rng)
    children = [space.mutate(parent, rng) for _ in range(4000)]
    # a redrawn choice is another one two times in three
    changed = sum(child.embed_dim != parent.embed_dim for child in children) / 4000
    assert changed == pytest.approx(0.4 * 2 / 3, abs=0.04)
    changed = sum(child.num_heads[0] != parent.num_heads[0] for child in children) / 4000
    assert changed == pytest.approx(0.2 * 2 / 3, abs=0.03)


def test_neighbours_differ_in_one_choice():
    space = load_space("digits")
    subnet = Subnet(36, 4, (2, 3, 2, 2), (2, 2, 3, 2))
    found = list(space.neighbours(subnet))
    assert len(found) == len(set(found)) == 2 + 2 + 4 + 4
    assert all(n in space and n != subnet for n in found)
    assert {n.embed_dim for n in found} == {24, 36, 48} and {n.depth for n in found} == {3, 4, 5}


def test_a_deeper_neighbour_repeats_the_last_layer():
    found = load_space("digits").neighbours(Subnet(36, 3, (2, 2, 3), (2, 3, 3)))
    assert [n for n in found if n.depth == 4] == [Subnet(36, 4, (2, 2, 3, 3), (2, 3, 3, 3))]


@pytest.mark.parametrize("rate", ["p_depth", "p_layer", "p_embed"])
def test_each_rate_mutates_its_own_choices(rate):
    space, rng = load_space("digits"), random.Random(4)
    parent, rates = space.largest(), dict.fromkeys(("p_depth", "p_layer", "p_embed"), 0.0)
    children = [space.mutate(parent, rng, **{**rates, rate: 1.0}) for _ in range(60)]
    assert {n.depth for n in children} == set(space.depth if rate == "p_depth" else space.depth[-1:])
    assert {n.embed_dim for n in children} == set(
        space.embed_dim if rate == "p_embed" else space.embed_dim[-1:]
    )
    layers = {choice for n in children for choice in (*n.num_heads, *n.mlp_ratio)}
    assert (layers == {*space.num_heads, *space.mlp_ratio}) == (rate == "p_layer")


def test_each_choice_of_a_child_comes_from_either_parent():
    space, rng = load_space("digits"), random.Random(5)
    parents = Subnet(24, 3, (2, 2, 2), (2, 2, 2)), Subnet(48, 3, (3, 3, 3), (3, 3, 3))
    children = [space.crossover(*parents, rng) for _ in range(40)]
    assert {child.embed_dim for child in children} == {24, 48}
    for layer in range(3):
        assert {child.num_heads[layer] for child in children} == {2, 3}
        assert {child.mlp_ratio[layer] for child in children} == {2, 3}


def test_groups_are_ordered_by_embed_dim():
    space = load_space("autoformer-tiny")
    assert space.groups == (192, 216, 240)
    assert space.group_of(space.largest([1])) == 1
    assert space.smallest([1, 2]).embed_dim == 216
    assert space.largest().hidden_dims == (960,) * 14
    assert Subnet(216, 1, (3,), (3.5,)).hidden_dims == (756,)
    assert Subnet(15, 1, (3,), (2.5,)).hidden_dims == (37,)  # of 37.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": []}, "embed_dim of space 'x' must be a list of choices"),
        ({"embed_dim": [16, 8]}, "must ascend without repeats"),
        ({"embed_dim": [8, 8]}, "must ascend without repeats"),
        ({"num_heads": [1.5]}, "must hold whole numbers"),
        ({"depth": [0]}, "must hold positive numbers"),
        ({"super_embed_dim": 8}, "embed_dim=16 of space 'x' is over its supernet's embed_dim, 8"),
        ({"patch_size": 3}, "image_size=8 of space 'x' is no multiple of patch_size=3"),
        ({"head_dim": 0}, "head_dim of space 'x' must be a positive whole number"),
        ({"embed_dims": [8]}, "no field 'embed_dims'. Did you mean 'embed_dim'"),
    ],
)
def test_bad_spaces_are_refused(change, message):
    fields = dict(embed_dim=[8, 16], mlp_ratio=[2], num_heads=[1], depth=[1], image_size=8, patch_size=2)
    with pytest.raises(UsageError, match=message):
        SearchSpace.from_dict({"name": "x", **fields, **change})


def test_yaml_files_of_the_user(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "embed_dim: [32, 64]\nmlp_ratio: [2, 2.5]\nnum_heads: [1, 2]\ndepth: [2, 3]\n"
        "image_size: 32\npatch_size: 4\nhead_dim: 32\n"
    )
    space = load_space(path)
    assert space.name == "mine" and space.num_tokens == 65 and space.super_hidden_dim == 160
    assert SearchSpace.from_dict(space.to_dict()) == space
    path.write_text("embed_dim: [32")
    with pytest.raises(UsageError, match="is not YAML"):
        load_space(path)
    path.write_text("embed_dim: [32]")
    with pytest.raises(UsageError, match="lacks mlp_ratio, num_heads, depth"):
        load_space(path)
    with pytest.raises(UsageError, match="does not exist"):
        load_space(tmp_path / "other.yaml")


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'autoformer-tiny'"):
        growtas.load_space("autoformer-tny")


@pytest.mark.parametrize(
    "text", ["", "d216", "d216-h3-r", "d2x-h3-r4", "d216-h3,4-r4", "nonsense", "d216-h3-r4-q1"]
)
def test_bad_subnet_text(text):
    with pytest.raises(UsageError):
        Subnet.parse(text)


@pytest.mark.parametrize(
    "data", ["{", "[]", {"embed_dim": 8}, {**Subnet(8, 1, (1,), (2,)).to_json(), "x": 1}]
)
def test_bad_subnet_json(data):
    with pytest.raises(UsageError):
        Subnet.from_json(data)


def test_subnets_outside_the_space():
    space = load_space("digits")
    for subnet, message in [
        (
            Subnet(25, 3, (2,) * 3, (2,) * 3),
            "embed_dim=25 is outside space 'digits', which offers 24, 36, 48",
        ),
        (Subnet(24, 2, (2,) * 2, (2,) * 2), "depth=2"),
        (Subnet(24, 3, (2, 4, 2), (2,) * 3), "num_heads=4 of layer 1"),
        (Subnet(24, 3, (2,) * 3, (2, 2, 5)), "mlp_ratio=5 of layer 2"),
    ]:
        assert subnet not in space
        with pytest.raises(UsageError, match=message):
            space.validate(subnet)
    with pytest.raises(UsageError, match="needs 3 entries in mlp_ratio"):
        Subnet(24, 3, (2, 2, 2), (2, 2))
    with pytest.raises(UsageError, match="must be positive"):
        Subnet(24, 3, (2, 0, 2), (2, 2, 2))
    with pytest.raises(UsageError, match="Group 3 does not exist"):
        space.sample(random.Random(0), groups=[3])
    with pytest.raises(UsageError, match="Group -1 does not exist"):
        space.sample(random.Random(0), groups=[-1])


def test_subnets_by_number_and_by_list():
    space = load_space("digits")
    assert space.subnet(embed_dim=24, depth=3, num_heads=2, mlp_ratio=2) == space.smallest()
    mixed = space.subnet(embed_dim=36, depth=4, num_heads=[2, 3, 2, 3], mlp_ratio=3)
    assert mixed == Subnet(36, 4, (2, 3, 2, 3), (3, 3, 3, 3))
    for choices, message in [
        ((24, 6, 2, 2), "depth=6 is outside space 'digits', which offers 3, 4, 5"),
        (
            (24, 3, [2, 2], 2),
            "num_heads of a subnet of 'digits' needs one number, or 3 of them; 2 were given",
        ),
        ((24, 3, 2, "2"), "mlp_ratio of a subnet of 'digits' is a number or a list, not '2'"),
        ((24, 3, 2, [2, 2, 9]), "mlp_ratio=9 of layer 2 is outside"),
    ]:
        with pytest.raises(UsageError, match=message):
            space.subnet(*choices)


def test_reading_checks_the_space():
    space = load_space("digits")
    for read, given in (
        (space.parse, "d25-h2,2,2-r2,2,2"),
        (space.subnet_from_json, Subnet(25, 3, (2,) * 3, (2,) * 3).to_json()),
    ):
        with pytest.raises(UsageError, match="embed_dim=25 is outside space 'digits'"):
            read(given)


def test_only_parents_that_fit_are_crossed():
    space = load_space("digits")
    assert space.can_cross(space.smallest([0]), space.smallest([2]))
    assert not space.can_cross(space.smallest(), space.largest())
    ofa = load_space("ofa-mobilenetv3")
    assert ofa.can_cross(ofa.smallest(), ofa.largest())
