"""Sliced QKV in Triton: against fp64, with poisoned surroundings, and bit for bit the same every time."""

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
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
    rows,
    with_dtypes,
)

from growtas.errors import UsageError
from growtas.kernels import qkv
from growtas.kernels.common import tiles

# images, tokens, embed_dim, heads, head_dim, shared embed_dim, shared heads, layout of the bias
CASES = [
    pytest.param(2, 37, 216, 3, 64, 256, 4, "interleaved", id="T-216-3"),
    pytest.param(1, 17, 36, 2, 12, 48, 3, "published", id="digits"),
    pytest.param(2, 17, 36, 2, 12, 48, 3, "interleaved", id="digits-interleaved"),
    pytest.param(3, 17, 48, 3, 16, 48, 3, "published", id="shared-edge"),
    pytest.param(2, 5, 37, 1, 20, 41, 2, "interleaved", id="one-head-primes"),
    pytest.param(1, 1, 8, 1, 8, 16, 2, "published", id="one-token"),
]
if GPU:
    CASES += [
        pytest.param(128, 197, 216, 3, 64, 256, 4, "published", id="T-216-3-batch-128"),
        pytest.param(128, 197, 624, 9, 64, 640, 10, "interleaved", id="B-624-9-batch-128"),
    ]


def _inputs(b, tokens, d, heads, e, d_max, heads_max, dtype, parameter_dtype, device, gap=0):
    torch.manual_seed(b * 1000 + d)
    x = rows(b * tokens, d, dtype, device, gap).unflatten(0, (b, tokens))
    weight = parameter((3 * e * heads_max, d_max), (3 * e * heads, d), parameter_dtype, device, 0.05)
    bias = parameter((3 * e * heads_max,), (3 * e * heads,), parameter_dtype, device, 1.0)
    dqkv = torch.randn(3, b, heads, tokens, e).to(device, dtype)
    return x, weight, bias, dqkv


@pytest.mark.parametrize(
    "b, tokens, d, heads, e, d_max, heads_max, layout, dtype, parameter_dtype", with_dtypes(CASES)
)
def test_matches_fp64(b, tokens, d, heads, e, d_max, heads_max, layout, dtype, parameter_dtype, device):
    x, weight, bias, dqkv = _inputs(
        b, tokens, d, heads, e, d_max, heads_max, dtype, parameter_dtype, device, gap=d % 3
    )
    with poisoned_outputs(), tiles.constrained(**LARGE_TILES):
        y = qkv.qkv_forward(x, weight, bias, heads, e, layout)
        dx = qkv.qkv_backward_input(dqkv, weight, d)
        gradients = {"one pass": qkv.qkv_backward_weight(dqkv, x, weight, bias, layout)}
        with tiles.constrained(splits=3, depth=16):
            gradients["split"] = qkv.qkv_backward_weight(dqkv, x, weight, bias, layout)

    x64, weight64, bias64, dqkv64 = (tensor.double() for tensor in (x, weight, bias, dqkv))
    assert y.is_contiguous() and y.shape == (3, b, heads, tokens, e)
    assert_as_good_as_torch(
        y,
        reference.qkv_forward(x, weight, bias, heads, e, layout),
        reference.qkv_forward(x64, weight64, bias64, heads, e, layout),
        d,
        "qkv",
    )
    assert_as_good_as_torch(
        dx,
        reference.qkv_backward_input(dqkv, weight, d),
        reference.qkv_backward_input(dqkv64, weight64, d),
        3 * heads * e,
        "dx",
    )
    active = 3 * heads * e
    plain = reference.qkv_backward_weight(dqkv, x, weight, bias, layout)
    truth = reference.qkv_backward_weight(dqkv64, x64, weight64, bias64, layout)
    for way, (dweight, dbias) in gradients.items():
        assert_zero_outside(dweight, (active, d), f"dweight ({way})")
        assert_zero_outside(dbias, (active,), f"dbias ({way})")
        assert_as_good_as_torch(dweight, plain[0], truth[0], b * tokens, f"dweight ({way})")
        assert_as_good_as_torch(dbias, plain[1], truth[1], b * tokens, f"dbias ({way})")


@pytest.mark.parametrize("layout", qkv.BIAS_LAYOUTS)
def test_tiles_smaller_than_images_and_heads(layout, device):
    """Row tiles that begin inside an image, unit tiles that begin inside a head, a head in two steps."""
    b, tokens, d, heads, e = 5, 7, 20, 2, 20
    x, weight, bias, dqkv = _inputs(b, tokens, d, heads, e, 24, 3, torch.float32, torch.float32, device)
    with poisoned_outputs(), tiles.constrained(rows=16, cols=16, depth=16):
        y = qkv.qkv_forward(x, weight, bias, heads, e, layout)
        dx = qkv.qkv_backward_input(dqkv, weight, d)
        dweight, dbias = qkv.qkv_backward_weight(dqkv, x, weight, bias, layout)
    expected = reference.qkv_backward_weight(dqkv, x, weight, bias, layout)
    assert torch.allclose(y, reference.qkv_forward(x, weight, bias, heads, e, layout), atol=1e-5)
    assert torch.allclose(dx, reference.qkv_backward_input(dqkv, weight, d), atol=1e-5)
    assert torch.allclose(dweight, expected[0], atol=1e-4)
    assert torch.allclose(dbias, expected[1], atol=1e-4)


