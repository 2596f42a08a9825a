"""GELU and its slope as kernels inline them, against fp64 and beside torch's own in fp32."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from growtas.kernels.common.gelu import gelu, gelu_and_slope


@triton.jit
def _both(h_ptr, a_ptr, alone_ptr, slope_ptr, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    h = tl.load(h_ptr + at)
    a, slope = gelu_and_slope(h)
    tl.store(a_ptr + at, a)
    tl.store(alone_ptr + at, gelu(h))
    tl.store(slope_ptr + at, slope)


def _run(h: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
    """gelu as it comes with the slope, gelu alone, and the slope; h has a multiple of 1024 entries."""
    h = h.to(device, torch.float32)
    out = tuple(torch.full_like(h, float("nan")) for _ in range(3))
    _both[(h.numel() // 1024,)](h, *out, SIZE=1024)
    return tuple(tensor.cpu() for tensor in out)


def test_gelu_and_slope_err_no_more_than_twice_what_torch_does(device):
    near, far = torch.linspace(-1, 1, 16 * 1024), torch.linspace(-20, 20, 48 * 1024)
    h = torch.cat([near, far])
    a, alone, slope = _run(h, device)
    exact = h.double().requires_grad_()
    wanted = torch.nn.functional.gelu(exact)
    wanted.sum().backward()
    beside = h.clone().requires_grad_()
    torchs = torch.nn.functional.gelu(beside)
    torchs.sum().backward()
    for ours, theirs, truth in (
        (a, torchs, wanted),
        (alone, torchs, wanted),
        (slope, beside.grad, exact.grad),
    ):
        error = (ours.double() - truth).abs().max().item()
        allowed = 2 * (theirs.detach().double() - truth).abs().max().item()
        assert error <= min(allowed, 1e-6), (error, allowed)


def test_gelu_keeps_what_is_not_finite_or_far_out(device):
    far = [math.inf, -math.inf, math.nan, 3e38, -3e38, 1e5, -1e5, 0.0]
    a, alone, slope = _run(torch.tensor(far).repeat(1024 // len(far)), device)
    wanted = torch.tensor([math.inf, 0.0, math.nan, 3e38, 0.0, 1e5, 0.0, 0.0])
    for ours in (a, alone):
        torch.testing.assert_close(ours[: len(far)], wanted, equal_nan=True, rtol=0, atol=0)
    wanted = torch.tensor([1.0, 0.0, math.nan, 1.0, 0.0, 1.0, 0.0, 0.5])
    torch.testing.assert_close(slope[: len(far)], wanted, equal_nan=True, rtol=0, atol=1e-6)
