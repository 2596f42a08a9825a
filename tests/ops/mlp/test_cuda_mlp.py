"""The MLP branch in one launch (csrc/cuda/mlp/mlp_forward_sm90a.cu), on an emulated GPU and on a real one.

Truth is the composition of reference operations in fp64; the kernel's error may be twice that of the same
composition in its dtypes.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import reference
import torch
from cuda_on_cpu import emulated
from cuda_on_cpu.emulated import emulate
from gemm_cases import BF16, FP16, FP32, Inputs
from thinning import thinned

from growtas.ops import dispatch
from growtas.ops.mlp import cuda
from growtas.ops.mlp.weights import MLPWeights

# (d, m): the corners of AutoFormer-T's space, and of widths between the kernel's instances
SIZES = [(192, 672), (216, 756), (240, 840), (256, 1024), (216, 864), (8, 20), (200, 70)]


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request, monkeypatch):
    """Where the kernel runs: "cpu" is the emulated GPU."""
    if request.param == "emulated":
        emulate(emulated.emulated_module(), monkeypatch)
        monkeypatch.setattr(cuda, "_unsupported_here", lambda device: "")
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if problem := cuda._unsupported_here(torch.device("cuda", torch.cuda.current_device())):
        pytest.skip(problem)
    return "cuda"


def branch(
    device, images, tokens, d, m, dtype=BF16, stream=FP32, bias=True, scaled=True, parameter=FP32, seed=0
):
    """Arguments of mlp_forward, NaN around every slice."""
    make = Inputs(device, seed + d + m)
    full_d, full_m = -(-(d + 9) // 8) * 8, -(-(m + 9) // 8) * 8
    memory = make.rows(images * tokens, d, stream, (0, 0))
    return SimpleNamespace(
        x=memory * 1.5 + 0.3,
        norm_weight=make.bias(d, full_d, parameter) * 0.3 + 1,
        norm_bias=make.bias(d, full_d, parameter) * 0.3,
        eps=1e-5,
        w1=make.weight((m, d), (full_m, full_d), dtype, (8, 0)),
        b1=make.bias(m, full_m, parameter) if bias else None,
        w2=make.weight((d, m), (full_d, full_m), dtype, (8, 0)),
        b2=make.bias(d, full_d, parameter) if bias else None,
        hidden_dim=m,
        scale=make.scale(images) if scaled else None,
        tokens=tokens,
        dtype=dtype,
    )


def weights_of(case) -> MLPWeights:
    return MLPWeights(*(getattr(case, name) for name in MLPWeights._fields))


def images(case, rows):
    return rows.view(len(rows) // case.tokens, case.tokens, rows.shape[1])


def forward(case):
    """The branch by the kernel; y as rows."""
    y, *rest = cuda.mlp_forward(images(case, case.x), weights_of(case), case.hidden_dim, case.eps, case.dtype)
    return y.flatten(0, 1), *rest


def composed(case, wide=None):
    """The same on the CPU from reference operations, all of it in a wider dtype if one is given."""

    def slice_of(t, *sizes):
        if t is None:
            return None
        t = t.cpu()[tuple(slice(s) for s in sizes)]
        return t.to(wide) if wide else t

    d, m, dtype = case.x.shape[1], case.hidden_dim, wide or case.dtype
    x = slice_of(case.x, None)
    z, mean, rstd = reference.layer_norm_forward(
        x, slice_of(case.norm_weight, d), slice_of(case.norm_bias, d), case.eps, dtype
    )
    a, _ = reference.linear_gelu_forward(z, slice_of(case.w1, m, d), slice_of(case.b1, m), m)
    scale = slice_of(case.scale, None)
    y = reference.linear_residual_forward(
        a, slice_of(case.w2, d, m), slice_of(case.b2, d), x, scale, case.tokens
    )
    return y, mean, rstd


def run(case):
    problem = cuda.unsupported(case.x, case.w1, case.w2, case.hidden_dim, case.dtype)
    assert not problem, problem
    *results, hidden = forward(case)
    assert hidden.numel() == 0
    return [r.cpu() for r in results]


def assert_accurate(case):
    results, truth, peer = run(case), composed(case, torch.float64), composed(case)
    for name, got, want, same in zip(("y", "mean", "rstd"), results, truth, peer, strict=True):
        assert got.shape == want.shape and got.dtype == same.dtype and got.isfinite().all(), name
        error, peer_error = (got.double() - want).abs(), (same.double() - want).abs()
        largest = max(want.abs().max().item(), 1e-3)
        floor = torch.finfo(FP32).eps * 20 * largest
        rounding = torch.finfo(case.dtype).eps * largest if name == "y" else 0
        assert error.max() <= max(2 * peer_error.max().item(), rounding) + floor, (name, error.max())
        rms, peer_rms = (e.square().mean().sqrt() for e in (error, peer_error))
        assert rms <= 2 * peer_rms + floor, (name, rms, peer_rms)


@pytest.mark.parametrize("d, m", thinned(SIZES, fast=(1, 5, 6), several=True))
def test_error_is_at_most_twice_that_of_torch(device, d, m):
    assert_accurate(branch(device, 3, 70, d, m))


@pytest.mark.parametrize(
    "dtype, stream, parameter", [(FP16, FP16, FP32), (BF16, BF16, BF16), (FP16, FP32, FP16)]
)
@pytest.mark.parametrize("bias, scaled", [(True, False), (False, True)])
def test_other_dtypes_with_and_without_biases_and_scale(device, dtype, stream, parameter, bias, scaled):
    assert_accurate(branch(device, 2, 37, 216, 132, dtype, stream, bias, scaled, parameter))


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 129, 257, 389])
def test_any_number_of_rows(device, rows):
    assert_accurate(branch(device, rows, 1, 24, 72))


def test_no_rows(device):
    y, mean, rstd = run(branch(device, 0, 1, 24, 72))
    assert y.shape == (0, 24) and mean.shape == rstd.shape == (0,)


def test_equal_bits_in_every_run_and_for_every_place_of_a_row(device):
    """A row's bits depend on nothing but the row, however the rows are cut into blocks."""
    many = branch(
        device, 330 if device == "cpu" else 25216, 1, 216, 132 if device == "cpu" else 864, scaled=False
    )
    first = run(many)
    for _ in range(2 if device == "cpu" else 100):
        assert all(torch.equal(a, b) for a, b in zip(first, run(many), strict=True))
    few = SimpleNamespace(**{**vars(many), "x": many.x[5:77].clone()})
    assert all(torch.equal(a[5:77], b) for a, b in zip(first, run(few), strict=True))


