"""Shared by the launchers: counting launches, and counters that every launch finds at zero."""

from __future__ import annotations

import torch
from kernel_cases import parameter, rows

from growtas.kernels import linear
from growtas.kernels.common import launch, tiles


def _inputs(device):
    torch.manual_seed(0)
    x, dy = (rows(60, width, torch.float32, device) for width in (20, 30))
    weight = parameter((32, 24), (30, 20), torch.float32, device, 0.05)
    return x, weight, parameter((32,), (30,), torch.float32, device, 1.0), dy


def test_launches_are_counted(device):
    """One name per launch, in order, also in a block inside another; nothing once the block is left."""
    x, weight, bias, dy = _inputs(device)
    with launch.counted() as outer:
        linear.linear_forward(x, weight, bias, 30)
        with launch.counted() as inner:
            linear.linear_backward_input(dy, weight, 20)
    linear.linear_forward(x, weight, bias, 30)
    assert inner == ["linear.backward._input"]
    assert outer == ["linear.forward._forward", "linear.backward._input"]


def test_counters_are_left_at_zero(device):
    """A split sum counts its programs, and the next launch finds the same buffer as it needs it."""
    x, weight, bias, dy = _inputs(device)
    with tiles.constrained(splits=3, depth=16, rows=16, cols=16):
        linear.linear_backward_weight(dy, x, weight, bias)
    counters = launch.counters(x.device, 4)
    assert counters.dtype is torch.int32 and (counters == 0).all()
    assert launch.counters(x.device, counters.numel()) is counters
    assert launch.counters(x.device, counters.numel() + 1).numel() > counters.numel()


def test_a_name_belongs_to_one_kernel():
    for name, jitted in launch.KERNELS.items():
        assert launch.name_of(jitted) == name
