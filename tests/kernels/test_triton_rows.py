"""Row-wise work around GEMMs, and the cast of shared weights: against fp64, the same bits every time."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import GPU, NAN, assert_as_good_as_torch, needs_gpu, poisoned_outputs, rows

from growtas.kernels.common import rows as row_kernels
from growtas.kernels.shadow import cast
from growtas.shadow import Work, copy

# images, tokens, columns, entries of the bias, columns between rows
CASES = [
    pytest.param(2, 37, 216, 256, 0, id="T-216"),
    pytest.param(3, 11, 300, 700, 4, id="two-column-tiles-strided"),
    pytest.param(1, 1, 7, 7, 0, id="one-row"),
]
if GPU:
    CASES += [
        pytest.param(128, 197, 864, 1024, 0, id="T-864-batch-128"),
        pytest.param(128, 197, 2496, 2560, 0, id="B-2496-batch-128"),
    ]
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16", marks=(needs_gpu, pytest.mark.cuda)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("images, tokens, n, n_max, gap", CASES)
@pytest.mark.parametrize("scaled", [True, False])
def test_scaled_rows(images, tokens, n, n_max, gap, dtype, scaled, device):
    torch.manual_seed(0)
    dy = rows(images * tokens, n, torch.float32, device, gap)
    bias = torch.empty(n_max, device=device)
    scale = torch.rand(images, device=device) if scaled else None
    with poisoned_outputs():
        dz, dbias = row_kernels.scaled_rows(dy, scale, tokens, dtype, bias)
        again, dbias_again = row_kernels.scaled_rows(dy, scale, tokens, dtype, bias)
    factor = scale.repeat_interleave(tokens)[:, None] if scaled else torch.ones(1, 1, device=device)
    assert torch.equal(dz, (dy * factor).to(dtype))
    truth = (dy.double() * factor.double()).sum(0)
    assert_as_good_as_torch(dbias[:n], (dy * factor).sum(0), truth, len(dy), "dbias")
    assert (dbias[n:] == 0).all()
    assert torch.equal(dz, again) and torch.equal(dbias, dbias_again)
    assert row_kernels.scaled_rows(dy, scale, tokens, dtype, None)[1] is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("images, tokens, n, n_max, gap", CASES)
def test_gelu_backward(images, tokens, n, n_max, gap, dtype, device):
    torch.manual_seed(0)
    m = images * tokens
    da, h = rows(m, n, dtype, device, gap), rows(m, n, dtype, device, gap)
    bias = torch.empty(n_max, device=device)
    original = da.clone()
    with poisoned_outputs():
        dh, a, dbias = row_kernels.gelu_backward(da, h, bias)
    assert dh is da and a.stride() == da.stride()
    if gap:
        assert da.as_strided((m, gap), (n + gap, 1), da.storage_offset() + n).isnan().all()

    def torch_way(da, h):
        return torch.ops.aten.gelu_backward(da, h), torch.nn.functional.gelu(h)

    truth, like = torch_way(original.double(), h.double()), torch_way(original, h)
    for name, own, other, exact in zip(("dh", "a"), (dh, a), like, truth, strict=True):
        assert_as_good_as_torch(own, other, exact, 1, name)
    sums = torch.ops.aten.gelu_backward(original.float(), h.float()).sum(0)
    assert_as_good_as_torch(dbias[:n], sums, truth[0].sum(0), m, "dbias")
    assert (dbias[n:] == 0).all()
    again = row_kernels.gelu_backward(original, h, bias)
    assert torch.equal(again[0], dh) and torch.equal(again[1], a) and torch.equal(again[2], dbias)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_cast_of_all_weights_in_one_launch(dtype, device):
    torch.manual_seed(0)
    shapes = [((7, 13), 0), ((24, 9), 4), ((5, 12), 0), ((300, 40), 0), ((24, 1), 4), ((11, 1), 0)]
    work = [
        Work(torch.randn(shape, device=device), torch.full(shape, NAN, dtype=dtype, device=device), head_dim)
        for shape, head_dim in shapes
    ]
    expected = [w._replace(matrix=torch.empty_like(w.matrix)) for w in work]
    cast(work)
    copy(expected)
    assert all(torch.equal(w.matrix, e.matrix) for w, e in zip(work, expected, strict=True))
