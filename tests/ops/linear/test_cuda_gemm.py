"""Sliced linear and sliced QKV in CUDA C++, on an emulated GPU (tests/cuda_on_cpu) and on a real one."""

from __future__ import annotations

import random

import pytest
import torch
from cuda_on_cpu import emulated
from cuda_on_cpu.emulated import emulate
from gemm_cases import BF16, FP16, FP32, NAN, Inputs, assert_accurate, check_linear, check_qkv
from thinning import thinned

import growtas
from growtas.errors import GrowtasError, UsageError
from growtas.ops import cuda_gemm, dispatch
from growtas.ops.linear import cuda as linear_cuda
from growtas.ops.qkv import cuda as qkv_cuda

#: Activations, parameters, and the residual stream.
DTYPES = [(FP32, FP32, FP32), (BF16, FP32, FP32), (BF16, BF16, BF16), (FP16, FP32, FP16), (FP16, FP16, FP32)]
SOME_DTYPES = thinned(DTYPES, fast=(0, 1, 3))
#: Rows, outputs and inputs of a slice.
SHAPES = [(1, 1, 1), (3, 24, 7), (37, 31, 41), (64, 64, 64), (70, 54, 36), (129, 65, 72)]
TILES = [64, 128]


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
                return cuda_gemm.Plan(64 if sizes[-1] else tile, parts)  # fp32 has one tile

            monkeypatch.setattr(linear_cuda, name, plan)
            monkeypatch.setattr(qkv_cuda, name, plan)

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


def ids(dtypes):
    return "-".join(str(t)[6:] for t in dtypes)


# --------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtypes", SOME_DTYPES, ids=ids)
def test_linear_is_as_accurate_as_torch(device, cut, dtypes, tile):
    for shape in SHAPES if tile == 64 else SHAPES[::2]:
        cut(tile)
        check_linear(device, *shape, dtypes, seed=sum(shape))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtypes", SOME_DTYPES, ids=ids)
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
@pytest.mark.parametrize("dtypes", SOME_DTYPES, ids=ids)
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
@pytest.mark.parametrize("dtypes", thinned(DTYPES[:3], fast=(0, 1)), ids=ids)
def test_sums_over_rows_in_parts(device, cut, dtypes, tile):
    for splits in (2, 3, 5):
        cut(tile, splits)
        check_linear(device, 210, 40, 72, dtypes, tokens=7, scaled=splits == 3)


def test_the_counters_of_parts_are_left_at_zero(device, cut):
    cut(64, 4)
    make = Inputs(device)
    dy, x = make.rows(300, 70, BF16), make.rows(300, 65, BF16)
    weight, bias = make.weight((70, 65), (70, 80), FP32), make.bias(70, 70, FP32)
    first = linear_cuda.linear_backward_weight(dy, x, weight, bias)
    for _ in range(3):
        again = linear_cuda.linear_backward_weight(dy, x, weight, bias)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for counters in cuda_gemm._counters.values():
        assert not counters.any()


class _OnGPU:
    """As much of a tensor on a GPU as the counters ask for."""

    is_cuda = True

    def new_zeros(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype)


