"""LayerNorm and pooling in one kernel: against fp64, with poisoned surroundings, the same bits every time."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    GPU,
    NAN,
    assert_as_good_as_torch,
    assert_written_once,
    assert_zero_outside,
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
    with_dtypes,
)

from growtas import ops
from growtas.errors import GrowtasError, UsageError
from growtas.kernels import pooled_norm
from growtas.kernels.common import launch, tiles
from growtas.ops.pooled_norm import unfused

# images, tokens, width, shared width, pooled tokens
CASES = [
    pytest.param(3, 50, 216, 256, (1, 50), id="T-216"),
    pytest.param(19, 5, 48, 48, (1, 5), id="many-images"),
    pytest.param(2, 20, 13, 17, (1, 20), id="primes"),
    pytest.param(5, 10, 40, 80, (0, 1), id="cls"),
    pytest.param(1, 7, 300, 640, (2, 6), id="inner-tokens"),
]
if GPU:
    CASES += [pytest.param(128, 197, 216, 256, (1, 197), id="T-216-batch-128")]


def inputs(batch, count, width, full, dtype, parameter_dtype, device):
    """x, weight, bias and the gradient of the result; NaN around x and past the slices."""
    torch.manual_seed(batch * 1000 + width)
    around = torch.full((batch + 2, count, width), NAN, device=device, dtype=dtype)
    x = around[1:-1]
    x.copy_(2 * torch.randn(batch, count, width) + 1)
    weight = parameter((full,), (width,), parameter_dtype, device, 1.0)
    bias = parameter((full,), (width,), parameter_dtype, device, 1.0)
    return x, weight, bias, torch.randn(batch, width, device=device).to(dtype)


@pytest.mark.parametrize("batch, count, width, full, pooled, dtype, parameter_dtype", with_dtypes(CASES))
def test_matches_fp64(batch, count, width, full, pooled, dtype, parameter_dtype, device):
    x, weight, bias, dy = inputs(batch, count, width, full, dtype, parameter_dtype, device)
    with poisoned_outputs(), launch.counted() as launched:
        y, mean, rstd = pooled_norm.pooled_norm_forward(x, weight, bias, *pooled, 1e-5, dtype)
        found = pooled_norm.pooled_norm_backward(dy, x, weight, bias, mean, rstd, *pooled)
        again = pooled_norm.pooled_norm_backward(dy, x, weight, bias, mean, rstd, *pooled)
    assert launched == ["pooled_norm.forward._forward"] + 2 * ["pooled_norm.backward._backward"]
    with ops.use("torch"):
        of_torch, *kept = unfused.pooled_norm_forward(x, weight, bias, *pooled, 1e-5, dtype)
        plain = unfused.pooled_norm_backward(dy, x, weight, bias, *kept, *pooled)
        wide = [t.double() for t in (x, weight, bias)]
        true_y, *kept = unfused.pooled_norm_forward(*wide, *pooled, 1e-5, torch.float64)
        truth = unfused.pooled_norm_backward(dy.double(), *wide, *kept, *pooled)
    assert_as_good_as_torch(y, of_torch, true_y, width, "pooled")
    for name, own, same, torch_own, true in zip(
        ("dx", "dweight", "dbias"), found, again, plain, truth, strict=True
    ):
        assert torch.equal(own, same), "another run, other bits"
        assert_as_good_as_torch(own, torch_own, true, width if name == "dx" else batch * count, name)
        if name != "dx":
            assert_zero_outside(own, (width,), name)
    outside = torch.ones(count, dtype=torch.bool)
    outside[slice(*pooled)] = False
    assert not found[0][:, outside].any()


@pytest.mark.parametrize("programs", [1, 3, 64])
def test_bits_do_not_depend_on_the_run(programs, device, monkeypatch):
    x, weight, bias, dy = inputs(3, 25, 40, 48, torch.float32, torch.float32, device)
    monkeypatch.setattr(launch, "multiprocessors", lambda _: programs)
    results = []
    with tiles.constrained(norm_programs=programs, norm_rows=4):
        for _ in range(2):
            y, mean, rstd = pooled_norm.pooled_norm_forward(x, weight, bias, 1, 25)
            results.append((y, *pooled_norm.pooled_norm_backward(dy, x, weight, bias, mean, rstd, 1, 25)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert torch.allclose(results[0][3][:40], dy.sum(0), atol=1e-5)


@needs_interpreter
def test_every_element_is_written_once(device):
    x, weight, bias, dy = inputs(3, 9, 40, 80, torch.float32, torch.float32, device)
    with recorded_stores() as stores, tiles.constrained(norm_programs=3, norm_rows=4):
        y, mean, rstd = pooled_norm.pooled_norm_forward(x, weight, bias, 0, 9)
        found = pooled_norm.pooled_norm_backward(dy, x, weight, bias, mean, rstd, 0, 9)
    names = ("pooled", "mean", "rstd", "dx", "dweight", "dbias")
    for name, result in zip(names, (y, mean, rstd, *found), strict=True):
        assert_written_once(stores, result, name)


def test_a_row_whose_squares_overflow_is_not_finite(device):
    """As in LayerNorm alone; the other images keep their bits."""
    x, weight, bias, _ = inputs(3, 5, 24, 32, torch.float32, torch.float32, device)
    usual, *_ = pooled_norm.pooled_norm_forward(x, weight, bias, 1, 5)
    x[1, 2] *= 1e20
    found, *_ = pooled_norm.pooled_norm_forward(x, weight, bias, 1, 5)
    assert not found[1].isfinite().any() and torch.equal(found[::2], usual[::2])


def test_the_public_operation_takes_the_kernels_where_layer_norm_does(device):
    """The backward pass is that of the forward's backend; a frozen shift; no second derivative."""
    x, weight, bias, dy = inputs(2, 6, 12, 16, torch.float32, torch.float32, device)
    x, weight = x.clone().requires_grad_(), weight.requires_grad_()
    with poisoned_outputs(), launch.counted() as launched:
        with ops.use("triton"):
            y = ops.pooled_norm(x, weight, bias, (1, 6))
        found = torch.autograd.grad(y, (x, weight), dy, retain_graph=True)
        with pytest.raises(GrowtasError, match="pooled_norm has no second derivative"):
            torch.autograd.grad(y, x, dy, create_graph=True)
    assert launched == ["pooled_norm.forward._forward", "pooled_norm.backward._backward"]
    with ops.use("torch"):
        z = ops.layer_norm(x, weight, bias)[:, 1:].mean(1)
        wanted = torch.autograd.grad(z, (x, weight), dy)
    for own, plain in zip((y, *found), (z, *wanted), strict=True):
        torch.testing.assert_close(own, plain)


