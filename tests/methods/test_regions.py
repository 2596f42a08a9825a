"""The region a stage newly uses, against what gradients and slices say, and its initialisation."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from thinning import thinned

from growtas.errors import UsageError
from growtas.methods import MethodSettings, TrainingContext, create_method
from growtas.methods.regions import initialise, new_region, used, used_by
from growtas.space import SearchSpace, Subnet, load_space
from growtas.supernet import Supernet

TINY = SearchSpace(
    "test",
    embed_dim=(8, 12, 16),
    mlp_ratio=(1.5, 4),
    num_heads=(1, 3),
    depth=(1, 2),
    super_embed_dim=20,
    super_num_heads=4,
    super_depth=3,
    image_size=8,
    patch_size=4,
    in_channels=1,
    head_dim=4,
    max_relative_position=1,
)


def every_subnet(space, groups):
    for group in groups:
        for depth in space.depth:
            for heads in itertools.product(space.num_heads, repeat=depth):
                for ratios in itertools.product(space.mlp_ratio, repeat=depth):
                    yield Subnet(space.groups[group], depth, heads, ratios)


def touched(net, subnets):
    """Where the gradient of some output is not zero for one of the subnets."""
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in net.named_parameters()}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)  # larger ones saturate GELU, and its gradient is exactly 0
    for subnet in subnets:
        images = torch.randn(2, TINY.in_channels, TINY.image_size, TINY.image_size)
        net.zero_grad()
        net(images, subnet).mul(torch.randn(2, net.num_classes)).sum().backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                masks[name] |= parameter.grad != 0
    return masks


def without_key_bias(masks):
    """Softmax ignores the part of the logits that is the same for all keys: gradients of those are noise."""
    return {n: m for n, m in masks.items() if "qkv.bias" not in n and "key_table" not in n}


GROUPS_OF = list(itertools.product([(0,), (0, 1), (1,), (0, 1, 2)], ["interleaved", "published"]))


@pytest.mark.parametrize(("groups", "qkv_bias"), thinned(GROUPS_OF, fast=(0, 3, 4, 6), several=True))
def test_used_region_is_what_gradients_reach(groups, qkv_bias):
    net = Supernet(TINY, num_classes=5, qkv_bias=qkv_bias)
    expected, found = touched(net, every_subnet(TINY, groups)), used(net, groups)
    assert found.keys() == expected.keys()
    for name, mask in without_key_bias(found).items():
        assert torch.equal(mask, expected[name]), name
    for name in found:  # nothing outside the region is ever touched
        assert not (expected[name] & ~found[name]).any(), name


def test_used_region_is_the_union_of_slices():
    net = Supernet(TINY, num_classes=5)
    rng = random.Random(1)
    for _ in range(4):
        subnets = [TINY.sample(rng) for _ in range(3)]
        masks, slices = used_by(net, subnets), [net.slice_state_dict(subnet) for subnet in subnets]
        for name, parameter in net.named_parameters():
            union = torch.zeros_like(parameter, dtype=torch.bool)
            for sliced in slices:
                if name in sliced:
                    union[tuple(slice(n) for n in sliced[name].shape)] = True
            assert torch.equal(union, masks[name]), name


def test_new_region_of_autoformer_tiny():
    net = Supernet("autoformer-tiny")
    new = new_region(net, (0, 1), (0, 1, 2))

    def box(name, *ranges):
        expected = torch.zeros(net.get_parameter(name).shape, dtype=torch.bool)
        for place in ranges:
            expected[place] = True
        assert torch.equal(new[name], expected), name

    embed, hidden = slice(216, 240), slice(864, 960)
    box("patch_embed.proj.weight", embed)
    box("cls_token", (..., embed))
    box("pos_embed", (..., embed))
    box("head.weight", (..., embed))
    box("norm.weight", embed)
    for layer in range(14):
        block = f"blocks.{layer}."
        box(block + "norm1.weight", embed)
        box(block + "norm2.bias", embed)
        box(block + "attn.qkv.weight", (slice(0, 768), embed))
        box(block + "attn.proj.weight", (embed, slice(0, 256)))
        box(block + "attn.proj.bias", embed)
        box(block + "mlp.fc1.weight", (hidden, slice(0, 240)), (slice(0, 864), embed))
        box(block + "mlp.fc1.bias", hidden)
        box(block + "mlp.fc2.weight", (slice(0, 240), hidden), (embed, slice(0, 864)))
    assert not [name for name in new if "qkv.bias" in name or "table" in name or name == "head.bias"]


@pytest.mark.parametrize(("before", "after"), [((0,), (0, 1)), ((0, 1), (0, 1, 2)), ((0,), (2,))])
def test_new_region_is_the_difference_of_unions(before, after):
    net = Supernet(TINY, num_classes=5)
    first, second = used(net, before), used(net, after)
    new = new_region(net, before, after)
    for name, mask in second.items():
        difference = mask & ~first[name]
        assert torch.equal(new.get(name, torch.zeros_like(mask)), difference), name
        assert (name in new) == bool(difference.any())


def test_shrinking_stages_have_no_new_region():
    assert new_region(Supernet(TINY, num_classes=5), (0, 1, 2), (0, 1)) == {}


def trained_net(seed=0):
    torch.manual_seed(seed)
    net = Supernet(load_space("digits"), num_classes=10)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.3, 0.5)
    return net


def grown(how, seed=0, stage=1, **options):
    """A net before and after, and the new masks."""
    net = trained_net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    new = new_region(net, (0, 1), (0, 1, 2))
    count = initialise(net, new, used(net, (0, 1)), how, seed, stage, **options)
    assert count == sum(int(mask.sum()) for mask in new.values())
    return net, before, new


@pytest.mark.parametrize("how", ["keep", "standard", "near_zero", "pretrained"])
def test_initialisation_changes_the_new_region_only(how):
    net, before, new = grown(how)
    for name, parameter in net.named_parameters():
        mask = new.get(name, torch.zeros(parameter.shape, dtype=torch.bool))
        assert torch.equal(parameter[~mask], before[name][~mask]), name
        if how == "keep":
            assert torch.equal(parameter, before[name]), name
        elif mask.any():
            assert (parameter[mask] != before[name][mask]).all(), name


def big(net, new):
    """The matrices with enough new entries for statistics."""
    return [n for n, m in new.items() if m.ndim == 2 and m.sum() > 500]


def test_standard_is_the_initialisation_of_the_paper():
    net, _, new = grown("standard")
    names = big(net, new)
    assert names
    for name in names:
        values = net.get_parameter(name)[new[name]]
        assert abs(values.std() - 0.02) < 0.002 and abs(values.mean()) < 0.003, name
    assert (net.blocks[0].mlp.fc1.bias[new["blocks.0.mlp.fc1.bias"]] == 0).all()


def test_near_zero_is_small_and_never_zeroes_both_factors():
    net, _, new = grown("near_zero")
    for name in new:
        values = net.get_parameter(name)[new[name]]
        if values.ndim and net.get_parameter(name).ndim > 1:
            assert (values.abs() < 0.01).all() and (values != 0).all(), name


def test_pretrained_has_the_statistics_of_the_trained_block():
    net, before, new = grown("pretrained")
    trained = used(net, (0, 1))
    for name in big(net, new):
        values, known = net.get_parameter(name)[new[name]], before[name][trained[name]]
        assert abs(values.mean() - known.mean()) < 0.1 and abs(values.std() - known.std()) < 0.1, name


def test_pretrained_takes_the_deviation_of_the_trained_entries_themselves():
    """Two entries: the estimate for a population that they were drawn from would be larger by a root of 2."""
    net = torch.nn.Linear(2000, 2, bias=False)
    trained = torch.zeros(2, 2000, dtype=torch.bool)
    trained[0, :2] = True
    with torch.no_grad():
        net.weight[0, :2] = torch.tensor([2.0, 4.0])
    initialise(net, {"weight": ~trained}, {"weight": trained}, "pretrained", 0, 1)
    new = net.weight[~trained]
    assert abs(new.mean() - 3) < 0.1 and abs(new.std() - 1) < 0.1


@pytest.mark.parametrize("how", ["standard", "near_zero", "pretrained"])
def test_new_layer_norm_entries_are_one_and_zero(how):
    net, _, new = grown(how)
    norms = [name for name in new if "norm" in name]
    assert len(norms) == 2 * (2 * net.dims.depth + 1)
    for name in norms:
        assert (net.get_parameter(name)[new[name]] == (1 if name.endswith("weight") else 0)).all()


def test_layer_norm_entries_are_drawn_where_that_is_asked_for():
    net, before, new = grown("pretrained", draw_norms=True)
    trained = used(net, (0, 1))
    for kind in ("weight", "bias"):
        names = [name for name in new if "norm" in name and name.endswith(kind)]
        deviations = []
        for name in names:
            values, known = net.get_parameter(name)[new[name]], before[name][trained[name]]
            deviations += ((values - known.mean()) / known.std(correction=0)).tolist()
        assert len(deviations) > 50 and len(set(deviations)) == len(deviations)
        spread = torch.tensor(deviations)
        assert abs(spread.mean()) < 0.4 and 0.7 < spread.std() < 1.3, kind


@pytest.mark.parametrize("how", ["standard", "near_zero"])
def test_drawing_norms_is_for_pretrained_alone(how):
    first, second = (grown(how, draw_norms=asked)[0] for asked in (False, True))
    assert all(torch.equal(p, second.get_parameter(name)) for name, p in first.named_parameters())


@pytest.mark.parametrize("how", ["standard", "near_zero", "pretrained"])
def test_initialisation_depends_on_seed_and_stage_alone(how):
    def values(**given):
        torch.rand(3)  # the global generator is of no account
        net, _, _ = grown(how, **given)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(values(), values())
    assert not torch.equal(values(), values(seed=1))
    assert not torch.equal(values(), values(stage=2))


def test_unknown_initialisation():
    with pytest.raises(UsageError, match="Did you mean 'pretrained'"):
        initialise(trained_net(), {}, {}, "pretraind", 0, 1)


def test_growth_initialises_what_no_earlier_stage_used():
    space = load_space("digits")
    method = create_method(
        "growtas",
        MethodSettings(space, 10, 9, 4, stages="1/0/0,1,2", transition="3,6", new_region="standard"),
    )
    net = trained_net()
    training = TrainingContext(net, None, torch.device("cpu"), None, None)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert method.begin_stage(0, training) == {}
    assert method.begin_stage(1, training) == {"new_region": "standard", "new_entries": 0}
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    done = method.begin_stage(2, training)
    changed = sum(int((p != before[n]).sum()) for n, p in net.named_parameters())
    first_seen = new_region(net, (0, 1), (0, 1, 2))
    assert done["new_entries"] == changed == sum(int(mask.sum()) for mask in first_seen.values()) > 0