@needs_interpreter
@pytest.mark.parametrize("layout", qkv.BIAS_LAYOUTS)
@pytest.mark.parametrize("splits", [1, 3])
def test_every_element_is_written_once(splits, layout, device):
    x, weight, bias, dqkv = _inputs(5, 7, 20, 2, 12, 36, 3, torch.float32, torch.float32, device)
    with tiles.constrained(rows=16, cols=16, depth=16, splits=splits):
        with recorded_stores() as stores:
            dweight, dbias = qkv.qkv_backward_weight(dqkv, x, weight, bias, layout)
        assert_written_once(stores, dweight, "dweight")
        assert_written_once(stores, dbias, "dbias")
        with recorded_stores() as stores:
            y = qkv.qkv_forward(x, weight, bias, 2, 12, layout)
        assert_written_once(stores, y, "qkv")
        with recorded_stores() as stores:
            dx = qkv.qkv_backward_input(dqkv, weight, 20)
        assert_written_once(stores, dx, "dx")


def test_head_j_owns_the_rows_it_is_published_with(device):
    """q, k and v of unit u are rows 3u, 3u+1 and 3u+2; written out here by hand, apart from the reference."""
    b, tokens, d, heads, e = 2, 5, 12, 2, 4
    x, weight, bias, _ = _inputs(b, tokens, d, heads, e, 16, 3, torch.float32, torch.float32, device)
    y = qkv.qkv_forward(x, weight, bias, heads, e, "interleaved")
    published = qkv.qkv_forward(x, weight, bias, heads, e, "published")
    for part in range(3):
        for head in range(heads):
            for channel in range(e):
                unit = head * e + channel
                matmul = x @ weight[3 * unit + part, :d]
                assert torch.allclose(y[part, :, head, :, channel], matmul + bias[3 * unit + part], atol=1e-5)
                shift = bias[part * heads * e + unit]
                assert torch.allclose(published[part, :, head, :, channel], matmul + shift, atol=1e-5)


def test_fewer_heads_are_a_prefix_of_more(device):
    x, weight, bias, _ = _inputs(2, 7, 24, 3, 8, 24, 3, torch.float32, torch.float32, device)
    few = qkv.qkv_forward(x, weight, bias, 2, 8)
    assert torch.equal(few, qkv.qkv_forward(x, weight, bias, 3, 8)[:, :, :2])


def test_images_may_lie_apart(device):
    """Activations without a common row stride (a slice of the tokens) are put right at the edge."""
    x, weight, bias, dqkv = _inputs(2, 7, 24, 2, 8, 32, 3, torch.float32, torch.float32, device)
    longer = torch.full((2, 9, 24), NAN, device=device)
    longer[:, 1:8] = x
    assert torch.equal(
        qkv.qkv_forward(longer[:, 1:8], weight, bias, 2, 8), qkv.qkv_forward(x, weight, bias, 2, 8)
    )
    transposed = dqkv.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(
        qkv.qkv_backward_weight(transposed, longer[:, 1:8], weight, bias)[0],
        qkv.qkv_backward_weight(dqkv, x, weight, bias)[0],
    )


@pytest.mark.parametrize("splits", [1, 4])
def test_gradients_do_not_depend_on_the_run(splits, device):
    x, weight, bias, dqkv = _inputs(4, 17, 36, 2, 12, 48, 3, torch.float32, torch.float32, device)
    with tiles.constrained(splits=splits, depth=16):
        first = qkv.qkv_backward_weight(dqkv, x, weight, bias)
        second = qkv.qkv_backward_weight(dqkv, x, weight, bias)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_no_images(device):
    weight, bias = torch.ones(96, 32, device=device), torch.ones(96, device=device)
    x = torch.empty((0, 17, 24), device=device)
    with poisoned_outputs():
        y = qkv.qkv_forward(x, weight, bias, 2, 16)
        assert y.shape == (3, 0, 2, 17, 16)
        assert qkv.qkv_backward_input(y, weight, 24).shape == (0, 17, 24)
        dweight, dbias = qkv.qkv_backward_weight(y, x, weight, bias)
    assert (dweight == 0).all() and (dbias == 0).all()


def test_refuses_what_it_cannot_project(device):
    x, weight, bias = (torch.ones(shape, device=device) for shape in ((2, 5, 24), (96, 32), (96,)))
    with pytest.raises(UsageError, match="144 x 24 is not inside"):
        qkv.qkv_forward(x, weight, bias, 3, 16)
    with pytest.raises(UsageError, match="multiple of 3 \\* head_dim = 60"):
        qkv.qkv_forward(x, weight, bias, 1, 20)
    with pytest.raises(UsageError, match="Did you mean 'interleaved'"):
        qkv.qkv_forward(x, weight, bias, 2, 16, "interleave")
    with pytest.raises(UsageError, match=r"\(B, N, d\) is needed"):
        qkv.qkv_forward(x[0], weight, bias, 2, 16)
    y = qkv.qkv_forward(x, weight, bias, 2, 16)
    with pytest.raises(UsageError, match=r"\(3, B, h, N, head_dim\) is needed"):
        qkv.qkv_backward_input(y[0], weight, 24)
    with pytest.raises(UsageError, match="2 images of 5 tokens"):
        qkv.qkv_backward_weight(y, x[:, :4], weight, bias)
