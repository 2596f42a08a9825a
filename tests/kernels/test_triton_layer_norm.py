"""Partial LayerNorm in Triton: against fp64, with poisoned surroundings, and the same bits every time."""

from __future__ import annotations

import pytest
import reference
import torch
from kernel_cases import (
    DTYPES,
    GPU,
    assert_as_good_as_torch,
    assert_written_once,
    assert_zero_outside,
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
    rows,
)

from growtas.errors import UsageError
from growtas.kernels import layer_norm
from growtas.kernels.common import launch, tiles

# rows, width, shared width, gap between rows
CASES = [
    pytest.param(40, 216, 256, 0, id="T-216"),
    pytest.param(23, 240, 256, 8, id="T-240-strided"),
    pytest.param(9, 640, 640, 0, id="B-shared-edge"),
    pytest.param(37, 13, 17, 3, id="primes"),
    pytest.param(1, 48, 48, 0, id="one-row"),
    pytest.param(5, 1, 3, 0, id="one-channel"),
]
if GPU:
    CASES += [
        pytest.param(128 * 197, 216, 256, 0, id="T-216-batch-128"),
        pytest.param(128 * 197, 624, 640, 0, id="B-624-batch-128"),
    ]


def _inputs(m, width, full, gap, dtype, parameter_dtype, device):
    torch.manual_seed(m * 1000 + width)
    x = rows(m, width, dtype, device, gap)
    x.mul_(2).add_(1)  # a mean that the variance must not see
    weight = parameter((full,), (width,), parameter_dtype, device, 1.0)
    bias = parameter((full,), (width,), parameter_dtype, device, 1.0)
    return x, weight, bias, rows(m, width, dtype, device, gap)


def test_a_row_whose_squares_overflow_is_not_finite(device):
    """Zeros would be plausible: a run that diverged has to be seen to. The other rows keep their bits."""
    x, weight, bias, dy = _inputs(5, 24, 32, 0, torch.float32, torch.float32, device)
    results = []
    for size in (1.0, 1e20):
        x[1].mul_(size)
        y, mean, rstd = layer_norm.layer_norm_forward(x, weight, bias, 1e-5, torch.float32)
        dx, *_ = layer_norm.layer_norm_backward(dy, x, weight, bias, mean, rstd)
        results.append((y, dx))
    for usual, found in zip(*results, strict=True):
        assert not found[1].isfinite().any() and torch.equal(found[2:], usual[2:])


@pytest.mark.parametrize("dtype, parameter_dtype", DTYPES)
@pytest.mark.parametrize("m, width, full, gap", CASES)
def test_matches_fp64(m, width, full, gap, dtype, parameter_dtype, device):
    x, weight, bias, dy = _inputs(m, width, full, gap, dtype, parameter_dtype, device)
    residual = rows(m, width, dtype, device, gap)
    with poisoned_outputs():
        y, mean, rstd = layer_norm.layer_norm_forward(x, weight, bias, 1e-5, dtype)
        dx, dweight, dbias = layer_norm.layer_norm_backward(dy, x, weight, bias, mean, rstd)
        with launch.counted() as launched:
            past, *same = layer_norm.layer_norm_backward(dy, x, weight, bias, mean, rstd, residual)

    assert launched == ["layer_norm.backward._backward"]
    assert torch.equal(same[0], dweight) and torch.equal(same[1], dbias)
    wide = [tensor.double() for tensor in (x, weight, bias)]
    true_y, true_mean, true_rstd = reference.layer_norm_forward(*wide, 1e-5, torch.float64)
    truth = reference.layer_norm_backward(dy.double(), *wide, true_mean, true_rstd)
    torch_y, torch_mean, torch_rstd = reference.layer_norm_forward(x, weight, bias, 1e-5, dtype)
    plain = reference.layer_norm_backward(dy, x, weight, bias, torch_mean, torch_rstd)

    assert mean.dtype == rstd.dtype == torch.float32
    assert_as_good_as_torch(y, torch_y, true_y, width, "y")
    assert_as_good_as_torch(mean, torch_mean, true_mean, width, "mean")
    assert_as_good_as_torch(rstd, torch_rstd, true_rstd, width, "rstd")
    assert_as_good_as_torch(dx, plain[0], truth[0], width, "dx")
    plain_past = reference.layer_norm_backward(dy, x, weight, bias, torch_mean, torch_rstd, residual)[0]
    assert_as_good_as_torch(past, plain_past, truth[0] + residual.double(), width, "dx + dresidual")
    for name, gradient, torch_gradient, true_gradient in zip(
        ("dweight", "dbias"), (dweight, dbias), plain[1:], truth[1:], strict=True
    ):
        assert_zero_outside(gradient, (width,), name)
        assert_as_good_as_torch(gradient, torch_gradient, true_gradient, m, name)


