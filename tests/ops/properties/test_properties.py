"""Every public operation on drawn arguments, harmless and wrong: the numbers of fp64, or one sentence.

Beside the number stands what was read and written: arguments and results lie in guarded memory.
"""

from __future__ import annotations

import inspect
import random
from contextlib import nullcontext

import pytest
import torch
from cuda_on_cpu import emulated
from op_disturbances import DTYPES, GRADIENTS, disturb, gradient
from op_draws import BF16, FP16, FP32, FP64, STRATEGIES, Case, draw, guarded_results, run

from growtas import ops
from growtas.errors import GrowtasError, UsageError
from growtas.ops import addresses, dispatch, one_call
from growtas.ops.linear import cpu
from growtas.ops.mlp import cuda

DRAWS, MANY = 36, 800  # of each operation and backend
CUDA_OPS = ("layer_norm", "linear", "qkv", "mlp")


def test_every_public_operation_is_drawn():
    """One that is new needs a strategy in tests/op_draws.py."""
    public = [name for name in ops.__all__ if "Tensor" in str(inspect.signature(getattr(ops, name)))]
    assert sorted(STRATEGIES) == sorted(public)


def computed(
    case: Case, tensors: dict, wanted: list[str], rng: random.Random, layout: str, wide: bool
) -> list:
    """The result and the gradients of what is wanted, for a gradient of the result in some layout."""
    leaves = {}
    for name, t in tensors.items():
        leaves[name] = t if t is None or name == "scale" else t.detach().requires_grad_(name in wanted)
    y = run(case.op, case.arguments(leaves))
    dy = gradient(y.to(FP32) if wide else y, rng, layout).to(y.dtype)
    found = [y.detach()]
    if y.requires_grad:
        found += torch.autograd.grad(y, [leaves[n] for n in wanted], dy, allow_unused=True)
    return found


def check(case: Case, seed: int, picky: bool, guarded: bool) -> str:
    """Run a case on the backend in force; returns how it ended.

    Args:
        case: arguments, disturbed.
        seed: of what is drawn here.
        picky: whether the kernels may refuse, in a sentence, strides and mixtures of dtypes that others read.
        guarded: whether results lie in guarded memory too.
    """
    rng = random.Random(seed)
    wanted = [n for n in ("x", *case.names()) if n not in case.aliases and rng.random() < 0.7]
    layout = rng.choice(GRADIENTS)
    floating = all(t is None or t.is_floating_point() for t in case.tensors.values())
    try:
        with guarded_results() if guarded else nullcontext(lambda: None) as unharmed:
            got = computed(case, case.tensors, wanted if floating else [], random.Random(seed), layout, False)
    except UsageError as error:
        sentence = str(error)
        assert case.refused or picky, f"refused: {sentence}"
        assert sentence.endswith((".", "?")) and "\n" not in sentence and len(sentence) < 500, sentence
        return "refused"
    finally:
        for buffer, before in case.buffers:
            assert torch.equal(buffer.view(torch.uint8), before.view(torch.uint8)), "an argument was written"
    assert not case.refused, "taken"
    unharmed()
    with dispatch.assigned({}):  # torch
        peer = computed(case, case.values(), wanted, random.Random(seed), layout, False)
        wide = {**case.numbers, "dtype": None, "out_dtype": None}
        double = Case(case.op, case.tensors, {n: wide[n] for n in case.numbers}, case.aliases)
        truth = computed(double, case.values(FP64), wanted, random.Random(seed), layout, True)
    used = [case.numbers.get("dtype"), case.numbers.get("out_dtype")]
    used += [t.dtype for t in case.tensors.values() if t is not None]
    room = 2e-2 if BF16 in used or FP16 in used else 2e-5
    # Terms of the size of other gradients may cancel, and leave their rounding.
    least = max([0.1, *(t.abs().max().item() / 10 for t in truth if t is not None and t.numel())])
    for name, mine, other, exact in zip(("y", *wanted), got, peer, truth, strict=True):
        assert (mine is None) == (other is None), name
        if mine is not None:
            compare(name, mine, other, exact, room, least)
    return "computed"


def compare(
    name: str, got: torch.Tensor, peer: torch.Tensor, truth: torch.Tensor, room: float, least: float
) -> None:
    """At most four times the error of plain torch on dense tensors, and little more."""
    assert got.shape == truth.shape and got.dtype is peer.dtype, f"{name}: {got.shape} {got.dtype}"
    if not got.numel():
        return
    assert got.isfinite().all(), f"{name} is not finite"
    error, own = (got.double() - truth).abs().max().item(), (peer.double() - truth).abs().max().item()
    room *= max(truth.abs().max().item(), least)
    assert error <= 4 * own + room, f"{name} is wrong by {error:.3g}, torch by {own:.3g}"


def examine(op: str, backend: str, seeds: range, monkeypatch) -> dict[str, int]:
    """Cases of an operation; the first that fails is told whole. Returns how many ended in which way."""
    picky = backend in ("triton", "cuda")
    ends = {"computed": 0, "refused": 0}
    for seed in seeds:
        rng = random.Random(f"{backend} {seed}")
        case = disturb(draw(op, seed, DTYPES[backend]), rng)
        monkeypatch.setattr(cpu, "MIN_OPERATIONS", rng.choice([1, 1 << 18]))
        monkeypatch.setattr(one_call, "MOST_OPERATIONS", rng.choice([0, 1 << 24]))
        monkeypatch.setattr(addresses, "SIMD_LEVEL", rng.choice([0, 1, 2]))
        try:
            ends[check(case, seed, picky, backend != "triton")] += 1
        except (AssertionError, RuntimeError, TypeError, ValueError, IndexError, GrowtasError) as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{case}") from error
    return ends


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("op", STRATEGIES)
def test_drawn_arguments_give_the_numbers_or_a_sentence(op, backend, monkeypatch):
    with dispatch.use(backend):
        ends = examine(op, backend, range(DRAWS), monkeypatch)
    assert min(ends.values()) >= DRAWS // 8, ends


@pytest.fixture
def emulated_cuda(monkeypatch):
    """The CUDA C++ kernels, on an emulated GPU."""
    emulated.emulate(emulated.emulated_module(), monkeypatch)
    monkeypatch.setattr(cuda, "_unsupported_here", lambda device: "")
    with dispatch.assigned(dict.fromkeys((*CUDA_OPS, "linear_gelu"), "cuda")):
        yield


@pytest.mark.parametrize("op", CUDA_OPS)
def test_the_cuda_kernels_too(op, emulated_cuda, monkeypatch):
    examine(op, "cuda", range(6), monkeypatch)


@pytest.mark.parametrize("op", ["layer_norm", "linear"])
def test_the_triton_kernels_too(op, small_tiles, monkeypatch):
    with dispatch.use("triton"):
        examine(op, "triton", range(4), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("backend, seeds", [("cpu", MANY), ("torch", MANY), ("triton", MANY // 40)])
@pytest.mark.parametrize("op", STRATEGIES)
def test_many_more_arguments(op, backend, seeds, small_tiles, monkeypatch):
    with dispatch.use(backend):
        examine(op, backend, range(1000, 1000 + seeds), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("op", CUDA_OPS)
def test_many_more_arguments_in_cuda(op, emulated_cuda, monkeypatch):
    examine(op, "cuda", range(1000, 1100), monkeypatch)