def test_no_images(device):
    x, weight, bias, dy = inputs(0, 4, 12, 16, torch.float32, torch.float32, device)
    with poisoned_outputs():
        y, mean, rstd = pooled_norm.pooled_norm_forward(x, weight, bias, 1, 4)
        dx, *sums = pooled_norm.pooled_norm_backward(dy, x, weight, bias, mean, rstd, 1, 4)
    assert y.shape == (0, 12) and dx.shape == x.shape and not any(each.any() for each in sums)


def test_refuses_what_it_cannot_pool(device):
    x, weight, bias, dy = inputs(2, 4, 12, 16, torch.float32, torch.float32, device)
    with pytest.raises(UsageError, match="Tokens 1 to 4 were to be pooled, but an image has 4"):
        pooled_norm.pooled_norm_forward(x, weight, bias, 1, 5)
    with pytest.raises(UsageError, match=r"pooled_norm got tokens=\(1, 5\) of 4"):
        ops.pooled_norm(x, weight, bias, (1, 5))
    with pytest.raises(UsageError, match="17 channels needs weight and bias"):
        pooled_norm.pooled_norm_forward(torch.ones(2, 4, 17, device=device), weight, bias, 1, 4)
    _, mean, rstd = pooled_norm.pooled_norm_forward(x, weight, bias, 1, 4)
    with pytest.raises(UsageError, match="same forward pass"):
        pooled_norm.pooled_norm_backward(dy, x, weight, bias, mean[1:], rstd, 1, 4)
