"""LayerNorm and q, k, v in one launch: against fp64, poisoned surroundings, the same bits every time."""

from __future__ import annotations

import pytest
import reference
import torch
from kernel_cases import (
    DTYPES,
    GPU,
    LARGE_TILES,
    assert_as_good_as_torch,
    assert_written_once,
    assert_zero_outside,
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
    rows,
)

from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.norm_qkv import norm_qkv_backward, norm_qkv_forward

interpreted_is_slow = () if GPU else pytest.mark.slow
# images, tokens, embed_dim, heads, head_dim, shared embed_dim, shared heads, layout of the bias
CASES = [
    pytest.param(2, 17, 216, 3, 64, 256, 4, "interleaved", id="T-216-3"),
    pytest.param(1, 13, 240, 4, 64, 256, 4, "published", id="T-240-4-shared-heads"),
    pytest.param(1, 11, 384, 2, 64, 448, 7, "interleaved", id="S-384-2"),
    pytest.param(1, 9, 624, 1, 64, 640, 10, "interleaved", id="B-624-1", marks=interpreted_is_slow),
    pytest.param(2, 17, 36, 2, 12, 48, 3, "published", id="digits"),
    pytest.param(3, 17, 48, 3, 16, 48, 3, "interleaved", id="shared-edge"),
    pytest.param(2, 5, 37, 1, 20, 41, 2, "interleaved", id="one-head-primes"),
    pytest.param(1, 1, 8, 1, 8, 16, 2, "published", id="one-token"),
]
if GPU:
    CASES += [
        pytest.param(128, 197, 216, 3, 64, 256, 4, "interleaved", id="T-216-3-batch-128"),
        pytest.param(128, 197, 624, 9, 64, 640, 10, "interleaved", id="B-624-9-batch-128"),
    ]

#: (stream, dtypes of activations and parameters).
FORMS = [
    (stream, form) for stream in ("fp32", "same") for form in DTYPES if stream == "fp32" or form.id != "fp32"
]
#: Narrow rows have every form. Wide ones, which the interpreter takes long for, have each dtype of matmuls,
#: of parameters and of the stream once up to 256 channels, where one program holds a row, and once beyond.
WIDE = {
    "T-216-3": ("fp32-fp32", "same-fp16"),
    "T-240-4-shared-heads": ("fp32-fp16-fp32",),
    "S-384-2": ("fp32-fp32", "same-fp16-fp32"),
    "B-624-1": ("same-fp16-fp32", "fp32-fp16"),
}
FORMED = [
    pytest.param(*case.values, stream, *form.values, id=f"{case.id}-{stream}-{form.id}",
                 marks=(*case.marks, *form.marks))
    for case in CASES for stream, form in FORMS
    if GPU or case.id not in WIDE or f"{stream}-{form.id}" in WIDE[case.id]
]  # fmt: skip


def _inputs(b, tokens, d, heads, e, d_max, heads_max, dtype, parameter_dtype, stream, device):
    torch.manual_seed(b * 1000 + d)
    x = rows(b * tokens, d, stream, device, d % 3)
    x.mul_(2).add_(1)  # a mean that the variance must not see
    residual = rows(b * tokens, d, stream, device)
    norm = [parameter((d_max,), (d,), parameter_dtype, device, 1.0) for _ in range(2)]
    weight = parameter((3 * e * heads_max, d_max), (3 * e * heads, d), parameter_dtype, device, 0.05)
    bias = parameter((3 * e * heads_max,), (3 * e * heads,), parameter_dtype, device, 1.0)
    dqkv = torch.randn(3, b, heads, tokens, e).to(device, dtype)
    x, residual = (tensor.unflatten(0, (b, tokens)) for tensor in (x, residual))
    return x, *norm, weight, bias, dqkv, residual


def _reference_forward(x, norm_weight, norm_bias, weight, bias, heads, e, layout, dtype):
    normalised, mean, rstd = reference.layer_norm_forward(
        x.flatten(0, 1), norm_weight, norm_bias, 1e-5, dtype
    )
    return reference.qkv_forward(normalised.view(x.shape), weight, bias, heads, e, layout), mean, rstd


def _reference_backward(dqkv, x, mean, rstd, norm_weight, norm_bias, weight, bias, layout, residual):
    flat, d = x.flatten(0, 1), x.shape[-1]
    normalised = reference.layer_norm_again(flat, norm_weight, norm_bias, mean, rstd, dqkv.dtype).view(
        x.shape
    )
    dweight, dbias = reference.qkv_backward_weight(dqkv, normalised, weight, bias, layout)
    dxn = reference.qkv_backward_input(dqkv, weight, d).flatten(0, 1)
    dx, dnorm_weight, dnorm_bias = reference.layer_norm_backward(
        dxn, flat, norm_weight, norm_bias, mean, rstd, residual.flatten(0, 1)
    )
    return dx.view(x.shape), dnorm_weight, dnorm_bias, dweight, dbias


