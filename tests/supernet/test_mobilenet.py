"""The MobileNetV3 supernet: slices, unused weights, drop path, precision and what it refuses."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F
from mobilenet_cases import SMALL, pictures, trained_like

from growtas import cost, ops
from growtas.errors import UsageError
from growtas.spaces.mobilenet_subnet import MobileNetSubnet
from growtas.supernet import MobileNetDims, MobileNetV3, Supernet

SUBNET = SMALL.subnet(kernel=[3, 5, 7, 3], expand=[2, 3, 2, 4], depth=[1, 2])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("training", [False, True])
def test_a_slice_is_the_smaller_network(training):
    """Logits and gradients of subnets equal those of a network of their own with the sliced weights."""
    net, images, rng = trained_like().train(training), pictures(), random.Random(3)
    net.dropout.p = 0.0
    for subnet in (SMALL.smallest(), SMALL.largest(), *(SMALL.sample(rng) for _ in range(4))):
        small = MobileNetV3(MobileNetDims.of_space(SMALL, subnet), 5, dropout=0.0).train(training)
        small.load_state_dict(net.slice_state_dict(subnet))
        assert sum(p.numel() for p in small.parameters()) == cost.parameters(subnet, SMALL, 5)
        net.zero_grad()
        logits, expected = net(images, subnet), small(images)
        assert relative(logits.detach(), expected.detach()) < 1e-5
        logits.square().mean().backward(), expected.square().mean().backward()
        gradients = dict(net.named_parameters())
        for name, parameter in small.named_parameters():
            if "depthwise.weight" in name and parameter.shape[-1] < 7 and name.startswith("stages"):
                continue  # of a transformed kernel it is a gradient of something else
            inside = gradients[name].grad[tuple(slice(size) for size in parameter.shape)]
            assert relative(inside, parameter.grad) < 1e-3 or parameter.grad.norm() < 1e-6, name


def test_only_the_subnets_box_has_gradients():
    net, rng = trained_like().train(), random.Random(5)
    for subnet in (SUBNET, *(SMALL.sample(rng) for _ in range(5))):
        net.zero_grad(set_to_none=True)
        net(pictures(), subnet).square().sum().backward()
        shapes = net.subnet_shapes(subnet)
        assert {name for name, p in net.named_parameters() if p.grad is not None} == set(shapes)
        for name, parameter in net.named_parameters():
            if name not in shapes:
                continue
            outside = parameter.grad.clone()
            outside[tuple(slice(size) for size in shapes[name])] = 0
            assert parameter.grad.abs().sum() > 0, name
            assert not outside.any(), name
        unused = {id(p) for p in net.unused_parameters(subnet)}
        assert all(p.grad is None for p in net.parameters() if id(p) in unused)


def test_every_image_size_and_backend():
    net = trained_like()
    for size in (16, 23):
        images = pictures(2, size)
        with torch.inference_mode(), ops.use("torch"):
            expected = net(images, SUBNET)
        with torch.inference_mode(), ops.use("cpu"):
            assert relative(net(images, SUBNET), expected) < 1e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_activations_stay_channels_last(channels):
    """The pixels that a convolution reads are rows as they lie: nothing is copied between the layers."""
    net, seen = Supernet(dataclasses.replace(SMALL, in_channels=channels), 5).eval(), []
    for module in net.stages.modules():
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        net(pictures(channels=channels), SUBNET)
    assert len(seen) > 20
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_bfloat16_training():
    net, images = trained_like().train(), pictures()
    net.dropout.p = 0.0
    full = net(images, SUBNET)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images, SUBNET)
    assert logits.dtype == torch.bfloat16
    assert relative(logits.float(), full) < 0.1
    F.cross_entropy(logits.float(), torch.zeros(4, dtype=torch.int64)).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() and g.dtype == torch.float32 for g in gradients)


def test_drop_path_drops_branches_of_whole_images():
    torch.manual_seed(0)
    net = Supernet(SMALL, 5, drop_path_rate=0.5).train()
    subnet, x = SMALL.largest(), torch.randn(64, 24, 4, 4)
    block = net.dims.blocks[-1]
    scales = net._drop_path_scales(x, SMALL.blocks(subnet))
    assert scales[0] is None and set(scales[-1].tolist()) == {0.0, 2.0}
    y = net.forward_block(x, block, scales[-1])
    dropped = scales[-1] == 0
    assert torch.equal(y[dropped], x[dropped]) and not torch.equal(y[~dropped], x[~dropped])
    assert net.eval()._drop_path_scales(x, SMALL.blocks(subnet)) == [None] * 4


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    net = Supernet("ofa-mobilenetv3", 1000)
    block = net.stages[4][1]
    assert block.expand.weight.std().item() == pytest.approx((2 / 960) ** 0.5, rel=0.02)
    assert block.depthwise.weight.std().item() == pytest.approx((2 / (960 * 49)) ** 0.5, rel=0.02)
    assert net.stem.weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.15)
    assert net.classifier.weight.abs().max().item() == pytest.approx(1280**-0.5, rel=1e-3)
    assert not block.se.reduce.bias.any() and not net.classifier.bias.any()
    assert torch.equal(getattr(block.depthwise, "5to3_matrix"), torch.eye(9))
    assert net.dropout.p == 0.1 and net.stem_norm.momentum == 0.1 and net.stem_norm.eps == 1e-5


def test_what_does_not_fit_is_refused():
    net = trained_like()
    with pytest.raises(UsageError, match="needs a subnet"):
        net(pictures())
    with pytest.raises(UsageError, match="takes 3 channels"):
        net(pictures(channels=1), SUBNET)
    with pytest.raises(UsageError, match="outside space 'small'"):
        net(pictures(), MobileNetSubnet((9,) * 4, (2,) * 4, (1, 1)))
    with pytest.raises(UsageError, match="unused_blocks='drop' is unknown"):
        Supernet(SMALL, 5, unused_blocks="drop")
    with pytest.raises(UsageError, match="qkv_bias='published' is for vision transformers"):
        Supernet(SMALL, 5, qkv_bias="published")
    net.set_subnet(SUBNET)
    assert torch.equal(net(pictures()), net(pictures(), SUBNET))
    assert net.no_weight_decay() == set() and net.needs_calibration
