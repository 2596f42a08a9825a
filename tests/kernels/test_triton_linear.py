"""Sliced linear in Triton: against fp64, with poisoned surroundings, and bit for bit the same every time."""

from __future__ import annotations

import pytest
import reference
import torch
from kernel_cases import (
    GPU,
    LARGE_TILES,
    NAN,
    assert_as_good_as_torch,
    assert_written_once,
    assert_zero_outside,
    needs_gpu,
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
    rows,
    with_dtypes,
)

from growtas import kernels
from growtas.errors import UsageError
from growtas.kernels import linear
from growtas.kernels.common import launch, tiles

# rows, in, out, shared in, shared out, gap between rows
CASES = [
    pytest.param(40, 216, 308, 256, 512, 0, id="fc1-216-308"),  # aligned to 4 elements, as T's 756
    pytest.param(33, 424, 240, 512, 256, 0, id="fc2-424-240"),
    pytest.param(70, 192, 216, 256, 256, 8, id="T-proj-strided"),
    pytest.param(20, 64, 48, 64, 48, 0, id="shared-edge"),
    pytest.param(31, 37, 13, 50, 41, 3, id="primes"),
    pytest.param(1, 40, 24, 48, 48, 0, id="one-row"),
    pytest.param(3, 1, 1, 4, 3, 0, id="one-channel"),
]
if GPU:
    CASES += [
        pytest.param(128 * 197, 216, 756, 256, 1024, 0, id="T-fc1-batch-128"),
        pytest.param(128 * 197, 840, 240, 1024, 256, 0, id="T-fc2-batch-128"),
        pytest.param(128 * 197, 624, 2496, 640, 2560, 0, id="B-fc1-batch-128"),
    ]


def _inputs(m, k, n, k_max, n_max, gap, dtype, parameter_dtype, device):
    torch.manual_seed(m * 1000 + k)
    x, dy = rows(m, k, dtype, device, gap), rows(m, n, dtype, device, gap)
    weight = parameter((n_max, k_max), (n, k), parameter_dtype, device, 0.05)
    return x, weight, parameter((n_max,), (n,), parameter_dtype, device, 1.0), dy


@pytest.mark.parametrize("m, k, n, k_max, n_max, gap, dtype, parameter_dtype", with_dtypes(CASES))
def test_matches_fp64(m, k, n, k_max, n_max, gap, dtype, parameter_dtype, device):
    x, weight, bias, dy = _inputs(m, k, n, k_max, n_max, gap, dtype, parameter_dtype, device)
    with poisoned_outputs(), tiles.constrained(**LARGE_TILES):
        y = linear.linear_forward(x, weight, bias, n)
        dx = linear.linear_backward_input(dy, weight, k)
        gradients = {"one pass": linear.linear_backward_weight(dy, x, weight, bias)}
        with tiles.constrained(splits=3, depth=16), launch.counted() as launched:
            gradients["split"] = linear.linear_backward_weight(dy, x, weight, bias)

    assert launched == ["linear.backward._weight"], "the parts of a split sum are added in the same launch"

    wide = [tensor.double() for tensor in (x, weight, bias, dy)]
    x64, weight64, bias64, dy64 = wide
    assert_as_good_as_torch(
        y,
        reference.linear_forward(x, weight, bias, n),
        reference.linear_forward(x64, weight64, bias64, n),
        k,
        "y",
    )
    assert_as_good_as_torch(
        dx,
        reference.linear_backward_input(dy, weight, k),
        reference.linear_backward_input(dy64, weight64, k),
        n,
        "dx",
    )
    plain = reference.linear_backward_weight(dy, x, weight, bias)
    truth = reference.linear_backward_weight(dy64, x64, weight64, bias64)
    for way, (dweight, dbias) in gradients.items():
        assert_zero_outside(dweight, (n, k), f"dweight ({way})")
        assert_zero_outside(dbias, (n,), f"dbias ({way})")
        assert_as_good_as_torch(dweight, plain[0], truth[0], m, f"dweight ({way})")
        assert_as_good_as_torch(dbias, plain[1], truth[1], m, f"dbias ({way})")