@pytest.mark.parametrize(
    "b, tokens, d, heads, e, d_max, heads_max, layout, stream, dtype, parameter_dtype", FORMED
)
def test_matches_fp64(
    b, tokens, d, heads, e, d_max, heads_max, layout, stream, dtype, parameter_dtype, device
):
    inputs = _inputs(
        b, tokens, d, heads, e, d_max, heads_max, dtype, parameter_dtype,
        torch.float32 if stream == "fp32" else dtype, device,
    )  # fmt: skip
    *forward, dqkv, residual = inputs
    x, norm_weight, norm_bias, weight, bias = forward
    results = {}
    with poisoned_outputs(), tiles.constrained(**LARGE_TILES):
        for way in ("tiled", "held", "apart"):
            ways = {"held": way == "held", "apart": way == "apart"}
            with tiles.constrained(**ways), launch.counted() as launched:
                results[way] = norm_qkv_forward(
                    x, norm_weight, norm_bias, 1e-5, weight, bias, heads, e, layout, dtype
                )
            held = way == "held" and d <= 256 and dtype is not torch.float32
            one = "norm_qkv.forward._forward_held" if held else "norm_qkv.forward._forward_tiled"
            assert launched == (
                ["layer_norm.forward._forward", "qkv.forward._forward"] if way == "apart" else [one]
            )
        mean, rstd = results["tiled"][1:]
        gradients = {}
        depth = 16 if GPU or d < 200 else 32  # fewer steps along wide rows
        for apart in (False, True):
            with launch.counted() as launched, tiles.constrained(splits=2, depth=depth, apart=apart):
                gradients[apart] = norm_qkv_backward(
                    dqkv, x, mean, rstd, norm_weight, norm_bias, weight, bias, layout, residual
                )
            assert len(launched) == (2 if d <= 256 else 3) + apart
            assert ("layer_norm.normalise._normalise" in launched) == apart
        alone = norm_qkv_backward(dqkv, x, mean, rstd, norm_weight, norm_bias, weight, None, layout, None)

    forward64 = [tensor.double() for tensor in forward]
    plain = _reference_forward(*forward, heads, e, layout, dtype)
    truth = _reference_forward(*forward64, heads, e, layout, torch.float64)
    for way, (y, own_mean, own_rstd) in results.items():
        assert y.is_contiguous()
        assert own_mean.dtype is own_rstd.dtype is torch.float32
        assert_as_good_as_torch(y, plain[0], truth[0], d, f"qkv ({way})")
        assert_as_good_as_torch(own_mean, plain[1], truth[1], d, f"mean ({way})")
        assert_as_good_as_torch(own_rstd, plain[2], truth[2], d, f"rstd ({way})")

    parameters = (norm_weight, norm_bias, weight, bias)
    parameters64 = forward64[1:]
    plain = _reference_backward(dqkv, x, *plain[1:], *parameters, layout, residual)
    truth = _reference_backward(
        dqkv.double(), forward64[0], *truth[1:], *parameters64, layout, residual.double()
    )
    names = ("dx", "dnorm_weight", "dnorm_bias", "dweight", "dbias")
    active = (None, (d,), (d,), (3 * heads * e, d), (3 * heads * e,))
    terms = (3 * heads * e, b * tokens, b * tokens, b * tokens, b * tokens)
    for found in gradients.values():
        for name, one, same, right, place, count in zip(
            names, found, plain, truth, active, terms, strict=True
        ):
            assert_as_good_as_torch(one, same, right, count, name)
            if place:
                assert_zero_outside(one, place, name)
    assert alone[4] is None
    error = (alone[0].double() - (truth[0] - residual.double())).abs().max()
    assert error <= 2 * (gradients[False][0].double() - truth[0]).abs().max() + 1e-2 * truth[0].abs().max()


def test_more_groups_of_parts_than_one(device):
    """Row tiles whose sums for LayerNorm's parameters are added in several groups, the last one shorter."""
    x, norm_weight, norm_bias, weight, bias, dqkv, residual = _inputs(
        2, 200, 16, 1, 8, 20, 2, torch.float32, torch.float32, torch.float32, device
    )
    _, mean, rstd = norm_qkv_forward(
        x, norm_weight, norm_bias, 1e-5, weight, bias, 1, 8, "interleaved", torch.float32
    )
    arguments = (dqkv, x, mean, rstd, norm_weight, norm_bias, weight, bias, "interleaved")
    first = norm_qkv_backward(*arguments, residual)
    second = norm_qkv_backward(*arguments, residual)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    expected = _reference_backward(*arguments, residual)
    for one, right in zip(first, expected, strict=True):
        assert torch.allclose(one, right, atol=1e-3, rtol=1e-4)


@needs_interpreter
@pytest.mark.parametrize("way", ["tiled", "held", "apart"])
def test_every_element_is_written_once(way, device):
    x, norm_weight, norm_bias, weight, bias, dqkv, residual = _inputs(
        5, 7, 20, 2, 12, 36, 3, torch.float16, torch.float32, torch.float32, device
    )
    ways = {"held": way == "held", "apart": way == "apart"}
    with recorded_stores() as stores, tiles.constrained(rows=16, cols=16, depth=16, splits=2, **ways):
        qkv_, mean, rstd = norm_qkv_forward(
            x, norm_weight, norm_bias, 1e-5, weight, bias, 2, 12, "interleaved", torch.float16
        )
        dx, *gradients = norm_qkv_backward(
            dqkv, x, mean, rstd, norm_weight, norm_bias, weight, bias, "interleaved", residual
        )
    names = ("qkv", "mean", "rstd", "dnorm_weight", "dnorm_bias", "dweight", "dbias")
    for name, tensor in zip(names, (qkv_, mean, rstd, *gradients), strict=True):
        assert_written_once(stores, tensor, name)


