"""GELU in C++: against fp64, inside its arrays, the same bits for any number of threads."""

from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F

from growtas import native
from growtas.ops.linear import cpu

pytestmark = [
    pytest.mark.skipif(not native.status("cpu").ok, reason="growtas._cpu was not built"),
    pytest.mark.usefixtures("level"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def guarded(values: torch.Tensor) -> torch.Tensor:
    """The values, contiguous, with NaN before and after them in memory."""
    buffer = torch.full((values.numel() + 64,), float("nan"), dtype=values.dtype)
    inside = buffer[32 : 32 + values.numel()].view(values.shape)
    return inside.copy_(values)


def surroundings_are_untouched(tensor: torch.Tensor) -> bool:
    whole = tensor.untyped_storage()
    buffer = torch.empty(0, dtype=tensor.dtype).set_(whole)
    return bool(buffer[:32].isnan().all() and buffer[-32:].isnan().all())


def assert_as_good(got: torch.Tensor, torch_result: torch.Tensor, truth: torch.Tensor) -> None:
    """At most twice the error of torch in the same dtype, and a unit in the last place of fp32."""
    error, allowed = (got.double() - truth).abs(), (torch_result.double() - truth).abs()
    floor = torch.finfo(torch.float32).eps * truth.abs().max()
    assert error.max() <= 2 * allowed.max() + floor, f"{error.max():.3g} against {allowed.max():.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 15), (3, 16), (5, 37), (60, 756)])
def test_matches_fp64(dtype, shape):
    torch.manual_seed(shape[1])
    h, da = guarded((torch.randn(shape) * 3).to(dtype)), guarded(torch.randn(shape).to(dtype))
    h64, da64 = h.double(), da.double()
    plain = torch.ops.aten.gelu_backward(da, h)
    a = cpu.gelu(h)
    assert_as_good(a, F.gelu(h), F.gelu(h64))
    again = cpu.gelu_backward_(da, h)
    assert torch.equal(again, a)
    assert_as_good(da, plain, torch.ops.aten.gelu_backward(da64, h64))
    assert surroundings_are_untouched(h) and surroundings_are_untouched(da)


def test_every_size_of_argument():
    h = torch.cat([torch.linspace(-30, 30, 200_001), torch.tensor([0.0, -0.0, 1e-30, -1e30, 1e30])])
    truth = F.gelu(h.double())
    assert_as_good(cpu.gelu(h), F.gelu(h), truth)
    ones = torch.ones_like(h)
    plain = torch.ops.aten.gelu_backward(ones, h)
    cpu.gelu_backward_(ones, h)
    inside = h.abs() < 1e3  # beyond, phi underflows to 0 and torch multiplies it by h
    exact = torch.ops.aten.gelu_backward(torch.ones_like(truth), h.double())
    assert_as_good(ones[inside], plain[inside], exact[inside])
    assert cpu.gelu(torch.tensor([float("nan")])).isnan()


def test_the_same_bits_for_any_number_of_threads():
    h, da = torch.randn(300, 257), torch.randn(300, 257)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            gradient = da.clone()
            results.append((cpu.gelu_backward_(gradient, h), gradient))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("scaled", [False, True])
def test_the_linear_layers_around_it_equal_the_reference(scaled):
    torch.manual_seed(0)
    x, w1, b1, w2 = torch.randn(12, 10), torch.randn(24, 16), torch.randn(24), torch.randn(16, 24)
    a, h = cpu.linear_gelu_forward(x, w1, b1, 20)
    for got, wanted in zip((a, h), reference.linear_gelu_forward(x, w1, b1, 20), strict=True):
        torch.testing.assert_close(got, wanted)
    dy, scale = torch.randn(12, 10), torch.tensor([0.0, 2.0, 1.0]) if scaled else None
    got = cpu.linear_gelu_backward_input(dy, w2, h, scale, 4)
    wanted = reference.linear_gelu_backward_input(dy, w2, h, scale, 4)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
