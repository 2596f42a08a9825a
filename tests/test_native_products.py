"""Sliced linear and sliced QKV in CUDA C++, on an emulated GPU (tests/cuda_on_cpu) and on a real one.

Truth is the reference in fp64; a kernel's error may be twice that of the reference in the kernel's dtypes.
"""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import emulated
from cuda_on_cpu.emulated import emulate

from growtas.errors import GrowtasError, UsageError
from growtas.ops import native, native_products, product_launch, reference

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NAN = float("nan")
#: Activations, parameters, and the residual stream.
DTYPES = [(FP32, FP32, FP32), (BF16, FP32, FP32), (BF16, BF16, BF16), (FP16, FP32, FP16), (FP16, FP16, FP32)]
#: Rows, outputs and inputs of a slice.
SHAPES = [(1, 1, 1), (3, 24, 7), (37, 31, 41), (64, 64, 64), (70, 54, 36), (129, 65, 72)]
TILES = [64, 128]
WIDER = {FP32: 4, BF16: 2, FP16: 2}


@pytest.fixture
def emulated_module():
    return emulated.emulated_module()


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request, monkeypatch):
    """The device of the tensors; CPU tensors reach the emulated GPU."""
    if request.param == "emulated":
        emulate(request.getfixturevalue("emulated_module"), monkeypatch)
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


