"""A subnet taken out of the supernet is that subnet: within rounding, and to the bit where fused on a CPU."""

import random

import pytest
import torch

from growtas import cost, export, ops
from growtas.errors import GrowtasError, UsageError
from growtas.space import Subnet, load_space
from growtas.supernet import Supernet, VisionTransformer

DIGITS = load_space("digits")


def trained_like(space="digits", num_classes=10, qkv_bias="interleaved", seed=0) -> VisionTransformer:
    """A supernet none of whose parameters is constant, as after training."""
    torch.manual_seed(seed)
    net = Supernet(space, num_classes, qkv_bias=qkv_bias).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize(
    ("backend", "qkv_bias"),
    [
        ("torch", "published"),
        ("cpu", "interleaved"),
        pytest.param("torch", "interleaved", marks=pytest.mark.slow),
        pytest.param("cpu", "published", marks=pytest.mark.slow),
    ],
)
def test_the_logits_are_the_slices(backend, qkv_bias):
    if not ops.available(backend).ok:
        pytest.fail(ops.available(backend).reason)
    net, rng = trained_like(qkv_bias=qkv_bias), random.Random(1)
    subnets = [DIGITS.smallest(), DIGITS.largest(), *(DIGITS.sample(rng) for _ in range(8))]
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with ops.use(backend), torch.inference_mode():
        for subnet in subnets:
            model = export.extract(net, subnet)
            expected = net(images, subnet)
            assert expected.std() > 0.01
            assert (model(images) - expected).abs().max() <= 2e-6 * expected.abs().max(), subnet
            assert torch.equal(model.fuse()(images), expected), subnet
            assert export.verify(net, model, subnet) == 0
            assert sum(p.numel() for p in model.parameters()) == cost.parameters(subnet, DIGITS, 10)


def test_a_subnet_of_autoformer_tiny_is_equal_too():
    net, space = trained_like("autoformer-tiny", 100), load_space("autoformer-tiny")
    subnet = space.sample(random.Random(4))
    model = export.extract(net, str(subnet), fused=True)
    assert model.extraction_error < 1e-5
    assert export.verify(net, model, subnet) == 0
    assert sum(p.numel() for p in model.parameters()) == cost.parameters(subnet, space, 100)


def test_the_model_shares_no_memory_with_the_supernet():
    net = trained_like()
    model = export.extract(net, DIGITS.largest())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_supernet_keeps_its_mode_and_chosen_subnet():
    net = trained_like().train()
    net.set_subnet(DIGITS.largest())
    images = torch.randn(2, 1, 8, 8)
    model = export.extract(net, DIGITS.smallest())
    assert net.training
    assert not model.training
    assert net(images).shape == (2, 10)
    assert torch.equal(net.eval()(images), net(images, DIGITS.largest()))


def test_a_model_that_is_not_the_slice_is_refused(monkeypatch):
    """The comparison can fail: one wrong entry in one slice is found."""
    net = trained_like()
    right = net.slice_state_dict

    def wrong(subnet):
        state = right(subnet)
        state["blocks.1.mlp.fc2.weight"][0, 0] += 1
        return state

    monkeypatch.setattr(net, "slice_state_dict", wrong)
    with pytest.raises(GrowtasError, match="differs from the supernet's slice by"):
        export.extract(net, DIGITS.smallest())


def test_weights_that_are_not_finite_are_refused():
    net = trained_like()
    with torch.no_grad():
        net.norm.weight[0] = float("nan")
    with pytest.raises(GrowtasError, match="differs from the supernet's slice by nan"):
        export.extract(net, DIGITS.smallest())


def test_a_subnet_outside_the_space_is_refused():
    net = trained_like()
    with pytest.raises(UsageError, match="embed_dim=60 is outside space 'digits'"):
        export.extract(net, Subnet(60, 3, (2, 2, 2), (2, 2, 2)))
    with pytest.raises(UsageError, match="is not a subnet"):
        export.extract(net, "d24")
    with pytest.raises(UsageError, match="this GrowtasViT is a model already"):
        export.extract(export.extract(net, DIGITS.smallest()), DIGITS.smallest())


def test_normalisation_goes_into_the_timm_configuration():
    net = trained_like()
    model = export.extract(net, DIGITS.smallest(), mean=(0.3,), std=(0.4,))
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == ((0.3,), (0.4,))
    assert model.pretrained_cfg["input_size"] == (1, 8, 8)
    with pytest.raises(UsageError, match="mean=.* needs 1 entries"):
        export.extract(net, DIGITS.smallest(), mean=(0.3, 0.3, 0.3), std=(0.4,))
