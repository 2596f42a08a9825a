"""Every operation as a registered operator: opcheck, fp64 gradcheck, FLOP formulas, torch.compile."""

from __future__ import annotations

import random

import pytest
import torch
from thinning import thinned
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import growtas
from growtas.nn import Block
from growtas.ops import dispatch
from growtas.ops.registry import FUNCTIONS

HEADS, HEAD_DIM, GRID = 2, 3, (2, 3)
TOKENS = GRID[0] * GRID[1] + 1


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def _arguments(name: str, dtype: torch.dtype = torch.float32) -> tuple:
    """Small arguments of an operator: slices narrower than the weights, clamped distances."""
    torch.manual_seed(0)
    if name == "layer_norm":
        return _leaf(2, 3, 5, dtype=dtype), _leaf(8, dtype=dtype), _leaf(8, dtype=dtype), 1e-5, None
    if name == "linear":
        return _leaf(2, 3, 5, dtype=dtype), _leaf(9, 8, dtype=dtype), _leaf(9, dtype=dtype), 7
    if name.startswith("qkv"):
        x, weight, bias = _leaf(2, 3, 5, dtype=dtype), _leaf(27, 8, dtype=dtype), _leaf(27, dtype=dtype)
        return x, weight, bias, HEADS, HEAD_DIM, name.removeprefix("qkv-")
    if name.startswith("mlp"):
        stream, scale = _leaf(2, 3, 5, dtype=dtype), torch.tensor([0.0, 2.0], dtype=dtype)
        fc1 = _leaf(9, 8, dtype=dtype), _leaf(9, dtype=dtype)
        fc2 = _leaf(8, 9, dtype=dtype), _leaf(8, dtype=dtype)
        norm = _leaf(8, dtype=dtype), _leaf(8, dtype=dtype)
        return stream, *norm, *fc1, *fc2, scale if name == "mlp-scaled" else None, 7, 1e-5, dtype
    tables = (_leaf(4, HEAD_DIM, dtype=dtype) for _ in range(4))  # clamp 1: distances of 2 are clamped
    if name.startswith("attention_branch"):
        stream, scale = _leaf(2, TOKENS, 5, dtype=dtype), torch.tensor([2.0, 0.0], dtype=dtype)
        norm = _leaf(8, dtype=dtype), _leaf(8, dtype=dtype)
        qkv, proj = (_leaf(27, 8, dtype=dtype), _leaf(27, dtype=dtype)), (_leaf(8, 9, dtype=dtype), None)
        options = (scale, HEADS, HEAD_DIM, *GRID, name.removeprefix("attention_branch-"), 1e-5, dtype)
        return stream, *norm, *qkv, *tables, *proj, *options
    return _leaf(3, 2, HEADS, TOKENS, HEAD_DIM, dtype=dtype), *tables, *GRID


OPERATORS = {
    "layer_norm": (torch.ops.growtas.layer_norm, FUNCTIONS["layer_norm"]),
    "linear": (torch.ops.growtas.linear, FUNCTIONS["linear"]),
    "qkv-interleaved": (torch.ops.growtas.qkv, FUNCTIONS["qkv"]),
    "qkv-published": (torch.ops.growtas.qkv, FUNCTIONS["qkv"]),
    "relative_attention": (torch.ops.growtas.relative_attention, FUNCTIONS["relative_attention"]),
    "attention_branch-interleaved": (torch.ops.growtas.attention_branch, FUNCTIONS["attention_branch"]),
    "attention_branch-published": (torch.ops.growtas.attention_branch, FUNCTIONS["attention_branch"]),
    "mlp": (torch.ops.growtas.mlp, FUNCTIONS["mlp"]),
    "mlp-scaled": (torch.ops.growtas.mlp, FUNCTIONS["mlp"]),
}
ONE_FORM = [name for name in OPERATORS if not name.endswith(("-published", "-scaled"))]
"""Each operator once: the others are these with other values of the same arguments."""


