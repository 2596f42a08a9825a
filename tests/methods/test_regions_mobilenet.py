"""Regions of the convolutional family: kernels, their matrices and BatchNorm besides nested boxes."""

from __future__ import annotations

import math
import random

import pytest
import torch

import growtas
from growtas.methods.regions import initialise, new_region, used, used_by
from growtas.spaces.mobilenet import MobileNetSpace

SPACE = MobileNetSpace(
    "small",
    kernel=(3, 5, 7),
    expand=(2, 3, 4),
    depth=(1, 2),
    stem_width=8,
    first_width=8,
    widths=(16, 24),
    strides=(1, 2),
    activations=("relu", "h-swish"),
    squeeze_excite=(False, True),
    final_width=32,
    feature_width=32,
    image_size=8,
    in_channels=1,
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return growtas.Supernet(SPACE, num_classes=5)


def subnets(groups, count=30):
    rng = random.Random(0)
    return [SPACE.sample(rng, groups) for _ in range(count)]


@pytest.mark.parametrize("groups", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_used_region_is_the_union_over_many_subnets(net, groups):
    found, union = used(net, groups), used_by(net, subnets(groups))
    assert all(torch.equal(found[name], union[name]) for name in found)
    matrices = [name for name in found if name.endswith("matrix")]
    assert matrices and all(found[name].all() for name in matrices)


@pytest.mark.parametrize("groups", [(0,), (0, 1)])
def test_gradients_stay_inside_the_used_region(net, groups):
    found = used(net, groups)
    for subnet in subnets(groups, 10):
        net.zero_grad()
        net(torch.randn(4, 1, 8, 8), subnet).square().sum().backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                assert not (parameter.grad != 0)[~found[name]].any(), name
    assert any((~mask).any() for mask in found.values())


@pytest.mark.parametrize("how", ["standard", "near_zero", "pretrained"])
def test_initialisation_changes_the_new_region_only(net, how):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.3, 0.5)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    new = new_region(net, (0,), (0, 1, 2))
    assert initialise(net, new, used(net, (0,)), how, 0, 1) == sum(int(mask.sum()) for mask in new.values())
    norms = {
        id(parameter): value
        for module in net.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for parameter, value in ((module.weight, 1.0), (module.bias, 0.0))
    }
    seen = set()
    for name, parameter in net.named_parameters():
        mask = new.get(name, torch.zeros(parameter.shape, dtype=torch.bool))
        values = parameter[mask]
        assert torch.equal(parameter[~mask], before[name][~mask]) and (values != before[name][mask]).all(), (
            name
        )
        if id(parameter) in norms and mask.any():
            assert (values == norms[id(parameter)]).all(), name
            seen.add("norm")
        elif how == "standard" and parameter.ndim == 4 and mask.sum() > 300:
            out, _, *kernel = parameter.shape  # also of depthwise convolutions, as OFA counts
            assert values.std().item() == pytest.approx(math.sqrt(2 / (out * math.prod(kernel))), rel=0.15)
            seen.add("depthwise" if parameter.shape[1] == 1 else "pointwise")
    assert seen == ({"norm", "depthwise", "pointwise"} if how == "standard" else {"norm"})