def test_bfloat16_input_to_fp32_output(device):
    """The interpreter reads bfloat16 exactly (it only rounds wrongly when it writes it)."""
    x, weight, bias, _ = _inputs(19, 216, 256, 0, torch.bfloat16, torch.bfloat16, device)
    y, _, _ = layer_norm.layer_norm_forward(x, weight, bias, 1e-5, torch.float32)
    truth, _, _ = reference.layer_norm_forward(
        x.double(), weight.double(), bias.double(), 1e-5, torch.float64
    )
    plain, _, _ = reference.layer_norm_forward(x, weight, bias, 1e-5, torch.float32)
    assert_as_good_as_torch(y, plain, truth, 216, "y")


@pytest.mark.parametrize("programs", [1, 3, 64])
def test_gradients_do_not_depend_on_the_run(programs, device):
    x, weight, bias, dy = _inputs(75, 40, 48, 0, torch.float32, torch.float32, device)
    with tiles.constrained(norm_programs=programs, norm_rows=4 if programs < 64 else 1):
        _, mean, rstd = layer_norm.layer_norm_forward(x, weight, bias)
        first = layer_norm.layer_norm_backward(dy, x, weight, bias, mean, rstd)
        second = layer_norm.layer_norm_backward(dy, x, weight, bias, mean, rstd)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    expected = dy.double().sum(0)
    assert torch.allclose(first[2][:40].double(), expected, atol=1e-5)


@needs_interpreter
def test_every_element_is_written_once(device):
    x, weight, bias, dy = _inputs(21, 40, 80, 0, torch.float32, torch.float32, device)
    with recorded_stores() as stores, tiles.constrained(norm_programs=3, norm_rows=4):
        y, mean, rstd = layer_norm.layer_norm_forward(x, weight, bias)
        dx, dweight, dbias = layer_norm.layer_norm_backward(dy, x, weight, bias, mean, rstd)
    names = ("y", "mean", "rstd", "dx", "dweight", "dbias")
    for name, result in zip(names, (y, mean, rstd, dx, dweight, dbias), strict=True):
        assert_written_once(stores, result, name)


def test_no_rows(device):
    x = torch.empty((0, 24), device=device)
    weight, bias = torch.ones(48, device=device), torch.ones(48, device=device)
    with poisoned_outputs():
        y, mean, rstd = layer_norm.layer_norm_forward(x, weight, bias)
        dx, dweight, dbias = layer_norm.layer_norm_backward(y, x, weight, bias, mean, rstd)
    assert y.shape == dx.shape == (0, 24)
    assert (dweight == 0).all() and (dbias == 0).all()


def test_refuses_what_it_cannot_normalise(device):
    weight = torch.ones(16, device=device)
    with pytest.raises(UsageError, match="17 channels needs weight and bias"):
        layer_norm.layer_norm_forward(torch.ones(2, 17, device=device), weight, weight)
    wide = torch.ones(tiles.MAX_NORM_WIDTH + 1, device=device)
    with pytest.raises(UsageError, match=f"over the {tiles.MAX_NORM_WIDTH} that one program holds"):
        layer_norm.layer_norm_forward(wide[None], wide, wide)
    with pytest.raises(UsageError, match="float64"):
        layer_norm.layer_norm_forward(torch.ones(2, 16, device=device).double(), weight, weight)
    x = torch.ones(2, 16, device=device)
    y, mean, rstd = layer_norm.layer_norm_forward(x, weight, weight)
    with pytest.raises(UsageError, match="same forward pass"):
        layer_norm.layer_norm_backward(y[:1], x, weight, weight, mean, rstd)
