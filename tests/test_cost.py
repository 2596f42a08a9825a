"""Exact parameters and MACs, and the published figure: to the unit."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import growtas
from growtas import cost
from growtas.errors import UsageError
from growtas.space import MobileNetSpace, SearchSpace, Subnet, load_space
from growtas.spaces.mobilenet_subnet import MobileNetSubnet


def searched(embed_dim: int, ratios: str, heads: str) -> Subnet:
    heads = tuple(int(h) for h in heads.split())
    return Subnet(embed_dim, len(heads), heads, tuple(float(r) for r in ratios.split()))


# AutoFormer's released searched subnets: architecture, parameters, published complexity, exact MACs (in G).
SEARCHED = {
    "autoformer-tiny-search": (
        searched(192, "3.5 3.5 3 3.5 3 3 4 4 3.5 4 3.5 4 3.5", "3 3 3 3 3 3 3 3 3 3 4 3 3"),
        5_867_944,
        1.344,
        1.482,
    ),
    "autoformer-small": (
        searched(384, "3 3.5 3 3.5 4 4 4 4 4 4 4 3.5 4", "6 6 5 7 5 5 5 6 6 7 7 6 7"),
        22_891_432,
        4.892,
        5.161,
    ),
    "autoformer-base": (
        searched(576, "3.5 3.5 4 3.5 4 3.5 3.5 3 4 4 3 4 3 3.5", "9 9 9 9 9 10 9 9 10 9 10 9 9 10"),
        53_691_688,
        11.237,
        11.691,
    ),
}


@pytest.mark.parametrize("name", SEARCHED)
def test_searched_subnets(name):
    subnet, parameters, flops, macs = SEARCHED[name]
    space = load_space(name)
    assert subnet in space
    assert cost.parameters(subnet, space) == parameters
    assert round(cost.published_flops(subnet, space) / 1e9, 3) == flops
    assert round(cost.macs(subnet, space) / 1e9, 3) == macs


def test_stored_prenas_values():
    """Two parameter counts stored with the PreNAS code: one of its d192 L12 subnets, and T's largest."""
    space = load_space("autoformer-tiny")
    subnet = Subnet(192, 12, (3,) * 6 + (4,) * 6, (3.5,) * 3 + (4,) * 9)
    assert cost.parameters(subnet, space) == 5_994_760
    assert cost.parameters(space.largest(), space) == 10_517_272


RANGES = {
    "autoformer-tiny": (5_366_056, 10_517_272),
    "autoformer-small": (13_057_320, 34_790_440),
    "autoformer-base": (41_687_896, 76_882_264),
    "autoformer-base-search": (39_792_856, 76_882_264),
}
GROUPS = {  # in millions
    "autoformer-tiny": [(5.37, 7.41), (6.46, 8.90), (7.65, 10.52)],
    "autoformer-small": [(13.06, 20.30), (17.42, 27.09), (22.37, 34.79)],
    "autoformer-base-search": [(39.79, 58.59), (45.72, 67.44), (52.04, 76.88)],
}
SUPERNETS = {"autoformer-tiny": 11_669_224, "autoformer-small": 34_790_440, "autoformer-base": 80_160_360}


@pytest.mark.parametrize("name", RANGES)
def test_smallest_and_largest(name):
    space = load_space(name)
    assert cost.parameter_range(space) == RANGES[name]
    for group, (low, high) in enumerate(GROUPS.get(name, [])):
        smallest, largest = cost.parameter_range(space, groups=[group])
        assert (round(smallest / 1e6, 2), round(largest / 1e6, 2)) == (low, high)


@pytest.mark.parametrize("name", SUPERNETS)
def test_supernets(name):
    with torch.device("meta"):
        net = growtas.Supernet(name)
    assert sum(p.numel() for p in net.parameters()) == SUPERNETS[name]


def test_published_code_on_the_golden_space():
    spec = json.loads((Path(__file__).parent / "data" / "autoformer_small.json").read_text())
    space = SearchSpace("golden", (96, 112, 128), (3, 3.5, 4), (1, 2), (1, 2), image_size=32, patch_size=8)
    for case in spec["cases"]:
        subnet = Subnet.from_json(case["subnet"])
        assert cost.parameters(subnet, space, 10) == case["params"]
        assert cost.published_flops(subnet, space, 10) == case["complexity"]


def test_ofa_at_its_ends():
    """7.66 M and 3.41 M parameters, 566 M and 121 M MACs at 224 pixels, as published."""
    space = load_space("ofa-mobilenetv3")
    assert cost.parameter_range(space) == (3_410_792, 7_664_760)
    assert cost.macs_range(space) == (121_278_672, 566_170_656)
    assert cost.macs(space.largest(), space, image_size=128) < cost.macs(space.largest(), space) / 3
    with pytest.raises(UsageError, match="macs is the exact count"):
        cost.published_flops(space.largest(), space)


