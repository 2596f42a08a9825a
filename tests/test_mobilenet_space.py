"""MobileNetV3 spaces: geometry, counts, groups, sampling, normal form, bad input."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from growtas.errors import UsageError
from growtas.space import load_space, space_from_dict
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.spaces.mobilenet_block import make_divisible
from growtas.spaces.mobilenet_subnet import MobileNetSubnet
from growtas.subnet import parse_subnet, subnet_from_json

OFA = load_space("ofa-mobilenetv3")
# two stages of one or two blocks, small enough to list
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


def test_counts():
    assert OFA.count() == 7371**5
    assert OFA.count([0]) == (3**2 + 3**3 + 3**4) ** 5
    assert sum(OFA.count([group]) for group in range(3)) == OFA.count()
    assert OFA.groups == (3, 4, 6) and OFA.group_axis == "expand"


def test_counts_equal_enumeration():
    """Every subnet is reached from the smallest by steps in one choice."""
    found, edge = {SMALL.smallest()}, [SMALL.smallest()]
    while edge:
        steps = {subnet for old in edge for subnet in SMALL.neighbours(old)}
        edge = list(steps - found)
        found |= steps
    assert len(found) == SMALL.count() == (4 + 16) ** 2
    for group in (0, 1):
        assert sum(SMALL.group_of(subnet) == group for subnet in found) == SMALL.count([group])


def test_geometry_of_ofa():
    blocks = OFA.blocks(OFA.largest())
    assert len(blocks) == 20 and all(block.kernel == 7 for block in blocks)
    first = blocks[0]
    assert (first.in_width, first.mid_width, first.out_width, first.stride) == (16, 96, 24, 2)
    assert first.squeeze_width == 0 and first.activation == "relu" and not first.residual
    assert [block.stride for block in blocks if block.index == 0] == [2, 2, 2, 1, 2]
    assert all(block.residual for block in blocks if block.index)
    last = blocks[-1]
    assert (last.stage, last.index, last.in_width, last.mid_width, last.squeeze_width) == (
        4,
        3,
        160,
        960,
        240,
    )
    assert [b.squeeze_width for b in OFA.blocks(OFA.smallest())] == [0, 0, 24, 32, 0, 0, 64, 88, 88, 120]
    assert [OFA.mid_width(3, 1, expand) for expand in (3, 4, 6)] == [336, 448, 672]


@pytest.mark.parametrize(("value", "width"), [(3, 8), (18, 24), (20, 24), (84, 88), (60, 64), (120, 120)])
def test_widths_round_as_published(value, width):
    """18 lies nearer to 16, but that is more than a tenth below."""
    assert make_divisible(value) == width


def test_subnets_by_number_and_by_list():
    whole = OFA.subnet(kernel=7, expand=6, depth=4)
    assert whole == OFA.largest() == OFA.subnet([7] * 20, [6] * 20, [4] * 5)
    mixed = OFA.subnet(kernel=5, expand=4, depth=[2, 3, 4, 2, 2])
    assert mixed.kernel == (5, 5, 3, 3, 5, 5, 5, 3, 5, 5, 5, 5, 5, 5, 3, 3, 5, 5, 3, 3)
    assert mixed.active == (0, 1, 4, 5, 6, 8, 9, 10, 11, 12, 13, 16, 17)
    assert len(OFA.blocks(mixed)) == 13 and OFA.group_of(mixed) == 1


def test_equal_networks_are_equal_values():
    inactive = [3, 3, 7, 5] * 5  # the depth leaves the last two of each stage out
    assert OFA.subnet(inactive, 3, 2) == OFA.smallest()
    loose = MobileNetSubnet(tuple(inactive), (3,) * 20, (2,) * 5)
    assert loose not in OFA and OFA.parse(str(loose)) == OFA.smallest()
    assert OFA.subnet_from_json(loose.to_json()) == OFA.smallest()
    with pytest.raises(UsageError, match="blocks that its depth leaves out"):
        OFA.validate(loose)


def test_smallest_and_largest_of_groups():
    for group, expand in enumerate(OFA.expand):
        small, large = OFA.smallest([group]), OFA.largest([group])
        assert OFA.group_of(small) == OFA.group_of(large) == group
        assert large == OFA.subnet(7, expand, 4) and sorted(small.expand)[:-1] == [3] * 19
    assert OFA.smallest((1, 2)) == OFA.smallest([1]) and OFA.largest((0, 1)) == OFA.largest([1])


def test_sampling_is_uniform_over_groups():
    rng = random.Random(0)
    groups = Counter(OFA.group_of(OFA.sample(rng, groups=(0, 2))) for _ in range(600))
    assert set(groups) == {0, 2} and abs(groups[0] - 300) < 62  # five standard deviations
    drawn = [OFA.sample(rng, [2]) for _ in range(600)]
    for values, choices, least in (
        ([n.depth[1] for n in drawn], OFA.depth, 200),
        ([n.kernel[4] for n in drawn], OFA.kernel, 200),
        ([n.expand[4] for n in drawn], OFA.expand, 200),
    ):
        assert all(abs(Counter(values)[choice] - least) < 58 for choice in choices)


def test_sampling_within_a_small_group_is_uniform_given_the_depths():
    """Drawing again leaves every choice that the group allows as likely as before."""
    rng = random.Random(1)
    drawn = Counter(n for n in (SMALL.sample(rng, [1]) for _ in range(6000)) if n.depth == (1, 1))
    assert len(drawn) == 4 * 3  # kernels free, not both expands at 2
    mean = drawn.total() / 12
    assert all(abs(count - mean) < 5 * mean**0.5 for count in drawn.values())


def test_mutation_rates():
    rng, parent = random.Random(3), OFA.subnet(5, 4, 4)
    children = [OFA.mutate(parent, rng, p_depth=0, p_layer=0.3) for _ in range(2000)]
    assert all(child.depth == parent.depth for child in children)
    assert sum(child.kernel[7] != 5 for child in children) / 2000 == pytest.approx(0.2, abs=0.045)
    assert sum(child.expand[7] != 4 for child in children) / 2000 == pytest.approx(0.2, abs=0.045)
    children = [OFA.mutate(OFA.smallest(), rng, p_depth=1, p_layer=0) for _ in range(900)]
    grown = [child for child in children if child.depth[0] == 4]
    assert len(grown) == pytest.approx(300, abs=70)
    assert all(Counter(child.kernel[3] for child in grown)[kernel] > 60 for kernel in OFA.kernel)
    assert all(child.kernel[:2] == (3, 3) for child in children)


def test_crossover_takes_blocks_from_the_parent_that_has_them():
    rng = random.Random(4)
    short, long = OFA.subnet(3, 3, 2), OFA.subnet(7, 6, 4)
    for _ in range(50):
        child = OFA.crossover(short, long, rng)
        for stage, depth in enumerate(child.depth):
            assert depth in (2, 4)
            if depth == 4:
                assert child.kernel[stage * 4 + 2 : stage * 4 + 4] == (7, 7)
    first = Counter(OFA.crossover(short, long, rng).kernel[0] for _ in range(400))
    assert abs(first[7] - 200) < 50


def test_neighbours_differ_in_one_choice():
    subnet = OFA.subnet(kernel=5, expand=[6] * 4 + [4] * 16, depth=[2, 3, 4, 2, 2])
    found = list(OFA.neighbours(subnet))
    assert len(found) == len(set(found)) and all(n in OFA and n != subnet for n in found)
    # depths: one way at the ends, two in the middle; kernels both ways; expand 6 one way, 4 both ways
    assert len(found) == 6 + 2 * 13 + 2 + 2 * 11
    grown = next(n for n in found if n.depth == (3, 3, 4, 2, 2))
    assert grown.kernel[2] == 5 and grown.expand[2] == 6
    subnet = OFA.subnet(kernel=[3, 7] * 10, expand=[3, 6] * 10, depth=2)
    grown = next(n for n in OFA.neighbours(subnet) if n.depth == (3, 2, 2, 2, 2))
    assert grown.kernel[2] == 7 and grown.expand[2] == 6  # as the block before it, not the first one


def test_readers_tell_the_families_apart():
    subnet, vit = OFA.largest(), load_space("digits").smallest()
    for net in (subnet, vit):
        assert parse_subnet(str(net)) == subnet_from_json(net.to_json()) == net
    with pytest.raises(UsageError, match="which holds MobileNetV3 networks"):
        OFA.validate(vit)
    with pytest.raises(UsageError, match="which holds vision transformers"):
        load_space("digits").validate(subnet)
    assert vit not in OFA and subnet not in load_space("digits")


def test_yaml_of_the_user(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "family: mobilenetv3\nkernel: [3]\nexpand: [2, 3]\ndepth: [1, 2, 3]\nwidths: [8, 12]\n"
        "strides: [1, 2]\nactivations: [relu, h-swish]\nsqueeze_excite: [false, true]\nimage_size: 32\n"
    )
    space = load_space(path)
    assert space.name == "mine" and space.stages == 2 and len(space.largest().kernel) == 6
    assert space_from_dict(space.to_dict()) == space
    path.write_text(path.read_text().replace("mobilenetv3", "mobilenet"))
    with pytest.raises(UsageError, match="no family 'mobilenet' of spaces. Did you mean 'mobilenetv3'"):
        load_space(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": [3, 4]}, "kernel of space 'small' must hold odd numbers"),
        ({"expand": []}, "expand of space 'small' must be a list of choices"),
        ({"expand": [1.5]}, "must hold whole numbers"),
        ({"depth": [2, 1]}, "must ascend without repeats"),
        ({"widths": [8, 0]}, "widths of space 'small' must be a positive whole number"),
        ({"strides": [1]}, "strides of space 'small' has 1 entries for 2 stages"),
        ({"activations": ["relu", "hswish"]}, "cannot hold 'hswish'. Did you mean 'h-swish'"),
        ({"squeeze_excite": [0, 1]}, "true or false per stage"),
        ({"widths": 8}, "widths of space 'small' must be a list with one entry per stage"),
        ({"widths": [2, 8]}, "expand=2 and expand=4 of space 'small' both make 8 channels of 2"),
        ({"dropout": "some"}, "dropout='some' of space 'small'"),
        ({"dropout": 1}, "dropout=1 of space 'small' must lie from 0 to below 1"),
        ({"width": [8]}, "no field 'width'. Did you mean 'widths'"),
    ],
)
def test_bad_spaces_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        space_from_dict({**SMALL.to_dict(), **change})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            (9, 3, 2),
            "kernel=9 of block 0 of stage 0 is outside space 'ofa-mobilenetv3', which offers 3, 5, 7",
        ),
        ((3, [3] * 19 + [5], 2), "expand=5 of block 3 of stage 4"),
        ((3, 3, [2, 2, 2, 2, 1]), "depth=1 of stage 4"),
        ((3, [3] * 5, 2), "expand of a subnet of 'ofa-mobilenetv3' needs one number, or 20 of them; 5 were"),
        (("3", 3, 2), "is a number or a list, not '3'"),
        ((3, 3, 3.5), "positive whole numbers"),
    ],
)
def test_bad_choices_are_refused(choices, message):
    with pytest.raises(UsageError, match=message):
        OFA.subnet(*choices)


@pytest.mark.parametrize("text", ["", "k3", "k3-e3", "k3,3-e3-d1", "k3-e3-d2", "kx-e3-d1", "k3-e3-d1-r2"])
def test_bad_text(text):
    with pytest.raises(UsageError):
        MobileNetSubnet.parse(text)


@pytest.mark.parametrize("data", ["{", "[]", {"kernel": [3]}, {"kernel": [3], "expand": 3, "depth": [1]}])
def test_bad_json(data):
    with pytest.raises(UsageError):
        MobileNetSubnet.from_json(data)
