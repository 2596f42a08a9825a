"""The MLP branch in Triton, fused and wide: against fp64, in its slices, the same bits every time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
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

from growtas.errors import UsageError
from growtas.kernels import mlp
from growtas.kernels.common import launch, tiles
from growtas.kernels.mlp import tiles as mlp_tiles
from growtas.kernels.mlp.backward import wide_backward
from growtas.kernels.mlp.forward import wide_forward
from growtas.kernels.mlp.fused_backward import fused_backward
from growtas.kernels.mlp.fused_forward import fused_forward

EPS = 1e-5
GRADIENTS = ("dx", "dnorm_weight", "dnorm_bias", "dw1", "db1", "dw2", "db2")

# images, tokens, width, hidden, shared width, shared hidden, gap between rows
CASES = [
    pytest.param(2, 37, 216, 70, 256, 128, 0, id="T-216"),
    pytest.param(3, 11, 192, 48, 256, 64, 8, id="T-192-strided"),
    pytest.param(2, 17, 240, 70, 240, 70, 0, id="T-240-shared-edge"),
    pytest.param(3, 7, 37, 41, 50, 53, 3, id="primes"),
    pytest.param(1, 1, 36, 24, 48, 48, 0, id="one-row"),
    pytest.param(1, 3, 1, 1, 3, 4, 0, id="one-channel"),
]
if GPU:
    CASES += [
        pytest.param(8, 197, 216, 756, 256, 1024, 0, id="T-216-batch-8"),
        pytest.param(128, 197, 240, 960, 256, 1024, 0, id="T-240-batch-128"),
        pytest.param(128, 197, 192, 672, 256, 1024, 0, id="T-192-batch-128"),
    ]
WIDE_CASES = [
    pytest.param(2, 9, 320, 96, 448, 128, 0, id="S-320"),
    pytest.param(3, 7, 37, 41, 50, 53, 3, id="primes"),
]
if GPU:
    WIDE_CASES.append(pytest.param(128, 197, 624, 2496, 640, 2560, 0, id="B-624-batch-128"))

# residual stream, matmuls, parameters: where they differ, autocast
DTYPES = [
    pytest.param(torch.float32, torch.float32, torch.float32, id="fp32"),
    pytest.param(torch.float32, torch.float16, torch.float32, id="fp32-fp16-fp32"),
    pytest.param(torch.float16, torch.float16, torch.float16, id="fp16"),
]
GPU_ONLY = (needs_gpu, pytest.mark.cuda)
DTYPES += [
    pytest.param(torch.float32, torch.bfloat16, torch.float32, id="fp32-bf16-fp32", marks=GPU_ONLY),
    pytest.param(torch.bfloat16, torch.bfloat16, torch.float32, id="bf16-bf16-fp32", marks=GPU_ONLY),
    pytest.param(torch.bfloat16, torch.bfloat16, torch.bfloat16, id="bf16", marks=GPU_ONLY),
]


@pytest.fixture(autouse=True)
def _few_large_operations(monkeypatch):
    """The interpreter's time goes by operations, whatever their size; a GPU keeps its tiles."""
    with tiles.constrained(**LARGE_TILES):
        if not GPU:
            monkeypatch.setattr(mlp_tiles, "pick", lambda *_: mlp_tiles.MLPTile(64, 64, 4))
        yield


def _inputs(b, tokens, d, m, d_max, m_max, gap, dtype, parameter_dtype, device):
    torch.manual_seed(b * 1000 + d)
    x, dy = (rows(b * tokens, d, dtype, device, gap) for _ in range(2))
    parameters = [
        parameter(shape, active, parameter_dtype, device, scale)
        for shape, active, scale in (
            ((d_max,), (d,), 1.0),
            ((d_max,), (d,), 0.5),
            ((m_max, d_max), (m, d), d**-0.5),
            ((m_max,), (m,), 0.5),
            ((d_max, m_max), (d, m), m**-0.5),
            ((d_max,), (d,), 0.5),
        )
    ]
    scale = torch.tensor([1.25, 0.0, 1.0, 1.25] * b, device=device)[:b]
    return x, dy, parameters, scale


def _small_tiles(monkeypatch):
    tile = mlp_tiles.MLPTile(16, 16, 4)
    monkeypatch.setattr(mlp_tiles, "pick", lambda *_: tile)


def _run(form, x, dy, p, m, scale, tokens, dtype):
    """y, then the gradients as GRADIENTS names them, of the form that is asked for."""
    forward, backward = {
        "fused": (lambda *a: (*fused_forward(*a), torch.empty(0)), fused_backward),
        "wide": (wide_forward, wide_backward),
    }[form]
    y, mean, rstd, hidden = forward(x, *p[:2], EPS, *p[2:], m, scale, tokens, dtype)
    kept = (mean, rstd, hidden) if form == "wide" else (mean, rstd)
    return y, *backward(dy, x, *kept, *p, m, scale, tokens, dtype)


