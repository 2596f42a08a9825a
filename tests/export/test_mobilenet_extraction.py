"""A MobileNetV3 subnet taken out of its supernet is that subnet, also after saving and loading."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import timm
import torch

from growtas import cost, export, ops
from growtas.errors import GrowtasError, UsageError
from growtas.training.calibration import recalibrate

sys.path.insert(0, str(Path(__file__).parents[1] / "supernet"))
from mobilenet_cases import SMALL, pictures, trained_like

SUBNET = SMALL.subnet(kernel=[3, 5, 7, 3], expand=[2, 3, 2, 4], depth=[1, 2])


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_the_logits_are_the_slices(backend):
    net, rng, images = trained_like(), random.Random(1), pictures(5, 24)
    subnets = [SMALL.smallest(), SMALL.largest(), *(SMALL.sample(rng) for _ in range(10))]
    with ops.use(backend), torch.inference_mode():
        for subnet in subnets:
            model = export.extract(net, subnet)
            expected = net(images, subnet)
            assert expected.std() > 0.01
            assert (model(images) - expected).abs().max() <= 1e-6 * expected.abs().max()
            assert sum(p.numel() for p in model.parameters()) == cost.parameters(subnet, SMALL, 5)
            assert not any("matrix" in name for name in model.state_dict())
            assert export.subnet_of(model) == subnet
            assert torch.equal(model.fuse()(images), expected)


def test_a_subnet_of_the_published_space_is_equal_too():
    net = trained_like("ofa-mobilenetv3", 10)
    subnet = net.space.sample(random.Random(4))
    model = export.extract(net, str(subnet))
    images = pictures(1, 64)
    with torch.inference_mode():
        expected = net(images, subnet)
        assert (model(images) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert sum(p.numel() for p in model.parameters()) == cost.parameters(subnet, net.space, 10)


def test_the_statistics_are_the_supernets_at_that_time():
    net, images = trained_like(), pictures()
    before = export.extract(net, SUBNET)
    recalibrate(net, [pictures(20, seed=5)], SUBNET)
    after = export.extract(net, SUBNET)
    assert (before(images) - after(images)).abs().max() > 1e-3
    torch.testing.assert_close(after(images), net(images, SUBNET), rtol=1e-6, atol=1e-6)


def test_one_wrong_entry_is_found(monkeypatch):
    net = trained_like()
    right = net.slice_state_dict

    def wrong(subnet):
        state = right(subnet)
        state["stages.0.0.depthwise.weight"][0, 0, 1, 1] += 1
        return state

    monkeypatch.setattr(net, "slice_state_dict", wrong)
    with pytest.raises(GrowtasError, match="differs from the supernet's slice by"):
        export.extract(net, SUBNET)


def test_saved_and_loaded_by_timm(tmp_path):
    net, images = trained_like(), pictures()
    model = export.extract(net, SUBNET, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0))
    folder = export.save(model, tmp_path / "model")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))
    assert torch.equal(export.load(folder)(images), model(images))
    assert loaded.pretrained_cfg["mean"] == [0.1, 0.2, 0.3] or loaded.pretrained_cfg["mean"] == (
        0.1,
        0.2,
        0.3,
    )
    described = export.files.config(loaded)["growtas"]
    assert described["subnet"] == str(SUBNET)
    assert described["parameters"] == cost.parameters(SUBNET, SMALL, 5)
    assert described["macs"] == cost.macs(SUBNET, SMALL, 5)
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    assert other(images).shape == (4, 3)


def test_what_timms_users_call():
    model = timm.create_model("growtas_mobilenet", num_classes=7)
    assert sum(p.numel() for p in model.parameters()) == 7_664_760 - (1000 - 7) * 1281
    assert model.get_classifier().out_features == 7
    model = export.extract(trained_like(), SUBNET)
    images = pictures()
    features = model.forward_features(images)
    assert features.shape == (4, 32, 4, 4)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.forward_head(features, pre_logits=True).shape == (4, model.head_hidden_size)
    final, stages = model.forward_intermediates(images)
    assert torch.equal(final, features)
    assert [tuple(y.shape[1:]) for y in stages] == [(16, 4, 4), (24, 4, 4)]
    assert [info["reduction"] for info in model.feature_info] == [4, 4]
    model.train().set_grad_checkpointing()
    model(images).sum().backward()
    assert model.stages[0][0].expand.weight.grad.abs().sum() > 0
    model.reset_classifier(0)
    assert model.eval()(images).shape == (4, 40)
    backbone = timm.create_model("growtas_mobilenet", features_only=True, out_indices=(1, 3)).eval()
    assert [y.shape[1] for y in backbone(pictures(1, 64))] == [40, 112]


def test_what_does_not_fit_is_refused():
    model = export.extract(trained_like(), SUBNET)
    with pytest.raises(UsageError, match="this GrowtasMobileNet is a model already"):
        export.extract(model, SUBNET)
    with pytest.raises(ValueError, match="global_pool='token' is unknown"):
        model.reset_classifier(3, "token")
    with pytest.raises(ValueError, match="one entry per stage"):
        timm.create_model("growtas_mobilenet", depth=[4, 4])