def test_more_row_tiles_than_a_group(device):
    """Every tile is computed once, also past the first group and in the shorter last one."""
    m, k, n = 170, 20, 30
    x, weight, bias, dy = _inputs(m, k, n, 24, 64, 0, torch.float32, torch.float32, device)
    with poisoned_outputs(), tiles.constrained(rows=16, cols=16, depth=16):
        y = linear.linear_forward(x, weight, bias, n)
        dx = linear.linear_backward_input(dy, weight, k)
    assert torch.allclose(y, x @ weight[:n, :k].T + bias[:n], atol=1e-5)
    assert torch.allclose(dx, dy @ weight[:n, :k], atol=1e-5)


def test_weight_rows_may_lie_apart(device):
    """A weight is read through its row stride, whatever that is."""
    x, weight, bias, dy = _inputs(12, 20, 30, 24, 32, 0, torch.float32, torch.float32, device)
    apart = torch.full((32, 24 + 5), NAN, device=device)[:, :24]
    apart.copy_(weight)
    assert torch.equal(linear.linear_forward(x, apart, bias, 30), linear.linear_forward(x, weight, bias, 30))
    assert torch.equal(
        linear.linear_backward_input(dy, apart, 20), linear.linear_backward_input(dy, weight, 20)
    )


def test_without_bias(device):
    x, weight, _, dy = _inputs(12, 20, 30, 24, 32, 0, torch.float32, torch.float32, device)
    y = linear.linear_forward(x, weight, None, 30)
    assert torch.allclose(y, x @ weight[:30, :20].T, atol=1e-5)
    with poisoned_outputs():
        dweight, dbias = linear.linear_backward_weight(dy, x, weight, None)
    assert dbias is None
    assert torch.allclose(dweight[:30, :20], dy.T @ x, atol=1e-4)


@pytest.mark.parametrize("splits", [1, 4])
def test_gradients_do_not_depend_on_the_run(splits, device):
    x, weight, bias, dy = _inputs(131, 40, 72, 48, 96, 0, torch.float32, torch.float32, device)
    with tiles.constrained(splits=splits, depth=16):
        first = linear.linear_backward_weight(dy, x, weight, bias)
        second = linear.linear_backward_weight(dy, x, weight, bias)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@needs_interpreter
@pytest.mark.parametrize("splits", [1, 3])
def test_every_element_is_written_once(splits, device):
    x, weight, bias, dy = _inputs(50, 20, 30, 36, 40, 0, torch.float32, torch.float32, device)
    with tiles.constrained(rows=16, cols=16, depth=16, splits=splits):
        with recorded_stores() as stores:
            dweight, dbias = linear.linear_backward_weight(dy, x, weight, bias)
        assert_written_once(stores, dweight, "dweight")
        assert_written_once(stores, dbias, "dbias")
        with recorded_stores() as stores:
            y = linear.linear_forward(x, weight, bias, 30)
        assert_written_once(stores, y, "y")
        with recorded_stores() as stores:
            dx = linear.linear_backward_input(dy, weight, 20)
        assert_written_once(stores, dx, "dx")


def test_expanded_gradient(device):
    """``y.sum().backward()`` hands over a gradient whose strides are zero."""
    x, weight, bias, _ = _inputs(6, 20, 30, 24, 32, 0, torch.float32, torch.float32, device)
    dy = torch.ones((), device=device).expand(6, 30)
    dx = linear.linear_backward_input(dy, weight, 20)
    assert torch.allclose(dx, weight[:30, :20].sum(0).expand(6, 20), atol=1e-5)
    _, dbias = linear.linear_backward_weight(dy, x, weight, bias)
    assert (dbias[:30] == 6).all()


