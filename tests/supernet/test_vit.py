"""The supernet as a module: choosing subnets, unused blocks, precision, extraction of weights."""

from __future__ import annotations

import copy
import random

import pytest
import torch

import growtas
from growtas.errors import UsageError
from growtas.ops import dispatch
from growtas.supernet import VisionTransformer


@pytest.fixture
def net() -> VisionTransformer:
    torch.manual_seed(0)
    return growtas.Supernet("digits", num_classes=10).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_set_subnet_is_a_convenience(net, images):
    subnet = net.space.smallest()
    with pytest.raises(UsageError, match="A supernet needs a subnet"):
        net(images)
    net.set_subnet(subnet)
    assert torch.equal(net(images), net(images, subnet))
    assert not torch.equal(net(images), net(images, net.space.largest()))


def test_outside_the_space(net, images):
    outside = growtas.Subnet(25, 3, (2,) * 3, (2,) * 3)
    for run in (lambda: net(images, outside), lambda: net.set_subnet(outside)):
        with pytest.raises(UsageError, match="embed_dim=25 is outside space 'digits'"):
            run()
    with pytest.raises(UsageError, match=r"images are \(3, 8, 8\), but this network takes \(1, 8, 8\)"):
        net(torch.zeros(1, 3, 8, 8), net.space.smallest())
    with pytest.raises(UsageError, match="qkv_bias='publish' is unknown. Did you mean 'published'"):
        growtas.Supernet("digits", qkv_bias="publish")


@pytest.mark.parametrize("qkv_bias", ["interleaved", "published"])
def test_sliced_weights_give_the_same_logits(qkv_bias, images):
    torch.manual_seed(0)
    net = growtas.Supernet("digits", num_classes=10, qkv_bias=qkv_bias).eval()
    for block in net.blocks:
        torch.nn.init.normal_(block.attn.qkv.bias)
    rng = random.Random(0)
    with torch.no_grad():
        for _ in range(10):
            subnet = net.space.sample(rng)
            small = VisionTransformer(net.dims.of_subnet(subnet), 10).eval()
            small.load_state_dict(net.slice_state_dict(subnet))
            torch.testing.assert_close(small(images), net(images, subnet), rtol=1e-5, atol=1e-6)


def test_shapes_of_a_subnet_are_those_of_its_slices(net):
    rng = random.Random(1)
    for _ in range(5):
        subnet = net.space.sample(rng)
        slices = net.slice_state_dict(subnet)
        assert net.subnet_shapes(subnet) == {name: tuple(value.shape) for name, value in slices.items()}
    with pytest.raises(UsageError, match="embed_dim=25 is outside"):
        net.subnet_shapes(growtas.Subnet(25, 3, (2,) * 3, (2,) * 3))


def test_blocks_beyond_the_depth_get_no_gradient(net, images):
    subnet = net.space.smallest()
    net(images, subnet).sum().backward()
    unused = list(net.unused_parameters(subnet))
    assert len(unused) == 2 * len(list(net.blocks[0].parameters()))
    assert all(p.grad is None for p in unused)
    assert all(p.grad is not None for p in net.blocks[subnet.depth - 1].parameters())


def test_gradients_are_full_size_and_zero_outside(net, images):
    subnet = net.space.smallest()
    net(images, subnet).sum().backward()
    block, d, hidden = net.blocks[0], subnet.embed_dim, subnet.hidden_dims[0]
    q = subnet.num_heads[0] * net.space.head_dim
    slices = {
        net.pos_embed: (1, 17, d),
        net.patch_embed.proj.weight: (d, 1, 2, 2),
        block.norm1.weight: (d,),
        block.attn.qkv.weight: (3 * q, d),
        block.attn.qkv.bias: (3 * q,),
        block.attn.proj.weight: (d, q),
        block.mlp.fc1.weight: (hidden, d),
        block.mlp.fc2.weight: (d, hidden),
        net.head.weight: (10, d),
    }
    for parameter, sizes in slices.items():
        inside = torch.zeros(parameter.shape, dtype=torch.bool)
        inside[tuple(slice(size) for size in sizes)] = True
        assert parameter.grad.shape == parameter.shape
        assert parameter.grad[inside].abs().sum() > 0
        assert not parameter.grad[~inside].any()


