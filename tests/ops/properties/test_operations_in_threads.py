"""Several Python threads at once, each with several OpenMP threads: the bits of one thread alone.

Memory that a kernel keeps per thread, and the barriers of its team, are what this is about: sizes reach
beyond one block of rows, of columns and of depth.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_draws import BF16, FP32

from growtas import ops
from growtas.ops import dispatch

HEADS, E, GRID, WIDTH, HIDDEN = 3, 16, (5, 5), 40, 70
WIDE, DEEP = 1000, 600  # beyond one block of the GEMM's columns and of its depth


def arguments(op: str, images: int, dtype: torch.dtype) -> tuple:
    """A call of an operation, and the tensors that have gradients."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.3).requires_grad_()

    def activations(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    n, channels = GRID[0] * GRID[1] + 1, HEADS * E
    norm, tables = (normal(WIDTH), normal(WIDTH)), tuple(normal(6, E) for _ in range(4))
    qkv, proj = (normal(3 * channels, WIDTH), normal(3 * channels)), (normal(WIDTH, channels), normal(WIDTH))
    fc1, fc2 = (normal(HIDDEN, WIDTH), normal(HIDDEN)), (normal(WIDTH, HIDDEN), normal(WIDTH))
    x = activations(images, n, WIDTH)
    if op == "linear":
        x, fc1 = activations(images * 8, DEEP), (normal(WIDE, DEEP), normal(WIDE))
        return lambda: ops.linear(x, *fc1, WIDE), (x, *fc1)
    if op == "layer_norm":
        return lambda: ops.layer_norm(x, *norm), (x, *norm)
    if op == "qkv":
        return lambda: ops.qkv(x, *qkv, HEADS, E), (x, *qkv)
    if op == "relative_attention":
        heads = activations(3, images, HEADS, n, E)
        return lambda: ops.relative_attention(heads, *tables, GRID), (heads, *tables)
    if op == "mlp":
        return lambda: ops.mlp(x, norm, fc1, fc2, HIDDEN), (x, *norm, *fc1, *fc2)
    if op == "attention_branch":
        found = (x, *norm, *qkv, *tables, *proj)
        return lambda: ops.attention_branch(x, norm, qkv, tables, proj, HEADS, E, GRID), found
    position = activations(1, n + 1, WIDTH)
    return lambda: ops.tokens(x, position[:, :1], position), (x, position)


def bits(call, tensors) -> list[torch.Tensor]:
    y = call()
    return [
        y.detach(),
        *torch.autograd.grad(y, tensors, torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)),
    ]


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(
    "team", [pytest.param(3, id="teams"), pytest.param(1, id="single", marks=pytest.mark.slow)]
)
def test_python_threads_at_once_have_the_bits_of_one(team, dtype):
    """Every operation in every thread, in another order each, on batches of several sizes.

    Teams are of one to three OpenMP threads, or of one (building/sanitize.py).
    """
    names = [name for name in ops.__all__ if name not in ("available", "use")]
    calls = [(name, *arguments(name, images, dtype)) for name in names for images in (1, 3, 6)]
    with dispatch.use("cpu"):
        alone = [bits(call, tensors) for _, call, tensors in calls]
        wrong: list[str] = []
        start = threading.Barrier(4)

        def work(number: int) -> None:
            torch.set_num_threads(1 + number % team)
            start.wait()
            for turn in range(2):
                for i in [(number * 5 + turn + k) % len(calls) for k in range(len(calls))]:
                    name, call, tensors = calls[i]
                    if not all(torch.equal(a, b) for a, b in zip(alone[i], bits(call, tensors), strict=True)):
                        wrong.append(f"{name} in thread {number} of {1 + number % team}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    assert not wrong, wrong