def test_wide_rows_are_normalised_apart_where_they_fill_the_gpu():
    """Not where one program holds a row, nor for few rows, nor exact fp32, which has no wgmma."""
    for dtype, precision, count, width, apart in (
        (torch.bfloat16, "ieee", 128 * 197, 448, True),
        (torch.float32, "tf32", 128 * 197, 448, True),
        (torch.float32, "ieee", 128 * 197, 448, False),
        (torch.bfloat16, "ieee", 8 * 197, 448, False),
        (torch.bfloat16, "ieee", 128 * 197, 256, False),
        (torch.bfloat16, "ieee", 128 * 197, tiles.MAX_NORM_WIDTH + 1, False),
    ):
        assert tiles.norm_apart(dtype, precision, count, width, 132) == apart


def test_a_far_mean_does_not_spoil_the_variance(device):
    """Pieces of a row are joined by their counts: a common offset of the size of 1,000 deviations cancels."""
    b, tokens, d, heads, e = 1, 9, 300, 1, 16
    x, norm_weight, norm_bias, weight, bias, *_ = _inputs(
        b, tokens, d, heads, e, 320, 2, torch.float32, torch.float32, torch.float32, device
    )
    x.add_(2000)
    _, mean, rstd = norm_qkv_forward(
        x, norm_weight, norm_bias, 1e-5, weight, bias, heads, e, "interleaved", torch.float32
    )
    wide = x.double().flatten(0, 1)
    truth = (wide.var(-1, unbiased=False) + 1e-5).rsqrt()
    assert torch.allclose(mean.double(), wide.mean(-1), rtol=1e-6)
    assert torch.allclose(rstd.double(), truth, rtol=1e-4)


@pytest.mark.parametrize("d", [24, 300])  # a row that a program holds, and one in pieces
def test_a_row_whose_squares_overflow_is_not_finite(device, d):
    """Zeros would be plausible: a run that diverged has to be seen to. The other rows keep their bits."""
    x, norm_weight, norm_bias, weight, bias, *_ = _inputs(
        1, 5, d, 1, 16, 320, 2, torch.float32, torch.float32, torch.float32, device
    )
    results = []
    for size in (1.0, 1e20):
        x[0, 1].mul_(size)
        given = (x, norm_weight, norm_bias, 1e-5, weight, bias, 1, 16, "interleaved", torch.float32)
        results.append(norm_qkv_forward(*given))
    (usual, *_), (y, _, rstd) = results
    assert rstd.flatten()[1].isnan() and not y[..., 1, :].isfinite().any()
    assert torch.equal(y[..., 2:, :], usual[..., 2:, :]) and torch.equal(y[..., 0, :], usual[..., 0, :])


def test_no_images(device):
    norm, weight, bias = (torch.ones(shape, device=device) for shape in ((32,), (96, 32), (96,)))
    x = torch.empty((0, 17, 24), device=device)
    with poisoned_outputs():
        y, mean, rstd = norm_qkv_forward(
            x, norm, norm, 1e-5, weight, bias, 2, 16, "interleaved", torch.float32
        )
        dx, *gradients = norm_qkv_backward(y, x, mean, rstd, norm, norm, weight, bias, "interleaved", x)
    assert y.shape == (3, 0, 2, 17, 16) and dx.shape == (0, 17, 24)
    for gradient in gradients:
        assert (gradient == 0).all()


def test_refuses_what_does_not_fit(device):
    norm, weight, bias = (torch.ones(shape, device=device) for shape in ((32,), (96, 32), (96,)))
    x = torch.ones((2, 5, 24), device=device)
    forward = (1e-5, weight, bias, 2, 16, "interleaved", torch.float32)
    with pytest.raises(UsageError, match="24 channels needs weight and bias"):
        norm_qkv_forward(x, norm[:20], norm[:20], *forward)
    y, mean, rstd = norm_qkv_forward(x, norm, norm, *forward)
    with pytest.raises(UsageError, match="mean has shape"):
        norm_qkv_backward(y, x, mean[:4], rstd, norm, norm, weight, bias, "interleaved", x)
    with pytest.raises(UsageError, match="rstd is torch.float16"):
        norm_qkv_backward(y, x, mean, rstd.half(), norm, norm, weight, bias, "interleaved", x)
    with pytest.raises(UsageError, match="dresidual has shape"):
        norm_qkv_backward(y, x, mean, rstd, norm, norm, weight, bias, "interleaved", x[:1])
    with pytest.raises(UsageError, match="2 images of 5 tokens"):
        norm_qkv_backward(y, x[:1], mean, rstd, norm, norm, weight, bias, "interleaved", x)