def _torch(x, dy, p, m, scale, tokens, dtype):
    """The same by autograd on a composition of torch operations; under autocast, what torch does there."""
    x = x.detach().requires_grad_()
    p = [tensor.detach().requires_grad_() for tensor in p]
    d = x.shape[1]
    norm_dtype = torch.promote_types(x.dtype, torch.float32) if dtype is not x.dtype else x.dtype
    z = F.layer_norm(x.to(norm_dtype), (d,), p[0][:d].to(norm_dtype), p[1][:d].to(norm_dtype), EPS)
    h = F.linear(z.to(dtype), p[2][:m, :d].to(dtype), p[3][:m].to(dtype))
    branch = F.linear(F.gelu(h), p[4][:d, :m].to(dtype), p[5][:d].to(dtype))
    if scale is not None:
        branch = branch * scale.repeat_interleave(tokens)[:, None].to(branch.dtype)
    y = x + branch.to(x.dtype)
    return y, *torch.autograd.grad(y, (x, *p), dy)


def _check(form, case, types, device, scaled):
    b, tokens, d, m, d_max, m_max, gap = case
    dtype, product_dtype, parameter_dtype = types
    x, dy, p, scale = _inputs(b, tokens, d, m, d_max, m_max, gap, dtype, parameter_dtype, device)
    scale = scale if scaled else None
    with poisoned_outputs():
        results = _run(form, x, dy, p, m, scale, tokens, product_dtype)
    plain = _torch(x, dy, p, m, scale, tokens, product_dtype)
    wide = [tensor.double() for tensor in p]
    truth = _torch(
        x.double(), dy.double(), wide, m, None if scale is None else scale.double(), tokens, torch.float64
    )
    active = {
        "dnorm_weight": (d,),
        "dnorm_bias": (d,),
        "dw1": (m, d),
        "db1": (m,),
        "dw2": (d, m),
        "db2": (d,),
    }
    reduction = {"y": m + d, "dx": m + d}
    for name, result, torch_result, true in zip(("y", *GRADIENTS), results, plain, truth, strict=True):
        if name in active:
            assert_zero_outside(result, active[name], name)
            sliced = tuple(slice(size) for size in active[name])
            result, torch_result, true = result[sliced], torch_result[sliced], true[sliced]
        assert_as_good_as_torch(result, torch_result, true, reduction.get(name, b * tokens + d), name)


@pytest.mark.parametrize(
    "b, tokens, d, m, d_max, m_max, gap, dtype, product_dtype, parameter_dtype", with_dtypes(CASES, DTYPES)
)
def test_fused_matches_fp64(
    b, tokens, d, m, d_max, m_max, gap, dtype, product_dtype, parameter_dtype, device
):
    _check(
        "fused",
        (b, tokens, d, m, d_max, m_max, gap),
        (dtype, product_dtype, parameter_dtype),
        device,
        scaled=b > 1,
    )