def test_no_rows(device):
    weight, bias = torch.ones(32, 24, device=device), torch.ones(32, device=device)
    x, dy = torch.empty((0, 20), device=device), torch.empty((0, 30), device=device)
    with poisoned_outputs():
        assert linear.linear_forward(x, weight, bias, 30).shape == (0, 30)
        assert linear.linear_backward_input(dy, weight, 20).shape == (0, 20)
        dweight, dbias = linear.linear_backward_weight(dy, x, weight, bias)
    assert (dweight == 0).all() and (dbias == 0).all()


def test_refuses_what_it_cannot_multiply(device, monkeypatch):
    x, weight, bias = (torch.ones(shape, device=device) for shape in ((4, 20), (32, 24), (32,)))
    with pytest.raises(UsageError, match="33 x 20 is not inside a shared weight of shape"):
        linear.linear_forward(x, weight, bias, 33)
    with pytest.raises(UsageError, match="30 x 25 is not inside"):
        linear.linear_backward_input(torch.ones(4, 30, device=device), weight, 25)
    with pytest.raises(UsageError, match="last stride of weight is 32"):
        linear.linear_forward(x, weight.T.contiguous().T[:, :24], bias, 20)
    with pytest.raises(UsageError, match="Pass the whole bias"):
        linear.linear_forward(x, weight, bias[:30], 30)
    with pytest.raises(UsageError, match="4 rows but x has 3"):
        linear.linear_backward_weight(torch.ones(4, 30, device=device), x[:3], weight, bias)
    with pytest.raises(UsageError, match="Flatten the rows"):
        linear.linear_forward(x[None], weight, bias, 30)
    with pytest.raises(UsageError, match="float64"):
        linear.linear_forward(x.double(), weight, bias, 30)
    with pytest.raises(UsageError, match="Move them to one device"):
        linear.linear_forward(x, weight.to("meta"), bias, 30)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(UsageError, match="TRITON_INTERPRET=1"):
        linear.linear_forward(x.cpu(), weight.cpu(), bias.cpu(), 30)


@needs_interpreter
def test_interpreter_refuses_bfloat16_products(device):
    assert kernels.interpreted()
    x = torch.ones(4, 20, dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="no bfloat16 matmuls"):
        linear.linear_forward(x, torch.ones(32, 24), None, 30)


@needs_gpu
@pytest.mark.cuda
def test_offsets_past_32_bits(device):
    """Rows whose offset in elements does not fit into 32 bits."""
    m, k, n, apart = 25_216, 64, 64, 90_000
    x = torch.empty((m, apart), dtype=torch.bfloat16, device=device)[:, :k]
    x.copy_(torch.randn(m, k))
    weight = torch.randn(n, k, device=device, dtype=torch.bfloat16)
    y = linear.linear_forward(x, weight, None, n)
    assert torch.allclose(y[-100:].float(), (x[-100:] @ weight.T).float(), atol=0.2)
    dweight, _ = linear.linear_backward_weight(y, x, weight, None)
    expected = y.double().T @ x.double()
    assert (dweight.double() - expected).abs().max() < 0.01 * expected.abs().max()


@needs_gpu
@pytest.mark.cuda
def test_new_widths_do_not_compile_new_kernels(device):
    """Widths that share an alignment class share a binary."""

    def run(k, n):
        x = torch.randn(256, k, device=device, dtype=torch.bfloat16)
        weight = torch.randn(1024, 1024, device=device, dtype=torch.bfloat16)
        y = linear.linear_forward(x, weight, None, n)
        linear.linear_backward_input(y, weight, k)
        linear.linear_backward_weight(y, x, weight, None)

    run(216, 840)
    before = kernels.compiled_variants()
    assert before["linear.forward._forward"] > 0
    for k, n in ((192, 768), (240, 840), (200, 912), (248, 888)):
        run(k, n)
    assert kernels.compiled_variants() == before
