"""The epilogues of sliced linear: GELU, residual, factors per image, gradients that are added to."""

from __future__ import annotations

import pytest
import reference
import torch
from kernel_cases import (
    GPU,
    LARGE_TILES,
    assert_as_good_as_torch,
    assert_written_once,
    assert_zero_outside,
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
    rows,
    with_dtypes,
)

from growtas.errors import UsageError
from growtas.kernels import linear
from growtas.kernels.common import launch, tiles

# images, tokens, in, out, shared in, shared out, gap between rows
CASES = [
    pytest.param(2, 17, 216, 308, 256, 512, 0, id="fc1-216-308"),  # aligned to 4 elements, as T's 756
    pytest.param(3, 11, 424, 240, 512, 256, 8, id="fc2-424-240"),
    pytest.param(2, 20, 160, 192, 192, 192, 0, id="proj"),
    pytest.param(1, 9, 272, 320, 320, 320, 0, id="proj-shared-edge"),
    pytest.param(3, 7, 37, 13, 50, 41, 3, id="primes"),
    pytest.param(1, 1, 40, 24, 48, 48, 0, id="one-row"),
]
if GPU:
    CASES += [
        pytest.param(128, 197, 216, 756, 256, 1024, 0, id="T-fc1-batch-128"),
        pytest.param(128, 197, 840, 240, 1024, 256, 0, id="T-fc2-batch-128"),
        pytest.param(128, 197, 2496, 624, 2560, 640, 0, id="B-fc2-batch-128"),
    ]


def _inputs(b, tokens, k, n, k_max, n_max, gap, dtype, parameter_dtype, device):
    torch.manual_seed(b * 1000 + k)
    m = b * tokens
    x, dy = rows(m, k, dtype, device, gap), rows(m, n, torch.float32, device, gap)
    weight = parameter((n_max, k_max), (n, k), parameter_dtype, device, 0.05)
    bias = parameter((n_max,), (n,), parameter_dtype, device, 1.0)
    scale = torch.tensor([0.0, 1.25, 1.0, 1.25] * b, device=device)[
        -b:
    ]  # the first of three images is dropped
    return x, weight, bias, dy, scale


def _wide(*tensors):
    return [tensor.double() for tensor in tensors]


@pytest.mark.parametrize("b, tokens, k, n, k_max, n_max, gap, dtype, parameter_dtype", with_dtypes(CASES))
def test_forward_matches_fp64(b, tokens, k, n, k_max, n_max, gap, dtype, parameter_dtype, device):
    x, weight, bias, stream, scale = _inputs(
        b, tokens, k, n, k_max, n_max, gap, dtype, parameter_dtype, device
    )
    with poisoned_outputs(), tiles.constrained(**LARGE_TILES):
        a, h = linear.linear_gelu_forward(x, weight, bias, n)
        streams = {
            (kind, factor is not None): linear.linear_residual_forward(
                x, weight, bias, stream.to(kind), factor, tokens
            )
            for kind in dict.fromkeys((torch.float32, dtype))
            for factor in (scale, None)
        }
    x64, weight64, bias64 = _wide(x, weight, bias)
    plain, truth = (
        reference.linear_gelu_forward(*inputs, n) for inputs in ((x, weight, bias), (x64, weight64, bias64))
    )
    assert_as_good_as_torch(a, plain[0], truth[0], k, "gelu(h)")
    assert_as_good_as_torch(h, plain[1], truth[1], k, "h")
    for (kind, scaled), y in streams.items():
        factor, residual = scale if scaled else None, stream.to(kind)
        plain = reference.linear_residual_forward(x, weight, bias, residual, factor, tokens)
        factor64 = factor.double() if scaled else None
        truth = reference.linear_residual_forward(x64, weight64, bias64, residual.double(), factor64, tokens)
        assert y.dtype is kind
        assert_as_good_as_torch(y, plain, truth, k, f"residual in {kind}, scaled: {scaled}")


