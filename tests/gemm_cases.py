"""Shared by tests of the CUDA GEMMs: numbers surrounded by NaN, and the rule by which a kernel passes.

Truth is the reference in fp64; a kernel's error may be twice that of the reference in the kernel's dtypes.
"""

from __future__ import annotations

import math

import reference
import torch

from growtas.ops.linear import cuda as linear_cuda
from growtas.ops.qkv import cuda as qkv_cuda

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NAN = float("nan")


class Inputs:
    """Normal numbers in surroundings of NaN, always the same."""

    def __init__(self, device: str, seed: int = 0):
        self.device, self.generator = device, torch.Generator().manual_seed(seed)

    def rows(self, rows: int, width: int, dtype: torch.dtype, padding=(8, 8)) -> torch.Tensor:
        """(rows, width), `padding` elements of NaN before and after each row, and a row before and after."""
        before, after = padding
        memory = torch.full((rows + 2, before + width + after), NAN, dtype=dtype)
        memory[1:-1, before : before + width] = torch.randn(rows, width, generator=self.generator)
        return memory.to(self.device)[1:-1, before : before + width]

    def weight(self, active, full, dtype: torch.dtype, padding=(0, 0)) -> torch.Tensor:
        """(full) of which [:active] holds numbers; `padding` as above."""
        before, after = padding
        memory = torch.full((full[0] + 2, before + full[1] + after), NAN, dtype=dtype)
        memory[1 : 1 + active[0], before : before + active[1]] = (
            torch.randn(active, generator=self.generator) / active[1] ** 0.5
        )
        return memory.to(self.device)[1:-1, before : before + full[1]]

    def bias(self, active: int, full: int, dtype: torch.dtype) -> torch.Tensor:
        memory = torch.full((full + 2,), NAN, dtype=dtype)
        memory[1 : 1 + active] = torch.randn(active, generator=self.generator)
        return memory.to(self.device)[1:-1]

    def scale(self, images: int) -> torch.Tensor:
        """Drop-path factors: some images are dropped."""
        kept = torch.rand(images, generator=self.generator) < 0.7
        return (kept / 0.7).to(self.device)


def wide(arguments):
    """The same arguments in fp64, on the CPU."""

    def widened(a):
        if isinstance(a, torch.Tensor):
            return a.cpu().double()
        return torch.float64 if isinstance(a, torch.dtype) else a

    return [widened(a) for a in arguments]


def calm(argument):
    """The same argument with zeros in the place of NaN.

    A peer may multiply what it reads beyond a row by zero, as torch's bfloat16 GEMM does with padded rows
    on a processor with AMX.
    """
    return (
        argument.cpu().nan_to_num(0.0, math.inf, -math.inf)
        if isinstance(argument, torch.Tensor)
        else argument
    )


def assert_accurate(name: str, *arguments, active: dict[int, tuple[int, ...]] | None = None) -> tuple:
    """Run an operation and compare each result with the reference of the same name.

    Args:
        name: of the operation.
        arguments: of it.
        active: of results that are gradients of parameters, by position, the slice outside of which they
            must be zero.

    Returns:
        The results.
    """
    results = getattr(qkv_cuda if name.startswith("qkv") else linear_cuda, name)(*arguments)
    truth = getattr(reference, name)(*wide(arguments))
    peer = getattr(reference, name)(*map(calm, arguments))
    alone = isinstance(results, torch.Tensor)
    compared = [(results, truth, peer)] if alone else list(zip(results, truth, peer, strict=True))
    for i, (got, want, same) in enumerate(compared):
        if got is None:
            assert want is None
            continue
        label, got = f"{name}, result {i}", got.cpu()
        assert got.shape == want.shape and got.dtype == same.dtype and got.is_contiguous(), label
        if active and i in active:
            inside = tuple(slice(size) for size in active[i])
            outside = got.clone()
            outside[inside] = 0
            assert torch.equal(outside, torch.zeros_like(outside)), f"{label}, outside the slice"
            got, want, same = got[inside], want[inside], same[inside]
        assert got.isfinite().all(), label
        error, peer_error = (got.double() - want).abs(), (same.double() - want).abs()
        if got.numel():
            largest = max(want.abs().max().item(), 1e-3)
            floor = torch.finfo(FP32).eps * 20 * largest
            rounding = torch.finfo(got.dtype).eps * largest  # of what goes in and comes out, once each
            most = max(2 * peer_error.max().item(), rounding) + floor
            assert error.max() <= most, (label, error.max(), peer_error.max())
            rms, peer_rms = (e.square().mean().sqrt() for e in (error, peer_error))
            assert rms <= 2 * peer_rms + floor, (label, rms, peer_rms)
    return (results,) if alone else results


def check_linear(
    device, m, n, k, dtypes, padding=(8, 8), weight_padding=(0, 0), tokens=1, scaled=False, seed=0
):
    """Every operation of the sliced linear layer, forward and backward."""
    dtype, parameter, stream = dtypes
    make = Inputs(device, seed)
    full = (n + 5, k + 11)
    x, dy = make.rows(m, k, dtype, padding), make.rows(m, n, dtype, padding)
    weight, bias = make.weight((n, k), full, parameter, weight_padding), make.bias(n, full[0], parameter)
    scale = make.scale(m // tokens) if scaled else None
    gradients = {0: (n, k), 1: (n,)}
    assert_accurate("linear_forward", x, weight, bias, n)
    assert_accurate("linear_forward", x, weight, None, n)
    assert_accurate("linear_gelu_forward", x, weight, bias, n)
    residual = make.rows(m, n, stream, padding)
    assert_accurate("linear_residual_forward", x, weight, bias, residual, scale, tokens)
    assert_accurate("linear_backward_input", dy, weight, k, scale, tokens)
    assert_accurate("linear_gelu_backward_input", dy, weight, x, scale, tokens)
    assert_accurate("linear_backward_weight", dy, x, weight, bias, scale, tokens, active=gradients)
    assert_accurate("linear_backward_weight", dy, x, weight, None, scale, tokens, active=gradients)
    if stream is not dtype:  # the gradient of a residual stream in fp32, products in 16 bits
        dy = make.rows(m, n, stream, padding)
        assert_accurate("linear_backward_input", dy, weight, k, scale, tokens, dtype)
        assert_accurate("linear_gelu_backward_input", dy, weight, x, scale, tokens)
        assert_accurate("linear_backward_weight", dy, x, weight, bias, scale, tokens, active=gradients)


def check_qkv(device, images, tokens, d, heads, head_dim, dtypes, layout, padding=(8, 8), seed=0):
    """Every operation of the sliced QKV layer."""
    dtype, parameter, _ = dtypes
    make = Inputs(device, seed)
    active, full = 3 * heads * head_dim, (3 * (heads + 1) * head_dim, d + 13)
    x = make.rows(images * tokens, d, dtype, padding).view(images, tokens, d)
    weight, bias = make.weight((active, d), full, parameter), make.bias(active, full[0], parameter)
    dqkv = make.rows(3 * images * heads * tokens, head_dim, dtype, (0, 0)).view(3, images, heads, tokens, -1)
    assert_accurate("qkv_forward", x, weight, bias, heads, head_dim, layout)
    assert_accurate("qkv_forward", x, weight, None, heads, head_dim, layout)
    assert_accurate("qkv_backward_input", dqkv, weight, d)
    gradients = {0: (active, d), 1: (active,)}
    assert_accurate("qkv_backward_weight", dqkv, x, weight, bias, layout, active=gradients)
    assert_accurate("qkv_backward_weight", dqkv, x, weight, None, layout, active=gradients)