def test_the_order_of_threads_does_not_matter(monkeypatch):
    case, results = branch("cpu", 2, 75, 216, 300), []
    for device in (0, 1):
        with monkeypatch.context() as patch:
            emulate(emulated.emulated_module(), patch, device)
            patch.setattr(cuda, "_unsupported_here", lambda device: "")
            results.append(run(case))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_rows_that_are_far_from_zero(device):
    case = branch(device, 1, 70, 192, 100)
    case.x += 300
    assert_accurate(case)


def test_a_row_whose_squares_overflow_is_not_finite(device):
    case = branch(device, 3, 5, 24, 72, scaled=False)
    usual = run(case)[0]
    case.x[7] *= 1e20
    y = run(case)[0]
    assert not y[7].isfinite().any()
    others = torch.arange(15) != 7
    assert torch.equal(y[others], usual[others])


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda c: {"dtype": FP32}, "the GEMMs are in"),
        (lambda c: {"w1": c.w1.float()}, "the weights are"),
        (lambda c: {"x": c.x.double()}, "the residual stream is"),
        (lambda c: {"x": c.x[:, :20].contiguous()}, "the width is 20"),
        (lambda c: {"w1": c.w1[:, 1:]}, "w1 is not aligned"),
        (lambda c: {"w2": torch.zeros(24, 77, dtype=BF16, device=c.x.device)}, "w2 has strides"),
        (lambda c: {"hidden_dim": 5000}, "more than 4096"),
    ],
)
def test_a_branch_that_the_kernel_does_not_take_is_named(device, change, problem):
    case = branch(device, 1, 9, 24, 72)
    case.__dict__.update(change(case))
    assert problem in cuda.unsupported(case.x, case.w1, case.w2, case.hidden_dim, case.dtype)


def test_such_a_branch_is_composed(device, monkeypatch):
    """Weights in fp32: the same operation from others, and no hidden layer where the kernel promises none."""
    case = branch(device, 2, 9, 24, 72)
    case.w1, case.w2 = case.w1.float(), case.w2.float()
    case.w1[72:], case.w2[24:], case.w1[:, 24:], case.w2[:, 72:] = 0, 0, 0, 0
    with dispatch.use("torch"):
        y, mean, rstd, hidden = forward(case)
    assert hidden.numel() == 0 and not cuda.mlp_keeps_hidden(24, BF16)
    torch.testing.assert_close(y.cpu(), composed(case, torch.float64)[0].float(), atol=0.1, rtol=0.05)
    assert cuda.mlp_keeps_hidden(320, BF16) and cuda.mlp_keeps_hidden(24, FP32)


def test_the_gradient_computes_the_hidden_layer_again(device):
    case = branch(device, 2, 9, 24, 72, bias=False)
    for weight, rows, cols in ((case.w1, 72, 24), (case.w2, 24, 72)):
        weight[rows:], weight[:, cols:] = 0, 0
    case.norm_weight, case.norm_bias = case.norm_weight[:24], case.norm_bias[:24]
    dy = torch.ones_like(case.x)
    with dispatch.use("torch"):
        y, mean, rstd, hidden = forward(case)
        dx, *_ = cuda.mlp_backward(
            images(case, dy), images(case, case.x), weights_of(case), mean, rstd, hidden, case.hidden_dim,
            case.dtype,
        )  # fmt: skip
    x = case.x.cpu().double().requires_grad_()
    wide = SimpleNamespace(**{**vars(case), "x": x})
    z = torch.nn.functional.layer_norm(
        x, (24,), case.norm_weight.cpu().double(), case.norm_bias.cpu().double()
    )
    a = torch.nn.functional.gelu(z @ wide.w1.cpu().double()[:72, :24].T)
    factor = case.scale.cpu().double().repeat_interleave(9)[:, None]
    (x + factor * (a @ wide.w2.cpu().double()[:24, :72].T)).sum().backward()
    torch.testing.assert_close(dx.flatten(0, 1).cpu().double(), x.grad, atol=0.05, rtol=0.05)