@pytest.mark.parametrize("b, tokens, k, n, k_max, n_max, gap, dtype, parameter_dtype", with_dtypes(CASES))
def test_backward_matches_fp64(b, tokens, k, n, k_max, n_max, gap, dtype, parameter_dtype, device):
    """dy in fp32 under 16-bit matmuls, as a residual stream in fp32 hands it over."""
    x, weight, bias, dy, scale = _inputs(b, tokens, k, n, k_max, n_max, gap, dtype, parameter_dtype, device)
    with poisoned_outputs(), tiles.constrained(**LARGE_TILES):
        dx = linear.linear_backward_input(dy, weight, k, scale, tokens, dtype)
        dh, a = linear.linear_gelu_backward_input(dy, weight, x, scale, tokens)
        gradients = {"one pass": linear.linear_backward_weight(dy, x, weight, bias, scale, tokens)}
        with tiles.constrained(splits=3, depth=16):
            gradients["split"] = linear.linear_backward_weight(dy, x, weight, bias, scale, tokens)

    dy64, weight64, x64, bias64, scale64 = _wide(dy, weight, x, bias, scale)
    assert_as_good_as_torch(
        dx,
        reference.linear_backward_input(dy, weight, k, scale, tokens, dtype),
        reference.linear_backward_input(dy64, weight64, k, scale64, tokens),
        n,
        "dx",
    )
    plain = reference.linear_gelu_backward_input(dy, weight, x, scale, tokens)
    truth = reference.linear_gelu_backward_input(dy64, weight64, x64, scale64, tokens)
    assert_as_good_as_torch(dh, plain[0], truth[0], n, "dh")
    assert_as_good_as_torch(a, plain[1], truth[1], 1, "gelu(h)")
    plain = reference.linear_backward_weight(dy, x, weight, bias, scale, tokens)
    truth = reference.linear_backward_weight(dy64, x64, weight64, bias64, scale64, tokens)
    for way, (dweight, dbias) in gradients.items():
        assert_zero_outside(dweight, (n, k), f"dweight ({way})")
        assert_zero_outside(dbias, (n,), f"dbias ({way})")
        assert_as_good_as_torch(dweight, plain[0], truth[0], b * tokens, f"dweight ({way})")
        assert_as_good_as_torch(dbias, plain[1], truth[1], b * tokens, f"dbias ({way})")


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_added_to_inside_the_slice_only(splits, with_bias, device):
    x, weight, bias, dy, scale = _inputs(3, 11, 20, 30, 36, 40, 0, torch.float32, torch.float32, device)
    bias = bias if with_bias else None
    with tiles.constrained(rows=16, cols=16, depth=16, splits=splits):
        fresh = linear.linear_backward_weight(dy, x, weight, bias, scale, 11)
        before = (torch.randn(40, 36, device=device), torch.randn(40, device=device) if with_bias else None)
        into = tuple(None if tensor is None else tensor.clone() for tensor in before)
        result = linear.linear_backward_weight(dy, x, weight, bias, scale, 11, into=into)
    assert result[0] is into[0] and result[1] is into[1]
    for one, new, old, active in zip(into, fresh, before, ((30, 20), (30,)), strict=True):
        if one is None:
            continue
        place = tuple(slice(size) for size in active)
        assert torch.equal(one[place], new[place] + old[place])
        outside = torch.ones_like(one, dtype=torch.bool)
        outside[place] = False
        assert torch.equal(one[outside], old[outside])


def test_a_gradient_that_is_added_to_may_be_poisoned_outside(device):
    """Memory outside the slice is neither read nor written."""
    x, weight, bias, dy, _ = _inputs(1, 40, 20, 30, 36, 40, 0, torch.float32, torch.float32, device)
    into = (parameter((40, 36), (30, 20), torch.float32, device, 1.0), torch.zeros(40, device=device))
    before = into[0].clone()
    linear.linear_backward_weight(dy, x, weight, bias, into=into)
    expected = before[:30, :20] + dy.T @ x
    assert torch.allclose(into[0][:30, :20], expected, atol=1e-4)
    assert into[0][30:].isnan().all() and into[0][:, 20:].isnan().all()