@pytest.mark.parametrize("dtype, product_dtype, parameter_dtype", DTYPES)
@pytest.mark.parametrize("b, tokens, d, m, d_max, m_max, gap", WIDE_CASES)
def test_wide_matches_fp64(b, tokens, d, m, d_max, m_max, gap, dtype, product_dtype, parameter_dtype, device):
    _check(
        "wide",
        (b, tokens, d, m, d_max, m_max, gap),
        (dtype, product_dtype, parameter_dtype),
        device,
        scaled=b > 2,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fused_without_factors(dtype, device):
    """Then dy itself is an operand, where its dtype allows it."""
    _check("fused", (2, 21, 72, 40, 80, 48, 0), (dtype,) * 3, device, scaled=False)


@pytest.mark.parametrize("form", ["fused", "wide"])
def test_a_row_whose_squares_overflow_is_not_finite(form, device):
    """Zeros would be plausible: a run that diverged has to be seen to. The other rows keep their bits."""
    x, dy, p, scale = _inputs(2, 3, 40, 24, 48, 32, 0, torch.float32, torch.float32, device)
    scale.fill_(1)
    results = []
    for size in (1.0, 1e20):
        x[1].mul_(size)
        results.append(_run(form, x, dy, p, 24, scale, 3, torch.float32)[:2])
    for usual, found in zip(*results, strict=True):
        assert not found[1].isfinite().any() and torch.equal(found[2:], usual[2:])


def test_dropped_images_pass_through(device):
    x, dy, p, _ = _inputs(3, 5, 40, 24, 48, 32, 0, torch.float32, torch.float32, device)
    scale = torch.tensor([0.0, 1.0, 0.0], device=device)
    y, dx, *gradients = _run("fused", x, dy, p, 24, scale, 5, torch.float32)
    for image in (slice(0, 5), slice(10, 15)):
        assert torch.equal(y[image], x[image]) and torch.equal(dx[image], dy[image])
    alone = _run("fused", x[5:10], dy[5:10], p, 24, None, 5, torch.float32)
    for own, expected in ((y[5:10], alone[0]), (dx[5:10], alone[1])):
        # On a GPU a row's place changes no bit; the interpreter's BLAS may sum rows in different orders.
        assert torch.equal(own, expected) if GPU else torch.allclose(own, expected, atol=1e-5)
    for name, gradient, expected in zip(GRADIENTS[1:], gradients, alone[2:], strict=True):
        assert torch.allclose(gradient, expected, atol=1e-5), name


@pytest.mark.parametrize("form", ["fused", "wide"])
def test_results_do_not_depend_on_the_run(form, device):
    x, dy, p, scale = _inputs(4, 21, 72, 40, 80, 48, 0, torch.float32, torch.float32, device)
    first = _run(form, x, dy, p, 40, scale, 21, torch.float32)
    second = _run(form, x, dy, p, 40, scale, 21, torch.float32)
    for name, a, b in zip(("y", *GRADIENTS), first, second, strict=True):
        assert torch.equal(a, b), name


def test_more_programs_than_a_group(device, monkeypatch):
    """LayerNorm's gradients are added in groups of programs; the last group is shorter."""
    monkeypatch.setattr(mlp_tiles, "SUM_GROUP", 4)
    _small_tiles(monkeypatch)
    x, dy, p, scale = _inputs(6, 24, 20, 24, 24, 24, 0, torch.float32, torch.float32, device)
    results = _run("fused", x, dy, p, 24, scale, 24, torch.float32)
    expected = _torch(x, dy, [tensor.nan_to_num() for tensor in p], 24, scale, 24, torch.float32)
    for name, a, b in zip(("y", *GRADIENTS), results, expected, strict=True):
        assert torch.allclose(a, b, atol=2e-4), name
    assert (launch.counters(x.device, 1) == 0).all()


@needs_interpreter
@pytest.mark.parametrize("parts", [1, 32])
def test_every_gradient_is_written_once(parts, device, monkeypatch):
    """y and dx are not among them: their memory holds intermediate rows first (see the kernels' heads)."""
    monkeypatch.setattr(mlp_tiles, "SUM_GROUP", parts)
    _small_tiles(monkeypatch)
    x, dy, p, scale = _inputs(3, 11, 20, 30, 40, 36, 0, torch.float32, torch.float32, device)
    kept = []  # so that no gradient lies where an intermediate tensor was, whose stores would count
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        allocate = getattr(owner, name)
        keep = lambda *a, allocate=allocate, **k: kept.append(allocate(*a, **k)) or kept[-1]  # noqa: E731
        monkeypatch.setattr(owner, name, keep)
    with tiles.constrained(rows=16, cols=32, depth=16, splits=2), recorded_stores() as stores:
        _, dx, *gradients = _run("fused", x, dy, p, 30, scale, 11, torch.float32)
    for name, gradient in zip(GRADIENTS[1:], gradients, strict=True):
        assert_written_once(stores, gradient, name)


def test_without_biases(device):
    x, dy, p, scale = _inputs(2, 9, 40, 24, 48, 32, 0, torch.float32, torch.float32, device)
    zeroed = [*p[:3], torch.zeros_like(p[3]), p[4], torch.zeros_like(p[5])]
    p[3] = p[5] = None
    for form in ("fused", "wide"):
        results = _run(form, x, dy, p, 24, scale, 9, torch.float32)
        expected = _run(form, x, dy, zeroed, 24, scale, 9, torch.float32)
        assert results[5] is None and results[7] is None
        for i in (0, 1, 2, 3, 4, 6):
            assert torch.equal(results[i], expected[i]), ("y", *GRADIENTS)[i]


def test_weights_and_gradients_may_lie_apart(device):
    """Weights are read through their row strides, an expanded gradient is put right at the edge."""
    x, _, p, _ = _inputs(2, 9, 40, 24, 48, 32, 0, torch.float32, torch.float32, device)
    dy = torch.ones((), device=device).expand(18, 40)
    apart = list(p)
    for i in (2, 4):
        apart[i] = torch.full((p[i].shape[0], p[i].shape[1] + 5), NAN, device=device)[:, : p[i].shape[1]]
        apart[i].copy_(p[i])
    results = _run("fused", x, dy.contiguous(), p, 24, None, 9, torch.float32)
    for name, a, b in zip(
        ("y", *GRADIENTS), results, _run("fused", x, dy, apart, 24, None, 9, torch.float32), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("d", [40, 272])
def test_form_and_launches_follow_from_the_width(d, device):
    """Up to 256 channels nothing of the hidden layer is kept; both passes agree on it."""
    x, dy, p, scale = _inputs(2, 5, d, 24, 288, 32, 0, torch.float32, torch.float32, device)
    with launch.counted() as launches:
        y, mean, rstd, hidden = mlp.mlp_forward(x, *p[:2], EPS, *p[2:], 24, scale, 5, torch.float32)
    assert len(launches) == (3 if d > 256 else 1)
    assert mlp.mlp_keeps_hidden(d, torch.float32) == (d > 256)
    assert tuple(hidden.shape) == ((10, 24) if d > 256 else (0,))
    form = "wide" if d > 256 else "fused"
    with launch.counted() as launches:
        results = (y, *mlp.mlp_backward(dy, x, mean, rstd, hidden, *p, 24, scale, 5, torch.float32))
    assert len(launches) == (6 if d > 256 else 2)
    for name, a, b in zip(
        ("y", *GRADIENTS), results, _run(form, x, dy, p, 24, scale, 5, torch.float32), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("d", [40, 272])
def test_backward_takes_either_hidden_layer(d, device):
    """It may come from another backend, which kept h where this one would not, or did not where it would."""
    x, dy, p, scale = _inputs(2, 5, d, 24, 288, 32, 0, torch.float32, torch.float32, device)
    _, mean, rstd, hidden = wide_forward(x, *p[:2], EPS, *p[2:], 24, scale, 5, torch.float32)
    kept = mlp.mlp_backward(dy, x, mean, rstd, hidden, *p, 24, scale, 5, torch.float32)
    again = mlp.mlp_backward(dy, x, mean, rstd, hidden.new_empty(0), *p, 24, scale, 5, torch.float32)
    for name, a, b in zip(GRADIENTS, kept, again, strict=True):
        assert torch.allclose(a, b, atol=1e-4), name


def test_no_rows(device):
    _, _, p, _ = _inputs(1, 5, 40, 24, 48, 32, 0, torch.float32, torch.float32, device)
    x = torch.empty((0, 40), device=device)
    for form in ("fused", "wide"):
        with poisoned_outputs():
            y, dx, *gradients = _run(form, x, x, p, 24, None, 5, torch.float32)
        assert y.shape == dx.shape == (0, 40)
        assert all((gradient == 0).all() for gradient in gradients)


def test_refuses_what_it_cannot_compute(device):
    x, dy, p, scale = _inputs(2, 5, 40, 24, 48, 32, 0, torch.float32, torch.float32, device)

    def forward(x=x, p=p, m=24, scale=scale, tokens=5, dtype=torch.float32):
        return mlp.mlp_forward(x, *p[:2], EPS, *p[2:], m, scale, tokens, dtype)

    with pytest.raises(UsageError, match="33 x 40 is not inside a shared weight of shape"):
        forward(m=33)
    with pytest.raises(UsageError, match="40 x 24 is not inside a shared weight of shape"):
        forward(p=[*p[:4], p[4][:32], p[5][:32]])
    with pytest.raises(UsageError, match="Flatten the rows"):
        forward(x=x[None])
    with pytest.raises(UsageError, match="Pass one factor per image"):
        forward(scale=scale[:1])
    with pytest.raises(UsageError, match="no whole number of images of 3 tokens"):
        forward(tokens=3)
    with pytest.raises(UsageError, match="dtype is float64"):
        forward(dtype=torch.float64)
    with pytest.raises(UsageError, match="last stride of w2 is"):
        forward(p=[*p[:4], p[4].T.contiguous().T, p[5]])
    _, mean, rstd, hidden = forward()
    with pytest.raises(UsageError, match="the gradient needs"):
        mlp.mlp_backward(dy[:9], x, mean, rstd, hidden, *p, 24, scale, 5, torch.float32)
    with pytest.raises(UsageError, match="the hidden layer needs"):
        mlp.mlp_backward(
            dy, x, mean, rstd, torch.ones(10, 23, device=device), *p, 24, scale, 5, torch.float32
        )


@needs_interpreter
def test_interpreter_refuses_bfloat16_products(device):
    x, _, p, scale = _inputs(2, 5, 40, 24, 48, 32, 0, torch.float32, torch.float32, device)
    with pytest.raises(UsageError, match="no bfloat16 matmuls"):
        mlp.mlp_forward(x, *p[:2], EPS, *p[2:], 24, scale, 5, torch.bfloat16)
