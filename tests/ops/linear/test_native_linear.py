"""Sliced products in C++: against fp64, inside their slices, on every instruction set, bit for bit."""

from __future__ import annotations

import pytest
import reference
import torch

from growtas import native
from growtas.ops import addresses
from growtas.ops.linear import cpu
from growtas.ops.qkv import cpu as qkv_cpu

pytestmark = pytest.mark.skipif(not native.status("cpu").ok, reason="growtas._cpu was not built")
NAN = float("nan")
# rows, out, in: one of each; primes; more than a block of depth, of columns, of both; widths of T's layers
SHAPES = [(1, 1, 1), (13, 37, 5), (12, 32, 448), (31, 17, 900), (5, 1000, 40), (26, 929, 457), (70, 216, 192)]
SHAPES += [(33, 840, 240), (450, 13, 7)]


@pytest.fixture
def level(level, monkeypatch):
    """Every instruction set, for products of any size: small ones are left to torch elsewhere."""
    monkeypatch.setattr(cpu, "MIN_OPERATIONS", 0)


def inside(shape: tuple[int, ...], gap: int = 3, scale: float = 1.0) -> torch.Tensor:
    """Normal values in the middle of NaN."""
    buffer = torch.full([size + 2 * gap for size in shape], NAN)
    view = buffer[tuple(slice(gap, gap + size) for size in shape)]
    return view.copy_(torch.randn(shape) * scale)


