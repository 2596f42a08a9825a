"""Gradients of pairs of subnets on the weights they share, against plain slices in double precision."""

from __future__ import annotations

import itertools
import random
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from growtas.methods import TrainingContext
from growtas.methods.interference import (
    between_groups,
    distinct_subnets,
    layer_names,
    measure,
    measure_each,
)
from growtas.space import SearchSpace, load_space
from growtas.supernet import Supernet

TINY = SearchSpace(
    "test",
    embed_dim=(8, 12, 16),
    mlp_ratio=(1, 2),
    num_heads=(1, 2),
    depth=(1, 2, 3),
    image_size=8,
    patch_size=4,
    in_channels=1,
    head_dim=4,
    max_relative_position=1,
)
CLASSES = 5


def make(space, dtype=torch.float64, **settings):
    """A supernet in training mode with weights that give every tensor a gradient, and images with labels."""
    torch.manual_seed(0)
    net = Supernet(space, CLASSES, **settings).train().to(dtype)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    images = torch.randn(6, space.in_channels, space.image_size, space.image_size, dtype=dtype)
    return net, images, torch.arange(6) % CLASSES


@pytest.fixture(scope="module")
def tiny():
    return make(TINY)


@pytest.fixture(scope="module")
def convolutional():
    return make(load_space("digits-mobilenet"), torch.float32)


