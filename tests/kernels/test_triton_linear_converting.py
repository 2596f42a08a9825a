"""The input gradient that converts dy on the way: against fp64, dz as a launch of its own makes it."""

from __future__ import annotations

import pytest
import reference
import torch
from kernel_cases import (
    assert_as_good_as_torch,
    assert_written_once,
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
    rows,
)

from growtas.errors import UsageError
from growtas.kernels import linear
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.rows import in_dtype
from growtas.ops.linear import triton as operation

CONVERTING, ROWS = "linear.backward_converting._input", "common.rows._rows"


def _inputs(images, tokens, k, n, gap, dtype, device):
    torch.manual_seed(images * 1000 + k)
    dy = rows(images * tokens, n, dtype, device, gap)
    weight = parameter((n + 19, k + 24), (n, k), torch.float32, device, n**-0.5)
    scale = torch.tensor([1.25, 0.0, 1.0] * images, device=device)[:images]
    return dy, weight, scale


# images, tokens, in, out, gap between rows, dtype of dy and of the GEMM, rows of a tile
CASES = [
    pytest.param(2, 37, 256, 216, 0, torch.float32, torch.float16, 64, id="T-216"),
    pytest.param(3, 11, 40, 130, 8, torch.float32, torch.float16, 16, id="rows-apart"),
    pytest.param(3, 7, 37, 13, 3, torch.float16, torch.float32, 16, id="primes-to-fp32"),
    pytest.param(1, 1, 24, 40, 0, torch.float32, torch.float16, 16, id="one-row"),
]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("images, tokens, k, n, gap, dtype, gemm, tile_rows", CASES)
def test_matches_fp64(images, tokens, k, n, gap, dtype, gemm, tile_rows, scaled, device):
    dy, weight, scale = _inputs(images, tokens, k, n, gap, dtype, device)
    scale = scale if scaled else None
    with poisoned_outputs(), tiles.constrained(rows=tile_rows), launch.counted() as launched:
        dz, dx = linear.linear_converting_backward_input(dy, weight, k, scale, tokens, gemm)
    assert launched == [CONVERTING]
    assert torch.equal(dz, in_dtype(dy, scale, tokens, gemm)[0])
    factor = None if scale is None else scale.double()
    assert_as_good_as_torch(
        dx,
        reference.linear_backward_input(dz, weight, k),
        reference.linear_backward_input(dy.double(), weight.double(), k, factor, tokens),
        n,
        "dx",
    )


@needs_interpreter
def test_every_element_is_written_once(device):
    dy, weight, scale = _inputs(3, 11, 40, 130, 0, torch.float32, device)
    with tiles.constrained(rows=16), recorded_stores() as stores:
        dz, dx = linear.linear_converting_backward_input(dy, weight, 40, scale, 11, torch.float16)
    assert_written_once(stores, dz, "dz")
    assert_written_once(stores, dx, "dx")


@pytest.mark.parametrize("k", [40, 264])
def test_the_operation_takes_it_as_wide_as_it_goes(k, device):
    """All gradients of a layer in two launches; of wider inputs in three, with the bits of dw."""
    dy, weight, scale = _inputs(2, 9, k, 24, 0, torch.float32, device)
    x, bias = rows(18, k, torch.float16, device), parameter((43,), (24,), torch.float32, device, 1.0)
    with tiles.constrained(rows=16, cols=64, depth=32), launch.counted() as launched:
        dx, dweight, dbias = operation.linear_backward(dy, x, weight, bias, scale, 9)
    names = [name for name in launched if not name.endswith("._weight")]
    assert names == ([CONVERTING] if k <= linear.WIDEST else [ROWS, "linear.backward._input"])
    assert launched.count("linear.backward._weight") == 1
    with tiles.constrained(rows=16, cols=64, depth=32):
        expected = linear.linear_backward_weight(dy, x, weight, bias, scale, 9)
    assert torch.equal(dweight, expected[0]) and torch.equal(dbias, expected[1])
    true = reference.linear_backward_input(dy.double(), weight.double(), k, scale.double(), 9)
    assert torch.allclose(dx.double(), true, rtol=2e-3, atol=2e-3)


def test_no_rows(device):
    dy, weight, _ = _inputs(1, 0, 16, 8, 0, torch.float32, device)
    dz, dx = linear.linear_converting_backward_input(dy, weight, 16, None, 1, torch.float16)
    assert dz.shape == (0, 8) and dx.shape == (0, 16)


def test_refuses_what_does_not_fit(device):
    dy, weight, scale = _inputs(3, 4, 20, 30, 0, torch.float32, device)
    with pytest.raises(UsageError, match="12 rows are no whole number of images of 5 tokens"):
        linear.linear_converting_backward_input(dy, weight, 20, scale, 5, torch.float16)
