"""BatchNorm statistics measured for one subnet: what is set, what is left alone, and that it takes effect."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from growtas.errors import UsageError
from growtas.supernet import Supernet
from growtas.training.calibration import (
    CalibrationImages,
    calibration,
    kept_statistics,
    recalibrate,
    statistics,
)
from growtas.training.data.images import MemoryImages

sys.path.insert(0, str(Path(__file__).parents[1] / "supernet"))
from mobilenet_cases import SMALL, pictures, trained_like

SUBNET = SMALL.subnet(kernel=[3, 5, 7, 3], expand=[2, 3, 2, 4], depth=[1, 2])


def data(count: int = 50) -> MemoryImages:
    images = pictures(count)
    return MemoryImages(images, torch.zeros(count, dtype=torch.int64), 0.0, SMALL)


def test_the_statistics_are_the_mean_over_the_images():
    """Of the first layer the expected values are plain: it sees the same in every batch order."""
    net, batches = trained_like(), pictures(50).split([20, 20, 10])
    recalibrate(net, batches, SUBNET)
    outputs = [net.stem(batch) for batch in batches]
    means = sum(len(y) * y.mean((0, 2, 3)) for y in outputs) / 50
    variances = sum(len(y) * y.var((0, 2, 3), correction=0) for y in outputs) / 50
    torch.testing.assert_close(net.stem_norm.running_mean, means)
    torch.testing.assert_close(net.stem_norm.running_var, variances)


def test_one_batch_makes_evaluation_normalise_as_training_does():
    """Calibrated on one batch, every layer in evaluation mode computes what it does in training mode."""
    net, images = trained_like(), pictures(32)
    with torch.no_grad():
        net.dropout.p = 0.0
        recalibrate(net, [images], SUBNET)
        calibrated = net(images, SUBNET)
        torch.testing.assert_close(calibrated, net.train()(images, SUBNET), rtol=1e-4, atol=1e-4)


def test_only_what_the_subnet_uses_changes():
    net = trained_like().train()
    before, weights = statistics(net), {n: p.clone() for n, p in net.named_parameters()}
    recalibrate(net, [pictures()], SUBNET)
    assert net.training
    after = statistics(net)
    used = {"stages.0.0": (1, 2), "stages.1.0": (0, 2), "stages.1.1": (1, 4)}  # width of the input, expand
    assert torch.equal(before["stages.0.1.expand_norm"][0], after["stages.0.1.expand_norm"][0])
    for block, (_, expand) in used.items():
        stage, index = int(block[7]), int(block[9])
        width = SMALL.mid_width(stage, index, expand)
        for old, new in zip(before[f"{block}.depthwise_norm"], after[f"{block}.depthwise_norm"], strict=True):
            assert (old[:width] != new[:width]).all()
            assert torch.equal(old[width:], new[width:])
    assert all(torch.equal(p, weights[n]) for n, p in net.named_parameters())


def test_statistics_come_back():
    net = trained_like()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.inference_mode(), kept_statistics(net):
        recalibrate(net, [pictures()], SUBNET)
        assert not torch.equal(before["stem_norm.running_mean"], net.stem_norm.running_mean)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.train()(pictures(), SUBNET).sum().backward()  # nothing of inference mode is left behind


def test_an_interrupted_calibration_changes_nothing():
    net = trained_like()
    before = statistics(net)

    def interrupted():
        yield pictures()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recalibrate(net, interrupted(), SUBNET)
    with pytest.raises(UsageError, match="no images to calibrate"):
        recalibrate(net, [], SUBNET)
    after = statistics(net)
    assert all(torch.equal(a, b) for name in before for a, b in zip(before[name], after[name], strict=True))


def test_the_images_are_fixed_and_evenly_batched():
    split = data(50)
    first = list(CalibrationImages(split, count=45, batch_size=20))
    assert [len(batch) for batch in first] == [15, 15, 15]
    again = CalibrationImages(split, count=45, batch_size=20)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert list(again)[0].data_ptr() == list(again)[0].data_ptr()  # they are read once
    assert len(torch.cat(list(CalibrationImages(split))).unique(dim=0)) == 50


def test_networks_without_batch_normalisation_need_none():
    net = Supernet("digits", 10)
    assert calibration(net, data()) is None
    recalibrate(net, [], net.space.smallest())
    with kept_statistics(net):
        pass