def test_drop_path_rises_with_the_layer():
    net = growtas.Supernet("digits", num_classes=10, drop_path_rate=0.1)
    assert net.drop_path_rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


def test_drop_path_keeps_or_drops_whole_branches_of_an_image(net):
    net = growtas.Supernet("digits", num_classes=10, drop_path_rate=0.5).train()
    x = torch.empty(4000, 1)
    torch.manual_seed(0)
    scales = net._drop_path_scales(x, depth=3)
    assert scales[0] is None  # its rate is 0
    for rate, pair in zip(net.drop_path_rates[1:3], scales[1:], strict=True):
        for scale in pair:
            assert set(scale.tolist()) == {0.0, scale.max().item()}
            assert scale.max() == pytest.approx(1 / (1 - rate))
            assert scale.mean() == pytest.approx(1, abs=0.05)
        assert not torch.equal(*pair)
    assert net.eval()._drop_path_scales(x, depth=3) == [None] * 3


def test_bfloat16_autocast_keeps_weights_and_their_gradients_in_float32(net, images, cpu_backend):
    if cpu_backend == "triton":
        pytest.skip("Triton's interpreter has no bfloat16 products; the GPU tests cover it")
    subnet = net.space.largest()
    exact = net(images, subnet)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images, subnet)
        loss = logits.float().square().sum()
    assert logits.dtype == torch.bfloat16
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    assert (logits.float() - exact).norm() < 0.02 * exact.norm()


def test_inference_is_the_same_on_every_backend(net, images, cpu_backend):
    subnet = growtas.Subnet(36, 4, (2, 3, 2, 3), (2, 3, 3, 2))
    with torch.no_grad():
        got = net(images, subnet)
        with dispatch.use("torch"):
            truth = copy.deepcopy(net).double()(images.double(), subnet)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-6)


def test_features_and_head(net, images):
    subnet = net.space.smallest()
    features = net.forward_features(images, subnet)
    assert features.shape == (3, 17, 24)
    assert torch.equal(net.forward_head(features), net(images, subnet))
    pooled = net.forward_head(features, pre_logits=True)
    assert torch.equal(pooled, features[:, 1:].mean(1))


@pytest.mark.parametrize("pool", ["avg", "token"])
@pytest.mark.parametrize("name", ["torch", "cpu"])
def test_norm_and_pooling_in_one_have_the_bits_of_both_apart(name, pool, images):
    """A hook on the norm runs them apart, and sees the normalised tokens."""
    torch.manual_seed(0)
    net = growtas.Supernet("digits", num_classes=10, global_pool=pool)
    subnet, seen, results = net.space.smallest(), [], []
    with dispatch.use(name):
        for _ in range(2):
            net.zero_grad()
            logits = net(images, subnet)
            logits.square().sum().backward()
            results.append([logits, *[p.grad for p in net.parameters() if p.grad is not None]])
            net.norm.register_forward_hook(lambda *given: seen.append(given[-1].shape))
    assert seen == [(3, 17, 24)] and len(results[0]) == len(results[1]) > 20
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_whatever_stands_in_the_place_of_norm_or_head_is_called(net, images, monkeypatch):
    subnet, calls = net.space.smallest(), []

    class Norm(type(net.norm)):
        def forward(self, x):
            calls.append(x.shape)
            return super().forward(x)

    wanted, head = net(images, subnet), net.forward_head
    with monkeypatch.context() as patched:
        patched.setattr(net, "forward_head", lambda x: (calls.append(x.shape), head(x))[1])
        assert torch.equal(net(images, subnet), wanted)
    net.norm.__class__ = Norm
    assert torch.equal(net(images, subnet), wanted)
    assert calls == [(3, 17, 24)] * 2
