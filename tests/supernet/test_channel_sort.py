"""Sorting channels moves them and changes nothing that the largest network computes."""

from __future__ import annotations

import pytest
import torch
from mobilenet_cases import SMALL, pictures, trained_like

from growtas.errors import UsageError
from growtas.supernet.channel_sort import band_order, sort_channels


def importance(block) -> torch.Tensor:
    return block.project.weight.detach().abs().sum((0, 2, 3))


def outputs(net, subnets):
    with torch.inference_mode():
        return [net(pictures(), subnet) for subnet in subnets]


def trained(count: int):
    """Subnets of the ``count`` largest expand ratios, of every kernel and depth."""
    return [
        SMALL.subnet(kernel=kernel, expand=expand, depth=depth)
        for kernel in (3, 7)
        for expand in SMALL.expand[-count:]
        for depth in (1, 2)
    ]


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_what_was_trained_computes_the_same(phase):
    net = trained_like()
    before = outputs(net, trained(phase + 1))
    old = importance(net.stages[1][0])
    sort_channels(net, phase)
    for a, b in zip(before, outputs(net, trained(phase + 1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for stage, blocks in enumerate(net.stages):
        for index, block in enumerate(blocks):
            new = importance(block)
            cuts = [SMALL.mid_width(stage, index, ratio) for ratio in sorted(SMALL.expand)[-1 - phase :]]
            for a, b in zip([0, *cuts], cuts, strict=False):
                assert (new[a:b].diff() <= 0).all()
            if block.se is not None and not phase:
                assert (block.se.expand.weight.detach().abs().sum((0, 2, 3)).diff() <= 0).all()
    assert not torch.equal(old, importance(net.stages[1][0]))
    torch.testing.assert_close(old.sort().values, importance(net.stages[1][0]).sort().values)


def test_a_smaller_subnet_changes():
    """The comparison can fail: an expand ratio that was not trained gets other channels."""
    net = trained_like()
    smallest = [SMALL.subnet(kernel=7, expand=2, depth=2)]
    (before,) = outputs(net, smallest)
    sort_channels(net, 1)
    assert (outputs(net, smallest)[0] - before).abs().max() > 1e-3


def test_the_published_bands():
    """Phase 1 of ratios 6, 4, 3 keeps channels on their side of the width of ratio 4."""
    assert band_order(torch.tensor([1.0, 3, 2, 5, 4, 6]), [3]).tolist() == [1, 2, 0, 5, 3, 4]
    assert band_order(torch.tensor([1.0, 3, 2, 5, 4, 6]), []).tolist() == [5, 3, 4, 1, 2, 0]
    with pytest.raises(UsageError, match="Expand phase 3 does not exist"):
        sort_channels(trained_like(), 3)