def test_ofa_against_the_published_code():
    """Parameters that the published code counts, running statistics and kernel matrices left aside."""
    cases = [
        (3, 3, 2, 2_142_602),
        (7, 6, 4, 6_396_570),
        (
            [7, 5, 7, 5, 7, 7, 7, 7, 3, 5, 3, 7, 3, 3, 3, 5, 5, 3, 5, 7],
            [3, 6, 3, 3, 6, 3, 4, 4, 3, 4, 3, 3, 3, 6, 6, 4, 3, 3, 3, 3],
            [2, 2, 2, 2, 3],
            2_730_154,
        ),
        (
            [5, 3, 7, 7, 7, 3, 3, 7, 3, 5, 5, 3, 5, 5, 3, 3, 5, 3, 5, 5],
            [6, 6, 3, 6, 6, 6, 4, 3, 4, 4, 4, 4, 6, 4, 3, 4, 4, 6, 3, 3],
            [3, 2, 4, 3, 3],
            3_578_898,
        ),
    ]
    space = load_space("ofa-mobilenetv3")
    for kernel, expand, depth, parameters in cases:
        assert cost.parameters(space.subnet(kernel, expand, depth), space, 10) == parameters


@pytest.mark.parametrize("measure", [cost.parameters, cost.macs])
def test_no_subnet_of_a_group_is_cheaper(measure):
    """Which block is the widest matters: in a listed space the ends of each group are those of the list."""
    two_stages = {"widths": (24, 40), "strides": (2, 2), "squeeze_excite": (False, True)}
    two_stages["activations"] = ("relu", "h-swish")
    space = MobileNetSpace("two", (3,), (2, 4), (1, 2), **two_stages)
    rng = random.Random(0)
    every = {space.sample(rng) for _ in range(2000)}
    assert len(every) == space.count() == 36
    of_range = cost.parameter_range if measure is cost.parameters else cost.macs_range
    for group in (0, 1):
        costs = [measure(subnet, space) for subnet in every if space.group_of(subnet) == group]
        assert of_range(space, groups=[group]) == (min(costs), max(costs))


def test_mobilenet_costs_equal_a_plain_network():
    """The formulas against modules put together by the geometry alone, at odd sizes."""
    space, rng = load_space("ofa-mobilenetv3"), random.Random(5)
    for size in (224, (52, 36)):
        subnet = space.sample(rng)
        net = plain_mobilenet(space, subnet, num_classes=9).eval()
        assert sum(p.numel() for p in net.parameters()) == cost.parameters(subnet, space, 9)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.randn(1, 3, *(size if isinstance(size, tuple) else (size, size))))
        assert counter.get_total_flops() == 2 * cost.macs(subnet, space, 9, size)


def plain_mobilenet(space: MobileNetSpace, subnet: MobileNetSubnet, num_classes: int) -> nn.Module:
    def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Module:
        padding = kernel // 2
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    stem, first = space.stem_width, space.first_width
    layers = [conv(space.in_channels, stem, 3, space.stem_stride), conv(stem, stem, 3, groups=stem)]
    layers.append(conv(stem, first))
    for b in space.blocks(subnet):
        layers += [conv(b.in_width, b.mid_width)]
        layers += [conv(b.mid_width, b.mid_width, b.kernel, b.stride, groups=b.mid_width)]
        if b.squeeze_width:
            layers.append(SqueezeExcite(b.mid_width, b.squeeze_width))
        layers.append(conv(b.mid_width, b.out_width))
    layers += [conv(space.widths[-1], space.final_width), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers.append(nn.Linear(space.final_width, space.feature_width, bias=False))
    return nn.Sequential(*layers, nn.Linear(space.feature_width, num_classes))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeeze_width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, squeeze_width, 1), nn.Conv2d(squeeze_width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)))


def test_macs_at_another_size():
    space = load_space("autoformer-tiny")
    larger = dataclasses.replace(space, image_size=256)
    largest = larger.largest()
    assert cost.macs(largest, space, image_size=256) == cost.macs(largest, larger)
    assert cost.macs(largest, space, image_size=(512, 128)) == cost.macs(largest, larger)  # as many patches
    with pytest.raises(UsageError, match="130"):
        cost.macs(largest, space, image_size=(128, 130))


@pytest.mark.parametrize("name", ["digits", "autoformer-tiny"])
def test_formulas_equal_the_extracted_network(name):
    space, rng = load_space(name), random.Random(0)
    with torch.device("meta"):
        net = growtas.Supernet(space, num_classes=7)
        for _ in range(3):
            subnet = space.sample(rng)
            shapes = net.slice_state_dict(subnet)
            assert sum(value.numel() for value in shapes.values()) == cost.parameters(subnet, space, 7)


def test_macs_equal_the_counted_products():
    """All products but the relative ones, which growtas computes in a thinner form, as torch counts them."""
    space = load_space("digits")
    net, subnet = growtas.Supernet(space, num_classes=10), space.largest()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(1, 1, 8, 8), subnet)
    q = sum(subnet.num_heads) * space.head_dim
    dense_relative = 2 * space.num_tokens**2 * q
    thin_relative = 2 * space.num_tokens * q * (2 * space.grid_size + 1)
    expected = cost.macs(subnet, space, 10) - dense_relative + thin_relative
    assert counter.get_total_flops() == 2 * expected