def plain(net, pair, images, labels, smoothing):
    """The gradients of both subnets, cut to what both use, by layer: one vector each.

    Of the weights themselves, cut out as a small network and differentiated there.
    """
    gradients = []
    for subnet in pair:
        small = type(net)(net.dims.of_subnet(subnet), CLASSES).double()
        small.load_state_dict(net.slice_state_dict(subnet))
        F.cross_entropy(small(images), labels, label_smoothing=smoothing).backward()
        gradients.append({name: parameter.grad for name, parameter in small.named_parameters()})
    names, layers = layer_names(net), {}
    for name in gradients[0].keys() & gradients[1].keys():
        shapes = [gradient[name].shape for gradient in gradients]
        box = tuple(slice(min(sizes)) for sizes in zip(*shapes, strict=True))
        for gradient, parts in zip(gradients, layers.setdefault(names[name], ([], [])), strict=True):
            parts.append(gradient[name][box].flatten())
    return {layer: [torch.cat(parts) for parts in both] for layer, both in layers.items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_against_slices_of_small_networks(tiny, smoothing):
    net, images, labels = tiny
    rng = random.Random(1)
    pairs = [(TINY.sample(rng, (0,)), TINY.sample(rng, (1, 2))) for _ in range(4)]
    wholes, ratios, layers = [], [], {}
    for pair in pairs:
        own = plain(net, pair, images, labels, smoothing)
        for layer, (first, second) in own.items():
            layers.setdefault(layer, []).append(F.cosine_similarity(first, second, 0).item())
        first, second = (torch.cat([both[i] for both in own.values()]) for i in (0, 1))
        wholes.append(F.cosine_similarity(first, second, 0).item())
        ratios.append((second.norm() / first.norm()).log().item())
    found = measure(net, pairs, images, labels, smoothing=smoothing)
    assert found.cosine == pytest.approx(sum(wholes) / 4, abs=1e-9)
    assert found.norm_ratio == pytest.approx(torch.tensor(ratios).mean().exp().item(), rel=1e-6)
    assert found.negative == sum(cosine < 0 for cosine in wholes) / 4
    assert list(found.layers) == ["embedding", "blocks.0", "blocks.1", "blocks.2", "head"]
    for layer, cosine in found.layers.items():
        values = layers.get(layer)
        assert cosine is None if values is None else cosine == pytest.approx(sum(values) / len(values))
    assert (found.pairs, found.images) == (4, 6)


def test_a_subnet_agrees_with_itself(tiny):
    net, images, labels = tiny
    for subnet in (TINY.smallest(), TINY.largest()):
        found = measure(net, [(subnet, subnet)], images, labels)
        assert found.cosine == pytest.approx(1) and found.norm_ratio == pytest.approx(1)
        assert found.negative == 0


def test_layers_that_no_pair_shares_have_no_cosine(tiny):
    net, images, labels = tiny
    found = measure(net, [(TINY.smallest(), TINY.largest())], images, labels)
    assert found.layers["blocks.0"] is not None and found.layers["head"] is not None
    assert found.layers["blocks.1"] is None and found.layers["blocks.2"] is None


def test_sets_are_measured_as_if_alone(tiny):
    net, images, labels = tiny
    rng = random.Random(2)
    a, b, c = (TINY.sample(rng) for _ in range(3))
    both = measure_each(net, {"first": [(a, b)], "second": [(c, a), (b, c)], "none": []}, images, labels)
    assert both["first"].cosine == pytest.approx(measure(net, [(a, b)], images, labels).cosine, abs=1e-12)
    alone = measure(net, [(c, a), (b, c)], images, labels)
    assert both["second"].cosine == pytest.approx(alone.cosine, abs=1e-12)
    assert both["none"].cosine is None and both["none"].pairs == 0
    none = measure(net, [], images, labels)
    assert none.cosine is None and none.layers == both["none"].layers == dict.fromkeys(both["first"].layers)


def test_layers_of_a_convolutional_network_in_order(convolutional):
    net, images, labels = convolutional
    space = net.space
    found = measure(net, [(space.smallest(), space.largest())], images, labels)
    blocks = [f"stages.{stage}.{index}" for stage in range(3) for index in range(3)]
    assert list(found.layers) == ["embedding", *blocks, "head"]
    assert {layer for layer, cosine in found.layers.items() if cosine is None} == {
        f"stages.{stage}.{index}" for stage in range(3) for index in (1, 2)
    }


@pytest.mark.parametrize("family", ["tiny", "convolutional"])
def test_nothing_is_touched(family, request):
    net, images, labels = request.getfixturevalue(family)
    space = net.space
    net.zero_grad()
    F.cross_entropy(net(images, space.largest()), labels).backward()
    net.eval()
    next(net.children()).train()  # modes that are mixed stay so
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    states = random.getstate(), torch.get_rng_state()
    measure(net, [(space.smallest(), space.largest())], images, labels)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    now = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert now.keys() == gradients.keys() and all(torch.equal(now[k], gradients[k]) for k in now)


def test_batch_statistics_not_the_running_ones(convolutional):
    net, images, labels = convolutional
    pair = [(net.space.smallest(), net.space.largest())]
    before = measure(net, pair, images, labels)
    for norm in net.norms().values():
        norm.running_mean += 3
    assert measure(net, pair, images, labels) == before


def test_drop_path_and_dropout_are_off():
    net, images, labels = make(TINY, drop_path_rate=0.5)
    pair = [(TINY.largest(), TINY.largest())]
    torch.manual_seed(1)
    first = measure(net, pair, images, labels)
    assert first.cosine == pytest.approx(1) and measure(net, pair, images, labels) == first


def test_pairs_without_finite_gradients_are_left_out():
    net, images, labels = make(TINY)
    with torch.no_grad():
        net.norm.weight[-1] = torch.inf  # only the widest subnets use it
    rng = random.Random(3)
    small, middle, wide = (TINY.sample(rng, (group,)) for group in (0, 1, 2))
    found = measure(net, [(small, middle), (small, wide)], images, labels)
    assert found.pairs == 1 and found.cosine == measure(net, [(small, middle)], images, labels).cosine


def test_subnets_are_distinct_and_as_many_as_there_are():
    rng = random.Random(0)
    drawn = distinct_subnets(TINY, (0,), 5, rng)
    assert len(set(drawn)) == 5 and {TINY.group_of(subnet) for subnet in drawn} == {0}
    one = SearchSpace("one", embed_dim=(8, 16), mlp_ratio=(1,), num_heads=(1,), depth=(1,), head_dim=4)
    assert distinct_subnets(one, (1,), 5, rng) == (one.largest(),)


def test_groups_are_a_function_of_seed_and_key(tiny):
    net, images, labels = tiny
    asked = []

    def draw_images(split, count, *key):
        asked.append((split, count, key))
        return images[:count], labels[:count]

    training = TrainingContext(net, None, torch.device("cpu"), draw_images, nullcontext)

    def between(seed, key):
        return between_groups(training, (0,), (1, 2), seed, key, subnets=3, images=4)

    first = between(0, 7)
    assert asked == [("train", 4, ("interference", 7))]
    assert first["between"].pairs == 9 and first["control"].pairs == 3
    assert first == between(0, 7)
    others = [between(1, 7), between(0, 8)]
    values = [first["between"].cosine, *(each["between"].cosine for each in others)]
    assert all(abs(a - b) > 1e-6 for a, b in itertools.combinations(values, 2))