@pytest.mark.parametrize("name", thinned(OPERATORS, fast=ONE_FORM))
def test_opcheck(name):
    with dispatch.use("torch"):
        torch.library.opcheck(OPERATORS[name][0].default, _arguments(name))


@pytest.mark.parametrize("name", OPERATORS)
def test_gradcheck_in_float64(name):
    def run(*args):
        out = OPERATORS[name][1].apply(*args)
        return out[0] if isinstance(out, tuple) else out

    # A branch is made of the other operators: a random direction of its Jacobian, theirs whole.
    fast = name.startswith("attention_branch")
    with dispatch.use("torch"):
        assert torch.autograd.gradcheck(run, _arguments(name, torch.float64), fast_mode=fast)


@pytest.mark.parametrize("bias", [True, False])
def test_operator_and_function_agree(bias):
    """Eager calls bypass the dispatcher: both ways must give the same bits."""
    x, weight, shift, width = _arguments("linear")
    shift = shift if bias else None
    results = []
    for run in (FUNCTIONS["linear"].apply, torch.ops.growtas.linear):
        inputs = [t for t in (x, weight, shift) if t is not None]
        y = run(x, weight, shift, width)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_flop_counter_sees_the_formulas():
    space = growtas.load_space("digits")
    net, subnet = growtas.Supernet(space, num_classes=10), space.largest()
    images = torch.randn(2, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        net(images, subnet).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    hidden, d, q = subnet.hidden_dims[0], subnet.embed_dim, subnet.num_heads[0] * space.head_dim
    rows = 2 * space.num_tokens
    attention = 2 * rows * 4 * q * d + 2 * 2 * rows * q * (space.num_tokens + sum(net.dims.grid) + 1)
    assert counted[torch.ops.growtas.attention_branch] == subnet.depth * attention
    mlp = 2 * rows * 2 * d * hidden
    assert counted[torch.ops.growtas.mlp] == subnet.depth * mlp
    assert counted[torch.ops.growtas.mlp_backward] == 2 * subnet.depth * mlp
    products = 2 * space.num_patches * 4 * d + 2 * d * 10
    assert counted[torch.ops.growtas.linear] == 2 * products
    # every product once for the input's and once for the weight's gradient, but the images need none
    patch_flops = 2 * 2 * space.num_patches * 4 * d
    assert counted[torch.ops.growtas.linear_backward] == 2 * 2 * products - patch_flops
    per_branch = 2 * 2 * rows * 4 * q * d + 5 * 2 * rows * q * (space.num_tokens + sum(net.dims.grid) + 1)
    assert counted[torch.ops.growtas.attention_branch_backward] == subnet.depth * per_branch


@pytest.mark.parametrize("count", [15, pytest.param(50, marks=pytest.mark.slow)])
def test_compile_is_bounded_over_random_subnets(count):
    """One block under torch.compile(fullgraph=True): a few graphs serve every architecture."""
    space = growtas.load_space("autoformer-tiny")
    torch.manual_seed(0)
    block = Block(256, 4, 1024, 64, 14, "interleaved")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True)
    rng = random.Random(0)
    for _ in range(count):
        subnet = space.sample(rng)
        x = torch.randn(2, 5, subnet.embed_dim, requires_grad=True)
        arguments = (subnet.num_heads[0], subnet.hidden_dims[0], (2, 2))
        expected, got = block(x, *arguments), compiled(x, *arguments)
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6)
        wanted = torch.autograd.grad(expected.sum(), block.mlp.fc1.weight)[0]
        assert torch.allclose(
            torch.autograd.grad(got.sum(), block.mlp.fc1.weight)[0], wanted, rtol=1e-3, atol=1e-5
        )
    assert counter.frame_count <= 3, f"{counter.frame_count} compiles over {count} subnets"


def test_whole_net_traces_without_graph_breaks():
    space = growtas.load_space("digits")
    net, subnet = growtas.Supernet(space, num_classes=10).eval(), space.smallest()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(compiled(images, subnet), net(images, subnet), atol=1e-6)