@pytest.fixture
def cut(monkeypatch):
    """Sets how the next products are cut, whatever their size."""

    def set_plan(tile: int, splits: int = 1) -> None:
        for name, parts in (("plan_activation", 1), ("plan_gradient", splits)):

            def plan(*sizes, parts=parts):
                return product_launch.Plan(64 if sizes[-1] else tile, parts)  # fp32 has one tile

            monkeypatch.setattr(native_products, name, plan)

    return set_plan


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """New tensors hold NaN, and so does the memory around them: what is not written, or beyond, is seen."""
    new_empty, guard, made = torch.Tensor.new_empty, 64, []

    def new(self, *size, **options):
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        memory = new_empty(self, shape.numel() + 2 * guard, **options).fill_(NAN)
        made.append(memory)
        return memory[guard : memory.numel() - guard].view(shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", new)
    yield
    for memory in made:
        assert memory[:guard].isnan().all() and memory[-guard:].isnan().all(), "written outside an output"


# -------------------------------------------------------------------------------------------------- inputs


class Inputs:
    """Normal numbers in surroundings of NaN, always the same."""

    def __init__(self, device: str, seed: int = 0):
        self.device, self.generator = device, torch.Generator().manual_seed(seed)

    def rows(self, rows: int, width: int, dtype: torch.dtype, padding=(8, 8)) -> torch.Tensor:
        """(rows, width), `padding` elements of NaN before and after each row, and a row before and after."""
        before, after = padding
        memory = torch.full((rows + 2, before + width + after), NAN, dtype=dtype)
        memory[1:-1, before : before + width] = torch.randn(rows, width, generator=self.generator)
        return memory.to(self.device)[1:-1, before : before + width]

    def weight(self, active, full, dtype: torch.dtype, padding=(0, 0)) -> torch.Tensor:
        """(full) of which [:active] holds numbers; `padding` as above."""
        before, after = padding
        memory = torch.full((full[0] + 2, before + full[1] + after), NAN, dtype=dtype)
        memory[1 : 1 + active[0], before : before + active[1]] = (
            torch.randn(active, generator=self.generator) / active[1] ** 0.5
        )
        return memory.to(self.device)[1:-1, before : before + full[1]]

    def bias(self, active: int, full: int, dtype: torch.dtype) -> torch.Tensor:
        memory = torch.full((full + 2,), NAN, dtype=dtype)
        memory[1 : 1 + active] = torch.randn(active, generator=self.generator)
        return memory.to(self.device)[1:-1]

    def scale(self, images: int) -> torch.Tensor:
        """Drop-path factors: some images are dropped."""
        kept = torch.rand(images, generator=self.generator) < 0.7
        return (kept / 0.7).to(self.device)


def wide(arguments):
    """The same arguments in fp64, on the CPU."""
    return [
        a.cpu().double() if isinstance(a, torch.Tensor) else FP32 and a if a not in WIDER else torch.float64
        for a in arguments
    ]


def assert_accurate(name: str, *arguments, active: dict[int, tuple[int, ...]] | None = None) -> tuple:
    """Run an operation and compare each result with the reference of the same name.

    Args:
        name: of the operation.
        arguments: of it.
        active: of results that are gradients of parameters, by position, the slice outside of which they
            must be zero.

    Returns:
        The results.
    """
    results = getattr(native_products, f"cuda_{name}")(*arguments)
    truth = getattr(reference, name)(*wide(arguments))
    peer = getattr(reference, name)(*(a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments))
    alone = isinstance(results, torch.Tensor)
    compared = [(results, truth, peer)] if alone else list(zip(results, truth, peer, strict=True))
    for i, (got, want, same) in enumerate(compared):
        if got is None:
            assert want is None
            continue
        label, got = f"{name}, result {i}", got.cpu()
        assert got.shape == want.shape and got.dtype == same.dtype and got.is_contiguous(), label
        if active and i in active:
            inside = tuple(slice(size) for size in active[i])
            outside = got.clone()
            outside[inside] = 0
            assert torch.equal(outside, torch.zeros_like(outside)), f"{label}, outside the slice"
            got, want, same = got[inside], want[inside], same[inside]
        assert got.isfinite().all(), label
        error, peer_error = (got.double() - want).abs(), (same.double() - want).abs()
        if got.numel():
            largest = max(want.abs().max().item(), 1e-3)
            floor = torch.finfo(FP32).eps * 20 * largest
            rounding = torch.finfo(got.dtype).eps * largest  # of what goes in and comes out, once each
            most = max(2 * peer_error.max().item(), rounding) + floor
            assert error.max() <= most, (label, error.max(), peer_error.max())
            rms, peer_rms = (e.square().mean().sqrt() for e in (error, peer_error))
            assert rms <= 2 * peer_rms + floor, (label, rms, peer_rms)
    return (results,) if alone else results


def check_linear(
    device, m, n, k, dtypes, padding=(8, 8), weight_padding=(0, 0), tokens=1, scaled=False, seed=0
):
    """Every operation of the sliced linear layer, forward and backward."""
    dtype, parameter, stream = dtypes
    make = Inputs(device, seed)
    full = (n + 5, k + 11)
    x, dy = make.rows(m, k, dtype, padding), make.rows(m, n, dtype, padding)
    weight, bias = make.weight((n, k), full, parameter, weight_padding), make.bias(n, full[0], parameter)
    scale = make.scale(m // tokens) if scaled else None
    gradients = {0: (n, k), 1: (n,)}
    assert_accurate("linear_forward", x, weight, bias, n)
    assert_accurate("linear_forward", x, weight, None, n)
    assert_accurate("linear_gelu_forward", x, weight, bias, n)
    residual = make.rows(m, n, stream, padding)
    assert_accurate("linear_residual_forward", x, weight, bias, residual, scale, tokens)
    assert_accurate("linear_backward_input", dy, weight, k, scale, tokens)
    assert_accurate("linear_gelu_backward_input", dy, weight, x, scale, tokens)
    assert_accurate("linear_backward_weight", dy, x, weight, bias, scale, tokens, active=gradients)
    assert_accurate("linear_backward_weight", dy, x, weight, None, scale, tokens, active=gradients)
    if stream is not dtype:  # the gradient of a residual stream in fp32, products in 16 bits
        dy = make.rows(m, n, stream, padding)
        assert_accurate("linear_backward_input", dy, weight, k, scale, tokens, dtype)
        assert_accurate("linear_gelu_backward_input", dy, weight, x, scale, tokens)
        assert_accurate("linear_backward_weight", dy, x, weight, bias, scale, tokens, active=gradients)


def check_qkv(device, images, tokens, d, heads, head_dim, dtypes, layout, padding=(8, 8), seed=0):
    """Every operation of the sliced QKV layer."""
    dtype, parameter, _ = dtypes
    make = Inputs(device, seed)
    active, full = 3 * heads * head_dim, (3 * (heads + 1) * head_dim, d + 13)
    x = make.rows(images * tokens, d, dtype, padding).view(images, tokens, d)
    weight, bias = make.weight((active, d), full, parameter), make.bias(active, full[0], parameter)
    dqkv = make.rows(3 * images * heads * tokens, head_dim, dtype, (0, 0)).view(3, images, heads, tokens, -1)
    assert_accurate("qkv_forward", x, weight, bias, heads, head_dim, layout)
    assert_accurate("qkv_forward", x, weight, None, heads, head_dim, layout)
    assert_accurate("qkv_backward_input", dqkv, weight, d)
    gradients = {0: (active, d), 1: (active,)}
    assert_accurate("qkv_backward_weight", dqkv, x, weight, bias, layout, active=gradients)
    assert_accurate("qkv_backward_weight", dqkv, x, weight, None, layout, active=gradients)


def ids(dtypes):
    return "-".join(str(t)[6:] for t in dtypes)


# --------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
def test_linear_is_as_accurate_as_torch(device, cut, dtypes, tile):
    for shape in SHAPES if tile == 64 else SHAPES[::2]:
        cut(tile)
        check_linear(device, *shape, dtypes, seed=sum(shape))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
def test_drop_path_scales_rows_by_image(device, cut, dtypes, tile):
    cut(tile)
    for images, tokens in ((7, 5), (2, 37), (1, 1)):
        check_linear(device, images * tokens, 40, 24, dtypes, tokens=tokens, scaled=True)


@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
@pytest.mark.parametrize("padding", [(0, 0), (4, 4), (2, 2), (1, 0), (3, 2), (16, 1)])
def test_rows_and_weights_of_any_alignment(device, cut, padding, dtypes):
    """Copies of 16, 8, 4 and 2 bytes: what the addresses and strides allow, at widths that fill no tile."""
    cut(64)
    check_linear(device, 35, 27, 54, dtypes, padding)
    check_linear(device, 35, 36, 52, dtypes, padding, weight_padding=padding, tokens=5, scaled=True)


def test_widths_of_the_published_spaces(device, cut):
    """756 and 840 elements of 16 bits are 8 and 16 bytes aligned, row after row."""
    cut(64)
    for out, width in ((24, 756), (756, 24), (40, 840)):
        check_linear(device, 9, out, width, (BF16, FP32, FP32), padding=(0, 0))


@pytest.mark.parametrize("layout", ["interleaved", "published"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
def test_qkv_is_as_accurate_as_torch(device, cut, dtypes, layout):
    cut(64)
    check_qkv(device, 2, 17, 40, 3, 64, dtypes, layout)
    check_qkv(device, 3, 5, 24, 2, 12, dtypes, layout)  # packs reach into the next head
    check_qkv(device, 1, 70, 31, 1, 40, dtypes, layout, padding=(1, 2))
    check_qkv(device, 4, 1, 9, 2, 5, dtypes, layout, padding=(0, 0))


def test_qkv_in_large_tiles_and_parts(device, cut):
    cut(128, 2)
    check_qkv(device, 3, 33, 72, 3, 64, (BF16, FP32, FP32), "interleaved")
    check_qkv(device, 3, 33, 72, 2, 36, (FP16, FP16, FP16), "published")


def test_qkv_takes_tokens_and_gradients_that_are_not_dense(device, cut):
    cut(64)
    make = Inputs(device)
    x = make.rows(2 * 6, 24, BF16).view(2, 6, 24)[:, 1:]
    weight, bias = make.weight((72, 24), (96, 30), FP32), make.bias(72, 96, FP32)
    dqkv = torch.randn(5, 3, 2, 2, 12, generator=make.generator).to(device, BF16).permute(1, 2, 3, 0, 4)
    assert_accurate("qkv_forward", x, weight, bias, 2, 12, "interleaved")
    assert_accurate("qkv_backward_input", dqkv, weight, 24)
    assert_accurate("qkv_backward_weight", dqkv, x, weight, bias, "published", active={0: (72, 24), 1: (72,)})


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=ids)
def test_sums_over_rows_in_parts(device, cut, dtypes, tile):
    for splits in (2, 3, 5):
        cut(tile, splits)
        check_linear(device, 210, 40, 72, dtypes, tokens=7, scaled=splits == 3)


def test_the_counters_of_parts_are_left_at_zero(device, cut):
    cut(64, 4)
    make = Inputs(device)
    dy, x = make.rows(300, 70, BF16), make.rows(300, 65, BF16)
    weight, bias = make.weight((70, 65), (70, 80), FP32), make.bias(70, 70, FP32)
    first = native_products.cuda_linear_backward_weight(dy, x, weight, bias)
    for _ in range(3):
        again = native_products.cuda_linear_backward_weight(dy, x, weight, bias)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for counters in product_launch._counters.values():
        assert not counters.any()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=ids)
def test_gradients_are_added_to_others_inside_the_slice(device, cut, dtypes, parts):
    cut(64, parts)
    make = Inputs(device)
    dtype, parameter, _ = dtypes
    dy, x = make.rows(120, 24, dtype), make.rows(120, 37, dtype)
    weight, bias = make.weight((24, 37), (30, 50), parameter), make.bias(24, 30, parameter)
    before = torch.randn(30, 50, generator=make.generator).to(device, parameter), make.bias(30, 30, parameter)
    into = tuple(g.clone() for g in before)
    got = native_products.cuda_linear_backward_weight(dy, x, weight, bias, None, 1, into)
    assert got[0] is into[0] and got[1] is into[1]
    alone = native_products.cuda_linear_backward_weight(dy, x, weight, bias)
    for sum_, old, new in zip(got, before, alone, strict=True):
        want = old.double() + new.double()
        assert (sum_.double() - want).abs().max() <= 2 * torch.finfo(parameter).eps * want.abs().max()
    outside = torch.ones(30, 50, dtype=torch.bool)
    outside[:24, :37] = False
    assert torch.equal(got[0].cpu()[outside], before[0].cpu()[outside])
    assert torch.equal(got[1][24:], before[1][24:])


def test_results_do_not_depend_on_the_order_of_blocks_and_threads(emulated_module, cut, monkeypatch):
    """Nor on when copies to shared memory arrive: device 1 runs the other way round and copies at once."""
    cut(64, 3)
    make = Inputs("cpu")
    results = []
    for dtype, stream in ((BF16, FP32), (FP16, FP16), (FP32, FP32)):
        x, dy, h = make.rows(150, 72, dtype), make.rows(150, 40, stream), make.rows(150, 72, dtype)
        weight, bias = make.weight((40, 72), (50, 80), FP32), make.bias(40, 50, FP32)
        scale = make.scale(30)
        for device in (0, 1):
            with monkeypatch.context() as patch:
                emulate(emulated_module, patch, device)
                results.append(
                    [
                        native_products.cuda_linear_residual_forward(x, weight, bias, dy, scale, 5),
                        *native_products.cuda_linear_gelu_backward_input(dy, weight, h, scale, 5),
                        *native_products.cuda_linear_backward_weight(dy, x, weight, bias, scale, 5),
                        native_products.cuda_qkv_forward(x.view(3, 50, 72), weight[:48], bias[:48], 2, 6),
                    ]
                )
        assert all(torch.equal(a, b) for a, b in zip(*results[-2:], strict=True))


@pytest.mark.cuda
def test_gradients_are_bitwise_repeatable_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    make = Inputs("cuda")
    dy, x = make.rows(25216, 216, BF16), make.rows(25216, 240, BF16)
    weight, bias = make.weight((216, 240), (256, 256), FP32), make.bias(216, 256, FP32)
    first = native_products.cuda_linear_backward_weight(dy, x, weight, bias)
    for _ in range(20):
        again = native_products.cuda_linear_backward_weight(dy, x, weight, bias)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    wide_gradient = dy.double().t() @ x.double()
    assert (first[0][:216, :240].double() - wide_gradient).abs().max() < 1e-3 * wide_gradient.abs().max()


def test_no_rows(device, cut):
    cut(64, 2)
    for dtypes in DTYPES[:2]:
        check_linear(device, 0, 24, 36, dtypes)
    make = Inputs(device)
    weight, bias = make.weight((72, 24), (96, 30), FP32), make.bias(72, 96, FP32)
    x, dqkv = torch.zeros(0, 5, 24, device=device), torch.zeros(3, 0, 2, 5, 12, device=device)
    assert native_products.cuda_qkv_forward(x, weight, bias, 2, 12).shape == dqkv.shape
    assert native_products.cuda_qkv_backward_input(dqkv, weight, 24).shape == x.shape
    for gradient in native_products.cuda_qkv_backward_weight(dqkv, x, weight, bias):
        assert not gradient.any()


def test_fp32_uses_tensor_cores_only_when_asked(device, cut):
    """tf32 keeps 10 bits of each factor; the bias gradient stays exact."""
    cut(64, 2)
    make = Inputs(device)
    dy, x = make.rows(150, 40, FP32), make.rows(150, 72, FP32)
    weight, bias = make.weight((40, 72), (50, 80), FP32), make.bias(40, 50, FP32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        y = native_products.cuda_linear_forward(x, weight, bias, 40)
        dx = native_products.cuda_linear_backward_input(dy, weight, 72)
        dweight, dbias = native_products.cuda_linear_backward_weight(dy, x, weight, bias)
    finally:
        torch.set_float32_matmul_precision(before)
    x, dy, weight, bias = (t.cpu().double() for t in (x, dy, weight[:40, :72], bias[:40]))
    truths = (x @ weight.t() + bias, dy @ weight, dy.t() @ x)
    for got, want in zip((y, dx, dweight[:40, :72]), truths, strict=True):
        error = ((got.cpu().double() - want).abs().max() / want.abs().max()).item()
        assert 1e-6 < error < 1e-3
    assert (dbias[:40].cpu().double() - dy.sum(0)).abs().max() < 1e-5


@pytest.mark.parametrize("sizes", [(1, 1), (216, 216), (768, 216), (240, 960), (2560, 640), (640, 12)])
@pytest.mark.parametrize("rows", [1, 300, 1576, 25216, 100864])
@pytest.mark.parametrize("panels", [1, 3])
def test_how_products_are_cut(sizes, rows, panels):
    n, k = sizes
    for fp32 in (True, False):
        plan = product_launch.plan_gradient(n, k, rows, panels, fp32)
        tiles = -(-n // plan.tile) * -(-k // plan.tile) * panels
        assert plan.tile == 64 if fp32 else plan.tile in TILES
        assert plan.splits == 1 or (
            tiles <= product_launch._MOST_TILES and rows // plan.splits >= 256 and plan.splits <= 32
        )
        tile = product_launch.plan_activation(rows, n, panels, fp32).tile
        assert tile == 64 or (not fp32 and -(-rows // 128) * -(-n // 128) * panels >= 132)


def test_sizes_that_cut_themselves(device):
    """The choices the products make alone, parts included."""
    check_linear(device, 600, 24, 36, (BF16, FP32, FP32))
    check_qkv(device, 2, 300, 24, 1, 16, (BF16, FP32, FP32), "interleaved")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, x, w, b: p.cuda_linear_forward(x, w, b, 50), r"slice of 50 x 24 .* shape \(48, 32\)"),
        (lambda p, x, w, b: p.cuda_linear_forward(x, w, b[:9], 40), "Pass the whole bias"),
        (
            lambda p, x, w, b: p.cuda_linear_forward(x, w.bfloat16(), b, 40),
            "weight is torch.bfloat16 and",
        ),
        (lambda p, x, w, b: p.cuda_linear_forward(x[:, :20], w.t(), b[:32], 30), "last stride of the weight"),
        (lambda p, x, w, b: p.cuda_linear_forward(x.double(), w, b, 40), "x is torch.float64"),
        (lambda p, x, w, b: p.cuda_linear_forward(x, w.to("meta"), b, 40), "weight is on meta"),
        (
            lambda p, x, w, b: p.cuda_linear_residual_forward(x, w, b, torch.zeros(5, 40), None, 1),
            r"residual has shape \(5, 40\) .* \(6, 40\)",
        ),
        (
            lambda p, x, w, b: p.cuda_linear_residual_forward(x, w, b, torch.zeros(6, 40), torch.ones(3), 3),
            r"scale is torch.float32 of shape \(3,\), and must be .*\(2,\)",
        ),
        (lambda p, x, w, b: p.cuda_linear_backward_input(x, w, 8, None, 4), "6 rows are no images of 4"),
        (
            lambda p, x, w, b: p.cuda_linear_backward_weight(x, x, w, b, into=(w.bfloat16(), b)),
            "gradient of the weight is torch.bfloat16",
        ),
        (lambda p, x, w, b: p.cuda_linear_backward_weight(x, x, w, b, into=(w, None)), "exactly where there"),
        (lambda p, x, w, b: p.cuda_qkv_forward(x, w, b, 2, 8), r"but \(B, N, d\) is needed"),
        (lambda p, x, w, b: p.cuda_qkv_forward(x[None], w, b, 2, 8, "publshed"), "Did you mean 'published'"),
        (lambda p, x, w, b: p.cuda_qkv_backward_input(x[None], w, 8), "head_dim\\) is needed"),
        (
            lambda p, x, w, b: p.cuda_qkv_backward_weight(torch.zeros(3, 1, 2, 5, 8), x[None], w, b),
            "must come from the same batch",
        ),
    ],
)
def test_wrong_input_is_a_sentence(emulated_module, monkeypatch, call, message):
    emulate(emulated_module, monkeypatch)
    x, weight, bias = torch.randn(6, 24), torch.randn(48, 32), torch.randn(48)
    with pytest.raises(ValueError, match=message) as raised:
        call(native_products, x, weight, bias)
    assert isinstance(raised.value, UsageError) or "float64" in message


def test_a_launch_that_fails_is_a_sentence(emulated_module, monkeypatch):
    emulate(emulated_module, monkeypatch, device=7)
    x, weight, bias = torch.randn(6, 24), torch.randn(48, 32), torch.randn(48)
    with pytest.raises(GrowtasError, match=r"could not run linear_forward: .*invalid device.*CUDA_ARCHS"):
        native_products.cuda_linear_forward(x, weight, bias, 40)


def test_the_module_refuses_impossible_sizes(emulated_module):
    matrix, place, whole = (0, 0, 8), (0, 0), (64, 1, False, 0, 0, 0)
    for sizes, plan, message in (
        ((-1, 8, 8, 1), whole, "rows is -1"),
        ((4, 0, 8, 1), whole, "out is 0"),
        ((4, 8, 2**31, 1), whole, "in is 2147483648"),
        ((4, 8, 8, 1), (96, 1, False, 0, 0, 0), "tile is 96"),
        ((4, 8, 8, 1), (64, 2, False, 0, 0, 0), "no memory for partial sums"),
    ):
        with pytest.raises(ValueError, match=message):
            emulated_module.linear_backward_input(matrix, matrix, matrix, 0, sizes, plan, place)


# --------------------------------------------------------------------------------------- what was compiled

needs_build = pytest.mark.skipif(not native.status("cuda").ok, reason="growtas._cuda was not built")


def products() -> list[dict]:
    return [k for k in native.metadata("cuda")["kernels"] if k["kernel"].startswith("product_")]


@needs_build
def test_the_compiled_products_leave_room_and_spill_nothing():
    """34 kernels per architecture: 7 pairs of types in two 16-bit dtypes and two tiles, and fp32's six."""
    archs = native.metadata("cuda")["archs"]
    assert len({k["kernel"] for k in products()}) == 34 and len(products()) == 34 * len(archs)
    for kernel in products():
        assert kernel["spill_stores"] == kernel["spill_loads"] == kernel["stack"] == 0, kernel
        large = kernel["kernel"].rstrip(">()Product").endswith("128")
        assert kernel["registers"] * (256 if large else 3 * 128) <= 65536, kernel


@functools.cache
def _cuobjdump() -> str | None:
    """Of the CUDA toolkit, or the one that Triton brings along."""
    places = [Path(native.metadata("cuda").get("toolkit", "/nowhere"), "bin", "cuobjdump")]
    try:
        import triton

        places.append(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    except ImportError:
        pass
    return next((str(p) for p in places if p.is_file()), None)


@needs_build
@pytest.mark.skipif(_cuobjdump() is None, reason="needs cuobjdump")
def test_the_compiled_products_use_tensor_cores_and_asynchronous_copies():
    """HMMA is mma.sync, LDSM ldmatrix, LDGSTS cp.async; exact fp32 has none but the last."""
    arch = native.metadata("cuda")["archs"][-1]
    code = subprocess.run(
        [_cuobjdump(), "-sass", "-arch", f"sm_{arch}", native.load("cuda").__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    bodies = [b for b in re.split(r"\n\s+Function : ", code) if "product_" in b.split("\n", 1)[0]]
    assert len(bodies) == 34
    for body in bodies:
        name, instructions = body.split("\n", 1)
        exact = "fffLb1E" in name  # <float, float, float, FMA = true, ...>
        assert ("HMMA" in instructions) is not exact, name
        assert ("LDSM" in instructions) is ("ffLb" not in name), name  # both operands of fp32: converted
        assert "LDGSTS" in instructions and "LDGDEPBAR" in instructions, name
        assert exact is ("FFMA" in instructions and "HMMA" not in instructions), name
        assert "STL" not in instructions and "LDL" not in instructions, name  # local memory: a spill