def test_counters_are_kept_for_a_stream_and_never_across_the_edge_of_a_graph(monkeypatch):
    """A buffer that a graph zeroes is zeroed when it is replayed, not now: eager code must not find it, and
    what eager code keeps must not be what a graph counts in."""
    like, capturing = _OnGPU(), False
    monkeypatch.setattr(cuda_gemm, "_counters", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    capturing = True
    in_graph = [cuda_gemm._finished(like, (0, 1)) for _ in range(2)]
    assert not cuda_gemm._counters and in_graph[0].data_ptr() != in_graph[1].data_ptr()
    capturing = False
    eager = cuda_gemm._finished(like, (0, 1))
    assert eager is cuda_gemm._finished(like, (0, 1)) and not eager.any()  # never regrown, so never freed
    assert eager is not cuda_gemm._finished(like, (0, 2))
    capturing = True
    assert cuda_gemm._finished(like, (0, 1)).data_ptr() != eager.data_ptr()
    most = max(
        -(-rows // 128) * -(-cols // 128) * panels
        for rows, cols, panels in ((2560, 640, 1), (640, 2560, 1), (640, 640, 3), (4096, 1024, 1))
        if cuda_gemm.plan_gradient(rows, cols, 25216, panels, False).splits > 1
    )
    assert most <= cuda_gemm._MOST_TILES


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
    got = linear_cuda.linear_backward_weight(dy, x, weight, bias, None, 1, into)
    assert got[0] is into[0] and got[1] is into[1]
    alone = linear_cuda.linear_backward_weight(dy, x, weight, bias)
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
                        linear_cuda.linear_residual_forward(x, weight, bias, dy, scale, 5),
                        *linear_cuda.linear_gelu_backward_input(dy, weight, h, scale, 5),
                        *linear_cuda.linear_backward_weight(dy, x, weight, bias, scale, 5),
                        qkv_cuda.qkv_forward(x.view(3, 50, 72), weight[:48], bias[:48], 2, 6, "interleaved"),
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
    first = linear_cuda.linear_backward_weight(dy, x, weight, bias)
    for _ in range(20):
        again = linear_cuda.linear_backward_weight(dy, x, weight, bias)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    wide_gradient = dy.double().t() @ x.double()
    assert (first[0][:216, :240].double() - wide_gradient).abs().max() < 1e-3 * wide_gradient.abs().max()


def test_no_rows(device, cut):
    cut(64, 2)
    for dtypes in DTYPES[:2]:
        check_linear(device, 0, 24, 36, dtypes)
    make = Inputs(device)
    weight, bias = make.weight((72, 24), (96, 30), FP32), make.bias(72, 96, FP32)
    for images, tokens in ((0, 5), (2, 0)):
        x = torch.zeros(images, tokens, 24, device=device)
        dqkv = torch.zeros(3, images, 2, tokens, 12, device=device)
        assert qkv_cuda.qkv_forward(x, weight, bias, 2, 12, "interleaved").shape == dqkv.shape
        assert qkv_cuda.qkv_backward_input(dqkv, weight, 24).shape == x.shape
        for gradient in qkv_cuda.qkv_backward_weight(dqkv, x, weight, bias, "interleaved"):
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
        y = linear_cuda.linear_forward(x, weight, bias, 40)
        dx = linear_cuda.linear_backward_input(dy, weight, 72)
        dweight, dbias = linear_cuda.linear_backward_weight(dy, x, weight, bias)
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
        plan = cuda_gemm.plan_gradient(n, k, rows, panels, fp32)
        tiles = -(-n // plan.tile) * -(-k // plan.tile) * panels
        assert plan.tile == 64 if fp32 else plan.tile in TILES
        assert plan.splits == 1 or (
            tiles <= cuda_gemm._MOST_TILES and rows // plan.splits >= 256 and plan.splits <= 32
        )
        tile = cuda_gemm.plan_activation(rows, n, panels, fp32).tile
        assert tile == 64 or (not fp32 and -(-rows // 128) * -(-n // 128) * panels >= 132)


def test_sizes_that_cut_themselves(device):
    """The choices the products make alone, parts included."""
    check_linear(device, 600, 24, 36, (BF16, FP32, FP32))
    check_qkv(device, 2, 300, 24, 1, 16, (BF16, FP32, FP32), "interleaved")


def test_a_supernet_trains_on_the_cuda_backend(emulated_module, monkeypatch):
    """Every operation that has a CUDA kernel takes it: the gradients are those of torch."""
    torch.manual_seed(0)
    space = growtas.load_space("digits")
    net, subnet = growtas.Supernet(space, num_classes=10), space.sample(random.Random(1))
    images, taken = torch.randn(3, 1, 8, 8), set()

    def gradients(autocast: bool) -> dict[str, torch.Tensor]:
        net.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=BF16, enabled=autocast):
            loss = net(images, subnet).float().square().mean()
        loss.backward()
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    def choose(op: str, *_) -> str:
        taken.add(op)
        return "cuda" if "cuda" in dispatch.OPERATIONS[op].backends else "torch"

    with growtas.ops.use("torch"):
        truth, peer = gradients(False), gradients(True)
    monkeypatch.setattr(dispatch, "choose", choose)
    monkeypatch.setattr(dispatch, "_found", {})  # none that choose found before, or after
    emulate(emulated_module, monkeypatch)
    exact, rounded = gradients(False), gradients(True)
    assert {"layer_norm", "linear", "linear_gelu", "qkv"} <= taken
    assert exact.keys() == truth.keys()

    def error(got: dict[str, torch.Tensor]) -> float:
        return max(((got[n] - truth[n]).norm() / (truth[n].norm() + 1e-9)).item() for n in truth)

    assert error(exact) < 1e-5
    assert error(rounded) <= 2 * error(peer)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, w, b: linear_cuda.linear_forward(x, w.bfloat16(), b, 40), "weight is torch.bfloat16 and"),
        (
            lambda x, w, b: linear_cuda.linear_forward(x[:, :20], w.t(), b[:32], 30),
            "last stride of the weight",
        ),
        (lambda x, w, b: linear_cuda.linear_backward_input(x, w.half(), 8), "weight is torch.float16 and"),
        (
            lambda x, w, b: qkv_cuda.qkv_forward(x[None], w.half(), b, 2, 8, "interleaved"),
            "weight is torch.float16",
        ),
    ],
)
def test_a_weight_that_cannot_be_read_in_place_is_refused(emulated_module, monkeypatch, call, message):
    emulate(emulated_module, monkeypatch)
    x, weight, bias = torch.randn(6, 24), torch.randn(48, 32), torch.randn(48)
    with pytest.raises(UsageError, match=message):
        call(x, weight, bias)


def test_a_launch_that_fails_is_a_sentence(emulated_module, monkeypatch):
    emulate(emulated_module, monkeypatch, device=7)
    x, weight, bias = torch.randn(6, 24), torch.randn(48, 32), torch.randn(48)
    with pytest.raises(GrowtasError, match=r"could not run linear_forward: .*invalid device.*CUDA_ARCHS"):
        linear_cuda.linear_forward(x, weight, bias, 40)


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
