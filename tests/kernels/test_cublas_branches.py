"""The cublas backend's branches beside the torch backend's: the same GEMMs on sorted shadows, other glue."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import GPU, assert_as_good_as_torch, needs_gpu, parameter, poisoned_outputs

from growtas.ops.dispatch import use
from growtas.ops.linear import cublas as linear_cublas
from growtas.ops.linear import reference as linear_reference
from growtas.ops.mlp import cublas as mlp_cublas
from growtas.ops.mlp import unfused as mlp_unfused
from growtas.ops.mlp.weights import MLPWeights
from growtas.ops.norm_qkv import cublas as norm_qkv_cublas
from growtas.ops.norm_qkv import unfused as norm_qkv_unfused
from growtas.shadow import Shadows

DTYPES = [
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16", marks=(needs_gpu, pytest.mark.cuda)),
]
B, N = (128, 197) if GPU else (2, 10)


def _wide(argument):
    if isinstance(argument, MLPWeights):
        return MLPWeights(*map(_wide, argument))
    return argument.double() if isinstance(argument, torch.Tensor) else argument


def truth_of(function, *arguments):
    """The composition of torch calls in fp64."""
    wide = [_wide(a) for a in arguments]
    wide = [torch.float64 if isinstance(a, torch.dtype) else a for a in wide]
    with use("torch"):
        return function(*wide)


def compare(names, own, torch_way, truth, reductions):
    for name, value, other, exact, reduction in zip(names, own, torch_way, truth, reductions, strict=True):
        assert_as_good_as_torch(value, other.to(value.dtype), exact, reduction, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("width, hidden", [(216, 756), (24, 60)])
def test_mlp(dtype, scaled, width, hidden, device):
    torch.manual_seed(0)
    x = torch.randn(B, N, width, device=device)
    dy = torch.randn(B, N, width, device=device)
    full, full_hidden = width + 40, hidden + 12
    norm = [parameter((full,), (width,), torch.float32, device, 1.0) for _ in range(2)]
    w1 = parameter((full_hidden, full), (hidden, width), torch.float32, device, 0.1)
    w2 = parameter((full, full_hidden), (width, hidden), torch.float32, device, 0.1)
    b1 = parameter((full_hidden,), (hidden,), torch.float32, device, 0.1)
    b2 = parameter((full,), (width,), torch.float32, device, 0.1)
    scale = torch.rand(B, device=device) if scaled else None
    shadows = Shadows([w1, b1, w2, b2])
    shadows.refresh(dtype)
    weights = MLPWeights(*norm, w1, b1, w2, b2, scale)
    forward = (x, weights, hidden, 1e-5, dtype)
    with poisoned_outputs():
        y, mean, rstd, h = mlp_cublas.mlp_forward(*forward)
    assert h.stride(0) % 8 == 0
    with use("torch"):
        expected = mlp_unfused.mlp_forward(*forward)
    truth = truth_of(mlp_unfused.mlp_forward, *forward)
    compare(("y", "mean", "rstd", "h"), (y, mean, rstd, h), expected, truth, (hidden, width, width, width))

    with poisoned_outputs():
        gradients = mlp_cublas.mlp_backward(dy, x, weights, mean, rstd, h, hidden, dtype)
        again = mlp_cublas.mlp_backward(dy, x, weights, mean, rstd, h[:0], hidden, dtype)
    with use("torch"):
        expected = mlp_unfused.mlp_backward(dy, x, weights, *expected[1:], hidden, dtype)
    exact = [truth[i] if i < 3 else h for i in range(1, 4)]
    truth = truth_of(mlp_unfused.mlp_backward, dy, x, weights, *exact, hidden, dtype)
    names = ("dx", "dnorm_weight", "dnorm_bias", "dw1", "db1", "dw2", "db2")
    compare(names, gradients, expected, truth, (hidden, *[B * N] * 6))
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True)), "h made again differs"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [True, False])
def test_all_gradients_of_a_linear_layer(dtype, scaled, device):
    torch.manual_seed(0)
    width, inner = 216, 64
    dy = torch.randn(B * N, width, device=device)
    x = torch.randn(B * N, inner, device=device).to(dtype)
    weight = parameter((256, 96), (width, inner), torch.float32, device, 0.1)
    bias = parameter((256,), (width,), torch.float32, device, 0.1)
    scale = torch.rand(B, device=device) if scaled else None
    shadows = Shadows([weight, bias])
    shadows.refresh(dtype)
    arguments = (dy, x, weight, bias, scale, N)
    with poisoned_outputs():
        own = linear_cublas.linear_backward(*arguments)
    with use("torch"):
        expected = linear_reference.linear_backward(*arguments)
    truth = truth_of(linear_reference.linear_backward, *arguments)
    compare(("dx", "dweight", "dbias"), own, expected, truth, (width, B * N, B * N))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["interleaved", "published"])
def test_norm_qkv(dtype, layout, device):
    torch.manual_seed(0)
    width, heads, head_dim, full_heads = 48, 2, 16, 3
    active, rows = 3 * heads * head_dim, 3 * full_heads * head_dim
    x = torch.randn(B, N, width, device=device)
    residual = torch.randn(B, N, width, device=device)
    norm = [parameter((width + 16,), (width,), torch.float32, device, 1.0) for _ in range(2)]
    weight = parameter((rows, width + 16), (active, width), torch.float32, device, 0.1)
    bias = parameter((rows,), (active,), torch.float32, device, 0.1)
    head_dims = {0: head_dim, 1: head_dim} if layout == "interleaved" else {0: head_dim}
    shadows = Shadows([weight, bias], head_dims, sort=True)
    forward = (x, *norm, 1e-5, weight, bias, heads, head_dim, layout, dtype)
    with use("torch"):
        expected = norm_qkv_unfused.norm_qkv_forward(*forward)
    truth = truth_of(norm_qkv_unfused.norm_qkv_forward, *forward)
    shadows.refresh(dtype)
    with poisoned_outputs():
        qkv, mean, rstd = norm_qkv_cublas.norm_qkv_forward(*forward)
    assert qkv.stride(-1) == 1 and qkv.shape == (3, B, heads, N, head_dim)
    compare(("qkv", "mean", "rstd"), (qkv, mean, rstd), expected, truth, (width, width, width))

    dqkv = torch.randn(qkv.shape, device=device).to(dtype)
    backward = (x, mean, rstd, *norm, weight, bias, layout, residual)
    with poisoned_outputs():
        own = norm_qkv_cublas.norm_qkv_backward(dqkv, *backward)
        in_place = norm_qkv_cublas.norm_qkv_backward(torch.empty_like(qkv).copy_(dqkv), *backward)
    shadows = None  # the torch backend on the weights themselves
    with use("torch"):
        expected = norm_qkv_unfused.norm_qkv_backward(dqkv, *backward)
    truth = truth_of(norm_qkv_unfused.norm_qkv_backward, dqkv, *backward)
    names = ("dx", "dnorm_weight", "dnorm_bias", "dweight", "dbias")
    compare(names, own, expected, truth, (active, *[B * N] * 4))
    assert all(torch.equal(a, b) for a, b in zip(own, in_place, strict=True))