def test_results_do_not_depend_on_the_run(device):
    x, weight, bias, dy, scale = _inputs(3, 31, 40, 72, 48, 96, 0, torch.float32, torch.float32, device)

    def run():
        with tiles.constrained(splits=4, depth=16):
            return (
                *linear.linear_gelu_forward(x, weight, bias, 72),
                linear.linear_residual_forward(x, weight, bias, dy, scale, 31),
                *linear.linear_gelu_backward_input(dy, weight, x, scale, 31),
                *linear.linear_backward_weight(dy, x, weight, bias, scale, 31),
            )

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


@needs_interpreter
def test_every_element_is_written_once(device):
    x, weight, bias, dy, scale = _inputs(5, 10, 20, 30, 36, 40, 0, torch.float32, torch.float32, device)
    with tiles.constrained(rows=16, cols=16, depth=16, splits=2), recorded_stores() as stores:
        results = {
            "a and h": linear.linear_gelu_forward(x, weight, bias, 30),
            "y": (linear.linear_residual_forward(x, weight, bias, dy, scale, 10),),
            "dh and a": linear.linear_gelu_backward_input(dy, weight, x, scale, 10),
            "dweight and dbias": linear.linear_backward_weight(dy, x, weight, bias, scale, 10),
        }
    for name, tensors in results.items():
        for tensor in tensors:
            assert_written_once(stores, tensor, name)


def test_each_is_one_launch(device):
    x, weight, bias, dy, scale = _inputs(3, 11, 20, 30, 36, 40, 0, torch.float32, torch.float32, device)
    with launch.counted() as launched, tiles.constrained(splits=3, depth=16):
        linear.linear_gelu_forward(x, weight, bias, 30)
        linear.linear_residual_forward(x, weight, bias, dy, scale, 11)
        linear.linear_gelu_backward_input(dy, weight, x, scale, 11)
        linear.linear_backward_weight(dy, x, weight, bias, scale, 11)
    assert launched == ["linear.forward._forward"] * 2 + ["linear.backward._input", "linear.backward._weight"]


def test_no_images(device):
    weight, bias = torch.ones(32, 24, device=device), torch.ones(32, device=device)
    x, dy, scale = (torch.empty(shape, device=device) for shape in ((0, 20), (0, 30), (0,)))
    with poisoned_outputs():
        assert linear.linear_gelu_forward(x, weight, bias, 30)[1].shape == (0, 30)
        assert linear.linear_residual_forward(x, weight, bias, dy, scale, 7).shape == (0, 30)
        assert linear.linear_gelu_backward_input(dy, weight, x, scale, 7)[0].shape == (0, 20)
        dweight, dbias = linear.linear_backward_weight(dy, x, weight, bias, scale, 7)
    assert (dweight == 0).all() and (dbias == 0).all()
    into = (torch.ones(32, 24, device=device), torch.ones(32, device=device))
    linear.linear_backward_weight(dy, x, weight, bias, into=into)
    assert (into[0] == 1).all() and (into[1] == 1).all()


def test_refuses_what_does_not_fit(device):
    x, weight, bias, dy, scale = _inputs(3, 4, 20, 30, 24, 32, 0, torch.float32, torch.float32, device)
    with pytest.raises(UsageError, match="12 rows are no whole number of images of 5 tokens"):
        linear.linear_residual_forward(x, weight, bias, dy, scale, 5)
    with pytest.raises(UsageError, match=r"3 images need \(3,\) float32"):
        linear.linear_backward_input(dy, weight, 20, scale[:2], 4)
    with pytest.raises(UsageError, match="residual has shape"):
        linear.linear_residual_forward(x, weight, bias, dy[:4], scale, 4)
    with pytest.raises(UsageError, match="h has shape"):
        linear.linear_gelu_backward_input(dy, weight, x[:4], scale, 4)
    with pytest.raises(UsageError, match=r"into\[0\] has shape"):
        linear.linear_backward_weight(dy, x, weight, bias, into=(weight[:30], bias))
    with pytest.raises(UsageError, match="a bias gradient where there is no bias"):
        linear.linear_backward_weight(dy, x, weight, None, into=(weight, bias))
    with pytest.raises(UsageError, match="must be contiguous"):
        linear.linear_backward_weight(
            dy, x, weight, None, into=(torch.ones(32, 48, device=device)[:, :24], None)
        )
