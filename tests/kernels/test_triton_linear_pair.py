"""The weight gradients of two layers in one launch: the bits of two launches, written once."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    assert_written_once,
    assert_zero_outside,
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
    rows,
)

from growtas.errors import UsageError
from growtas.kernels import linear
from growtas.kernels.common import launch, tiles

NAMES = ("dw of the first", "db of the first", "dw of the second", "db of the second")
PAIR, ONE = "linear.backward_pair._weights", "linear.backward._weight"


def _layers(m, d, hidden, device, dtype=torch.float32, biases=True, gap=0):
    """fc2 and fc1 of an MLP: dy of one as wide as x of the other; shared sizes are some larger."""
    torch.manual_seed(m + d)
    layers = []
    for n, k in ((d, hidden), (hidden, d)):
        weight = parameter((n + 19, k + 24), (n, k), torch.float32, device, 1.0)
        bias = parameter((n + 19,), (n,), torch.float32, device, 1.0) if biases else None
        layers.append((rows(m, n, dtype, device, gap), rows(m, k, dtype, device, gap), weight, bias))
    return layers


def _apart(layers):
    return [gradient for layer in layers for gradient in linear.linear_backward_weight(*layer)]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    "m, d, hidden, dtype, biases, gap",
    [
        pytest.param(70, 24, 40, torch.float16, True, 8, id="rows-apart"),
        pytest.param(33, 72, 16, torch.float32, True, 0, id="shrinking"),
        pytest.param(48, 7, 13, torch.float32, False, 0, id="primes-without-biases"),
        pytest.param(1, 40, 24, torch.float16, True, 0, id="one-row"),
    ],
)
def test_the_same_bits_as_two_launches(m, d, hidden, dtype, biases, gap, splits, device):
    layers = _layers(m, d, hidden, device, dtype, biases, gap)
    with poisoned_outputs(), tiles.constrained(rows=16, cols=32, depth=16, splits=splits):
        with launch.counted() as launched:
            together = linear.linear_backward_weights(*layers)
        apart = _apart(layers)
    assert launched == [PAIR]
    slices = ((d, hidden), (d,), (hidden, d), (hidden,))
    for name, one, other, active in zip(NAMES, together, apart, slices, strict=True):
        if one is None:
            assert other is None and not biases
            continue
        assert torch.equal(one, other), name
        assert_zero_outside(one, active, name)


@needs_interpreter
def test_every_element_is_written_once(device):
    layers = _layers(50, 24, 40, device)
    with tiles.constrained(rows=16, cols=16, depth=16, splits=2), recorded_stores() as stores:
        gradients = linear.linear_backward_weights(*layers)
    for name, gradient in zip(NAMES, gradients, strict=True):
        assert_written_once(stores, gradient, name)


def test_layers_that_differ_are_launched_one_by_one(device):
    """In alignment, as 216 channels and 756 hidden units; in dtypes; in that one has a bias."""
    for changed in ("alignment", "dtype", "bias"):
        first, second = _layers(20, 24, 28 if changed == "alignment" else 40, device)
        if changed == "dtype":
            second = (*second[:2], second[2].half(), second[3])
        elif changed == "bias":
            second = (*second[:3], None)
        with launch.counted() as launched:
            gradients = linear.linear_backward_weights(first, second)
        assert launched == [ONE, ONE], changed
        for name, one, other in zip(NAMES, gradients, _apart((first, second)), strict=True):
            assert one is other is None or torch.equal(one, other), f"{name}, {changed}"


def test_the_tile_is_picked_for_both():
    """T at batch 128 on an H100: tiles that would be too few for one of the layers."""
    size, depth = (216, 864), 128 * 197
    alone = tiles.pick("half", *size, 132, depth=depth)
    both = tiles.pick("half", *size, 132, depth=depth, others=[size[::-1]])
    assert (alone.rows, alone.cols) == (128, 64) and (both.rows, both.cols) == (128, 128)


def test_no_rows(device):
    with poisoned_outputs():
        gradients = linear.linear_backward_weights(*_layers(0, 8, 16, device))
    assert all((gradient == 0).all() for gradient in gradients)


def test_refuses_layers_of_two_batches(device):
    (first, _), (_, second) = _layers(4, 8, 16, device), _layers(5, 8, 16, device)
    with pytest.raises(UsageError, match="dy has 4 rows but that of the second layer 5"):
        linear.linear_backward_weights(first, second)