def shared(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and a bias of the supernet, NaN outside the slice."""
    weight, bias = torch.full((rows + 5, columns + 3), NAN), torch.full((rows + 5,), NAN)
    weight[:rows, :columns] = torch.randn(rows, columns) / columns**0.5
    bias[:rows] = torch.randn(rows)
    return weight, bias


def assert_close(got: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, terms: int, what: str) -> None:
    """At most twice the error of torch in fp32, and rounding that grows with the root of the terms."""
    assert got.shape == truth.shape and got.isfinite().all(), what
    error, allowed = (got.double() - truth).abs().max(), (plain.double() - truth).abs().max()
    floor = torch.finfo(torch.float32).eps * terms**0.5 * truth.abs().max().clamp(min=1)
    assert error <= 2 * allowed + floor, f"{what}: {error:.3g}, torch {allowed:.3g}"


def compare(name: str, terms: int, *arguments) -> None:
    """One function beside the reference in fp32 and in fp64."""
    wider = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    results = (
        getattr(cpu, name)(*arguments),
        getattr(reference, name)(*arguments),
        getattr(reference, name)(*wider),
    )
    results = [r if isinstance(r, tuple) else (r,) for r in results]
    for i, (got, plain, truth) in enumerate(zip(*results, strict=True)):
        assert_close(got, plain, truth, terms, f"{name}[{i}]")


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_every_epilogue_matches_fp64(level, m, n, k, scaled):
    torch.manual_seed(m + n + k)
    tokens = 1 if m % 2 else 2
    scale = torch.rand(m // tokens) * 2 if scaled else None
    x, dy, residual, hidden = inside((m, k)), inside((m, n)), inside((m, n)), inside((m, k))
    weight, bias = shared(n, k)
    compare("linear_forward", k, x, weight, bias, n)
    compare("linear_forward", k, x, weight, None, n)
    compare("linear_gelu_forward", k, x, weight, bias, n)
    compare("linear_residual_forward", k, x, weight, bias, residual.contiguous(), scale, tokens)
    compare("linear_backward_input", n, dy.contiguous(), weight, k, scale, tokens)
    compare("linear_gelu_backward_input", n, dy.contiguous(), weight, hidden, scale, tokens)
    compare("linear_backward_weight", m, dy.contiguous(), x, weight, bias, scale, tokens)


@pytest.mark.parametrize("least", [0, cpu.MIN_OPERATIONS], ids=["kernel", "torch"])
def test_a_hidden_layer_may_have_any_strides(monkeypatch, least):
    torch.manual_seed(0)
    monkeypatch.setattr(cpu, "MIN_OPERATIONS", least)
    weight, _ = shared(9, 14)
    for hidden in (inside((12, 14)), torch.randn(14, 12).t()):
        compare("linear_gelu_backward_input", 9, torch.randn(12, 9), weight, hidden, None, 1)


def test_at_most_224_terms_are_added_in_a_row(level):
    """2^24 takes no 1 up; those of another segment reach it together, as their exact sum."""
    a, b = torch.ones(5, 448), torch.ones(448, 7)
    b[0] = 2.0**24
    assert (cpu.gemm(a, b, torch.empty(5, 7)) == 2.0**24 + 224).all()


@pytest.mark.parametrize("layout", ["interleaved", "published"])
def test_qkv_matches_the_reference(level, layout):
    torch.manual_seed(0)
    weight, bias = shared(3 * 2 * 16, 37)
    x = torch.randn(2, 9, 37)
    qkv = qkv_cpu.qkv_forward(x, weight, bias, 2, 16, layout)
    torch.testing.assert_close(qkv, reference.qkv_forward(x, weight, bias, 2, 16, layout))
    assert qkv.stride() == reference.qkv_forward(x, weight, bias, 2, 16, layout).stride()
    dqkv = reference.interleaved(torch.randn(qkv.shape))
    dx = qkv_cpu.qkv_backward_input(dqkv, weight, 37)
    torch.testing.assert_close(dx, reference.qkv_backward_input(dqkv, weight, 37))
    got = qkv_cpu.qkv_backward_weight(dqkv, x, weight, bias, layout)
    wanted = reference.qkv_backward_weight(dqkv, x, weight, bias, layout)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", [cpu, reference])
def test_operands_are_left_and_given_gradients_are_added_to(backend):
    torch.manual_seed(0)
    x, (weight, bias), dy, residual = torch.randn(6, 4), shared(5, 4), torch.randn(6, 5), torch.randn(6, 5)
    before = residual.clone()
    sums = backend.linear_residual_forward(x, weight, None, residual, None, 1)
    torch.testing.assert_close(sums, before + x @ weight[:5, :4].t())
    assert torch.equal(residual, before)
    new = backend.linear_backward_weight(dy, x, weight, bias)
    into = torch.ones_like(weight), torch.ones_like(bias)
    backend.linear_backward_weight(dy, x, weight, bias, into=into)
    assert all(torch.equal(found, 1 + gradient) for found, gradient in zip(into, new, strict=True))


def test_gradients_can_be_added_to(level):
    torch.manual_seed(0)
    a, b, out = torch.randn(30, 500), torch.randn(500, 21), torch.randn(30, 21)
    plain, truth = out + a @ b, out.double() + a.double() @ b.double()
    cpu.gemm(a, b, out, accumulate=True)
    assert_close(out, plain, truth, 500, "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_left_to_torch(level, dtype):
    x, (weight, bias) = torch.randn(20, 16, dtype=dtype), shared(24, 16)
    y = cpu.linear_forward(x, weight, bias, 24)
    assert torch.equal(y, reference.linear_forward(x, weight, bias, 24))


def test_the_same_bits_for_any_number_of_threads_and_in_any_batch():
    torch.manual_seed(0)
    x, (weight, bias), dy = torch.randn(200, 216), shared(500, 216), torch.randn(200, 500)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = cpu.linear_forward(x, weight, bias, 500)
            results.append((y, *cpu.linear_backward_weight(dy, x, weight, bias)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert torch.equal(cpu.linear_forward(x[50:120], weight, bias, 500), results[0][0][50:120])


def test_threads_wait_for_one_another_between_blocks():
    """Three blocks of depth, also of the transposed product of the gradient, and two of columns."""
    torch.manual_seed(0)
    x, (weight, bias), dy = torch.randn(900, 1100), shared(1000, 1100), torch.randn(900, 1000)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, *[4] * 6):
            torch.set_num_threads(threads)
            y = cpu.linear_forward(x, weight, bias, 1000)
            results.append((y, *cpu.linear_backward_weight(dy, x, weight, bias)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_impossible_sizes_are_refused():
    x = torch.randn(4, 4)
    with pytest.raises(ValueError, match="must be 1 or more"):
        cpu.gemm(x[:, :0], x[:0], torch.empty(4, 4))
    with pytest.raises(ValueError, match="epilogue 1 needs another matrix"):
        cpu.gemm(x, x, torch.empty(4, 4), addresses.Epilogue.GELU)
