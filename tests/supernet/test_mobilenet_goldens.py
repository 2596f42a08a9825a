"""The MobileNetV3 supernet against outputs of the published Once-for-All code (tests/data/README.md)."""

from __future__ import annotations

import pytest
import torch
from ofa_golden import SPEC, images, published_weights

import growtas
from growtas import cost
from growtas.supernet.published import load_ofa, ofa_name

TOLERANCE = 1e-5
CASES = SPEC["cases"]


@pytest.fixture(scope="module")
def weights():
    return published_weights()


@pytest.fixture(scope="module")
def net(weights):
    net = growtas.Supernet("ofa-mobilenetv3", num_classes=10).eval()
    load_ofa(net, weights)
    return net


def subnet_of(case):
    return growtas.load_space("ofa-mobilenetv3").subnet(kernel=case["ks"], expand=case["e"], depth=case["d"])


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_matches_published_code(case, net, backend):
    subnet, expected = subnet_of(CASES[case]), torch.tensor(CASES[case]["logits"])
    with growtas.ops.use(backend), torch.inference_mode():
        logits = net(images(), subnet)
    # The largest network's logits reach 35, where 1e-5 is less than the published float32 can hold.
    assert ((logits - expected).norm() / expected.norm()).item() < TOLERANCE
    assert (logits - expected).abs().max().item() < TOLERANCE * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("case", range(len(CASES)))
def test_parameters_are_the_published_count(case, net):
    assert cost.parameters(subnet_of(CASES[case]), net.space, 10) == CASES[case]["params"]


def test_the_transforms_take_part(net, weights):
    """The golden can tell: without the learned transforms a small kernel gives other logits."""
    other = growtas.Supernet("ofa-mobilenetv3", num_classes=10).eval()
    load_ofa(other, {name: value for name, value in weights.items() if "matrix" not in name})
    expected = torch.tensor(CASES[0]["logits"])
    with torch.inference_mode():
        logits = other(images(), subnet_of(CASES[0]))
    assert ((logits - expected).norm() / expected.norm()).item() > 100 * TOLERANCE


def test_names_and_wrappers_of_other_checkpoints(net, weights):
    """Old names of the blocks, DataParallel's prefix, static layers' names, counters and the wrapper."""
    other = growtas.Supernet("ofa-mobilenetv3", num_classes=10).eval()
    renamed = {}
    for name, value in weights.items():
        name = name.replace(".conv.depth_conv", ".mobile_inverted_conv.depth_conv").replace(".bn.bn.", ".bn.")
        renamed[f"module.{name}"] = value
    renamed["module.first_conv.bn.num_batches_tracked"] = torch.tensor(7)
    load_ofa(other, {"state_dict": renamed, "epoch": 3})
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.state_dict().items())
    assert ofa_name("blocks.20.conv.point_linear.bn.bn.bias") == "stages.4.3.project_norm.bias"


def test_foreign_weights_are_refused(net, weights):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(
        growtas.UsageError, match="not the weights of this OFA-MobileNetV3 supernet: .* missing"
    ):
        load_ofa(net, {name: value for name, value in weights.items() if "5to3" not in name})
    with pytest.raises(growtas.UsageError, match="unknown .such as conv1.weight"):
        load_ofa(net, {**weights, "conv1.weight": torch.zeros(3)})
    with pytest.raises(growtas.UsageError, match=r"classifier.weight is \(1000, 1280\) in the checkpoint"):
        load_ofa(net, {**weights, "classifier.linear.weight": torch.zeros(1000, 1280)})
    with pytest.raises(growtas.UsageError, match="supernet of a MobileNetV3 space"):
        load_ofa(growtas.Supernet("digits", 10), weights)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
