"""Partial LayerNorm in C++ and in CUDA C++, the latter on an emulated GPU too (tests/cuda_on_cpu).

Truth is the reference in fp64; a kernel's error may be twice that of the reference in the kernel's dtypes.
"""

from __future__ import annotations

import shutil
import subprocess
from types import SimpleNamespace

import pytest
import reference
import torch
from cuda_on_cpu import emulated
from cuda_on_cpu.emulated import emulate
from thinning import thinned

from growtas import native
from growtas.errors import GrowtasError
from growtas.ops import addresses
from growtas.ops.layer_norm import cpu, cuda

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SHAPES = [
    (1, 1), (1, 7), (3, 24), (2, 31), (40, 36), (9, 48), (17, 55), (5, 64), (3, 65), (13, 192), (37, 216),
    (5, 240), (3, 448), (7, 624), (2, 640), (3, 756), (2, 1024), (3, 1031),
]  # fmt: skip
DTYPES = [(FP32, FP32, FP32), (BF16, BF16, BF16), (FP16, FP16, FP16), (FP32, FP32, BF16), (BF16, FP32, BF16)]
DTYPES += [(BF16, FP32, FP32), (FP16, FP32, FP16), (FP32, BF16, FP16), (BF16, FP16, FP16)]
NAN = float("nan")


# ------------------------------------------------------------------------------------------- implementations


@pytest.fixture
def emulated_module():
    return emulated.emulated_module()


SIMD_LEVELS = {"cpu": 2, "cpu v3": 1, "cpu baseline": 0}


@pytest.fixture(params=[*SIMD_LEVELS, "emulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def kernel(request, monkeypatch):
    """forward, backward and the device of one implementation."""
    if request.param in SIMD_LEVELS:
        monkeypatch.setattr(addresses, "SIMD_LEVEL", SIMD_LEVELS[request.param])
        return SimpleNamespace(
            name="cpu",
            forward=cpu.layer_norm_forward,
            backward=cpu.layer_norm_backward,
            device="cpu",
        )
    if request.param == "emulated":
        emulate(request.getfixturevalue("emulated_module"), monkeypatch)
    elif not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return SimpleNamespace(
        name=request.param,
        forward=cuda.layer_norm_forward,
        backward=cuda.layer_norm_backward,
        device="cuda" if request.param == "cuda" else "cpu",
    )


# -------------------------------------------------------------------------------------------------- inputs


def surrounded(rows, width, dtype, device, generator, padding=(8, 8)):
    """A (rows, width) view whose neighbours in memory are NaN; padding keeps 16-byte packs aligned or not."""
    before, after = padding
    memory = torch.full((rows + 2, before + width + after), NAN, dtype=dtype)
    view = memory[1:-1, before : before + width]
    view.copy_(torch.randn(rows, width, generator=generator))
    memory = memory.to(device)
    return memory[1:-1, before : before + width]


def prefix(full, width, dtype, device, generator):
    """A parameter of `full` entries, NaN outside the slice and in the memory around it."""
    memory = torch.full((full + 8,), NAN, dtype=dtype)
    memory[4 : 4 + width] = torch.randn(width, generator=generator) * 0.5 + 1
    return memory.to(device)[4 : 4 + full]


def make(rows, width, dtypes, device, padding=(8, 8), seed=0, full=None):
    x_type, w_type, y_type = dtypes
    g = torch.Generator().manual_seed(seed)
    x = surrounded(rows, width, x_type, device, g, padding)
    dy = surrounded(rows, width, y_type, device, g, padding)
    full = full or width + 11
    return x, prefix(full, width, w_type, device, g), prefix(full, width, w_type, device, g), dy


def run(kernel, x, weight, bias, dy):
    y, mean, rstd = kernel.forward(x, weight, bias, 1e-5, dy.dtype)
    return (y, mean, rstd, *kernel.backward(dy, x, weight, bias, mean, rstd))


def run_reference(x, weight, bias, dy, wide=None):
    """The reference in its own dtypes, or all of it in a wider one."""
    width, y_type = x.shape[1], dy.dtype
    # The reference's whole slices are cut off before it sees them: NaN must not reach it.
    weight, bias = weight[:width], bias[:width]
    if wide:
        x, weight, bias, dy, y_type = x.to(wide), weight.to(wide), bias.to(wide), dy.to(wide), wide
    y, mean, rstd = reference.layer_norm_forward(x, weight, bias, 1e-5, y_type)
    return (y, mean, rstd, *reference.layer_norm_backward(dy, x, weight, bias, mean, rstd))


def errors(actual, truth):
    difference = (actual.double() - truth.double()).abs()
    return difference.max().item(), difference.square().mean().sqrt().item()


NAMES = ("y", "mean", "rstd", "dx", "dweight", "dbias")


def assert_accurate(actual, x, weight, bias, dy):
    rows, width = x.shape
    truth = run_reference(*(t.cpu() for t in (x, weight, bias, dy)), wide=torch.float64)
    peer = run_reference(*(t.cpu() for t in (x, weight, bias, dy)))
    for name, got, want, same in zip(NAMES, actual, truth, peer, strict=True):
        got = got.cpu()
        if name in ("dweight", "dbias"):
            assert got.shape == weight.shape and got.dtype == weight.dtype
            assert torch.equal(got[width:], torch.zeros_like(got[width:])), f"{name} beyond the slice"
            got = got[:width]
        assert got.isfinite().all(), name
        scale = want.abs().max().item()
        floor = 4e-7 * max(scale, 1) * (rows**0.5 if name in ("dweight", "dbias") else 1)
        for got_error, peer_error in zip(errors(got, want), errors(same, want), strict=True):
            assert got_error <= 2 * peer_error + floor, (name, got_error, peer_error, floor)


# --------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize(
    "dtypes", thinned(DTYPES, fast=(0, 1, 4, 6)), ids=lambda d: "-".join(str(t)[6:] for t in d)
)
def test_error_is_at_most_twice_that_of_torch(kernel, dtypes):
    for rows, width in SHAPES:
        inputs = make(rows, width, dtypes, kernel.device, seed=rows + width)
        assert_accurate(run(kernel, *inputs), *inputs)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("padding", [(8, 8), (3, 2), (0, 0), (16, 1)])
def test_rows_with_any_stride_and_alignment(kernel, dtype, padding):
    inputs = make(35, 216, (dtype, FP32, dtype), kernel.device, padding)
    assert_accurate(run(kernel, *inputs), *inputs)


def test_activations_and_parameters_with_gaps_between_their_elements(kernel):
    g = torch.Generator().manual_seed(3)
    x, dy = (torch.randn(24, 9, generator=g).to(kernel.device).t() for _ in range(2))
    weight, bias = (torch.randn(40, 2, generator=g).to(kernel.device)[:, 0] for _ in range(2))
    assert_accurate(run(kernel, x, weight, bias, dy), x, weight, bias, dy)


@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_the_variance_does_not_cancel(kernel, shift):
    x, weight, bias, dy = make(9, 448, (FP32, FP32, FP32), kernel.device)
    x += shift
    assert_accurate(run(kernel, x, weight, bias, dy), x, weight, bias, dy)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("width", [24, 31])
@pytest.mark.parametrize("size", [3e19, 1e20, 1e38])
def test_a_row_whose_squares_overflow_is_not_finite(kernel, size, width, dtype):
    """Zeros would be plausible: a run that diverged has to be seen to. The other rows keep their bits."""
    x, weight, bias, dy = make(3, width, (dtype, FP32, dtype), kernel.device)
    usual = run(kernel, x, weight, bias, dy)
    x[1] = x[1] / x[1].abs().max() * size
    y, mean, rstd, dx, *gradients = run(kernel, x, weight, bias, dy)
    for name, got, before in (("y", y, usual[0]), ("dx", dx, usual[3])):
        assert not got[1].isfinite().any(), name
        assert torch.equal(got[::2], before[::2]), name
    assert not any(gradient[:width].isfinite().any() for gradient in gradients[:1])


def test_many_rows(kernel):
    """More rows than the CPU's blocks and the GPU's grids hold at one row each."""
    rows, width = (1576, 216) if kernel.name == "cpu" else (8500, 8)
    inputs = make(rows, width, (FP32, FP32, FP32), kernel.device)
    assert_accurate(run(kernel, *inputs), *inputs)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_the_gradient_of_a_residual_stream_is_added(kernel, dtype):
    x, weight, bias, dy = make(35, 216, (dtype, FP32, dtype), kernel.device, (3, 2))
    around = surrounded(35, 216, dtype, kernel.device, torch.Generator().manual_seed(9), (2, 3))
    _, mean, rstd = kernel.forward(x, weight, bias, 1e-5, dtype)
    without, *parameters = kernel.backward(dy, x, weight, bias, mean, rstd)
    together, *same = kernel.backward(dy, x, weight, bias, mean, rstd, around)
    wanted = without.double() + around.double()
    tolerance = 2 * torch.finfo(dtype).eps  # the sum is rounded once, or the term and the sum
    torch.testing.assert_close(together.double(), wanted, rtol=tolerance, atol=tolerance * 4)
    assert all(torch.equal(a, b) for a, b in zip(parameters, same, strict=True))


def test_a_residual_stream_of_another_dtype_and_with_gaps_is_added():
    x, weight, bias, dy = make(35, 216, (BF16, FP32, BF16), "cpu")
    around = torch.randn(216, 35).t()
    _, mean, rstd = cpu.layer_norm_forward(x, weight, bias, 1e-5, BF16)
    found = cpu.layer_norm_backward(dy, x, weight, bias, mean, rstd, around)
    wanted = cpu.layer_norm_backward(dy, x, weight, bias, mean, rstd, around.to(BF16).contiguous())
    assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(str(t)[6:] for t in d))
def test_the_rows_come_again_from_their_statistics(dtypes):
    for rows, width in SHAPES:
        x, weight, bias, dy = make(rows, width, dtypes, "cpu", seed=rows + width)
        y, mean, rstd = cpu.layer_norm_forward(x, weight, bias, 1e-5, dy.dtype)
        assert torch.equal(cpu.layer_norm_again(x, weight, bias, mean, rstd, dy.dtype), y)


def test_no_rows(kernel):
    x, weight, bias, dy = make(0, 24, (FP32, FP32, FP32), kernel.device)
    y, mean, rstd, dx, dweight, dbias = run(kernel, x, weight, bias, dy)
    assert y.shape == dx.shape == (0, 24) and mean.shape == rstd.shape == (0,)
    assert torch.equal(dweight, torch.zeros_like(dweight)) and torch.equal(dbias, torch.zeros_like(dbias))


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_gradients_are_bitwise_repeatable(kernel, dtype):
    inputs = make(101 if kernel.name == "emulated" else 1576, 216, (dtype, FP32, dtype), kernel.device)
    first = run(kernel, *inputs)
    for _ in range(3):
        again = run(kernel, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_gradients_do_not_depend_on_the_number_of_threads():
    kernel = SimpleNamespace(forward=cpu.layer_norm_forward, backward=cpu.layer_norm_backward)
    inputs = make(1576, 240, (FP32, FP32, FP32), "cpu")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            if native.metadata("cpu")["openmp"]:
                assert native.load("cpu").threads() == threads  # the pool is torch's
            results.append(run(kernel, *inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_blocks_of_rows_are_added_in_order():
    """2^24 takes no 1 up: a 2 would, had the other two blocks been added first."""
    dy = torch.zeros(48, 24)  # three blocks
    dy[0], dy[16], dy[32] = 2.0**24, 1.0, 1.0
    x, weight = torch.randn(48, 24), torch.ones(24)
    *_, dbias = cpu.layer_norm_backward(dy, x, weight, weight, torch.zeros(48), torch.ones(48))
    assert (dbias == 2.0**24).all()


def test_the_cuda_kernels_do_not_depend_on_the_order_of_their_threads(emulated_module, monkeypatch):
    inputs = make(70, 216, (BF16, FP32, BF16), "cpu") + make(9, 31, (FP32, FP32, FP32), "cpu", full=40)
    kernel = SimpleNamespace(forward=cuda.layer_norm_forward, backward=cuda.layer_norm_backward)
    results = []
    for device in (0, 1):
        with monkeypatch.context() as patch:
            emulate(emulated_module, patch, device)
            results.append(run(kernel, *inputs[:4]) + run(kernel, *inputs[4:]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_launch_that_fails_is_a_sentence(emulated_module, monkeypatch):
    emulate(emulated_module, monkeypatch, device=7)
    x, weight, bias, dy = make(3, 24, (FP32, FP32, FP32), "cpu")
    with pytest.raises(
        GrowtasError, match=r"could not run layer_norm_forward: .*invalid device.*GROWTAS_CUDA_ARCHS"
    ):
        cuda.layer_norm_forward(x, weight, bias, 1e-5, FP32)


def test_the_native_functions_refuse_impossible_sizes():
    module, x = native.load("cpu"), torch.zeros(4)
    matrix, vector = (x.data_ptr(), 0, 4), (x.data_ptr(), 0, 1)
    with pytest.raises(ValueError, match="width is 0"):
        module.layer_norm_forward(
            *matrix, *vector, *vector, *matrix, x.data_ptr(), x.data_ptr(), 1, 0, 1e-5, 2
        )
    with pytest.raises(ValueError, match="dtype code 9"):
        module.layer_norm_forward(
            x.data_ptr(), 9, 4, *vector, *vector, *matrix, x.data_ptr(), x.data_ptr(), 1, 4, 1e-5, 2
        )


def test_every_half_precision_value_converts_exactly():
    """A weight of zero makes LayerNorm return its bias: all 65,536 values of each type pass through."""
    for dtype in (BF16, FP16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        x, weight = torch.zeros(1, every.numel()), torch.zeros(every.numel())
        y, _, _ = cpu.layer_norm_forward(x, weight, every, 1e-5, dtype)
        wide, _, _ = cpu.layer_norm_forward(x, weight, every, 1e-5, FP32)
        assert torch.equal(wide[0].nan_to_num(7.0), every.float().nan_to_num(7.0))
        assert torch.equal(y[0].isnan(), every.isnan())
        number = ~every.isnan()
        # 0 * xhat + bias makes +0 of -0, which is all that may change.
        assert torch.equal(y[0][number].float(), every[number].float())


def test_rounding_to_half_precision_is_to_nearest_even():
    values = torch.cat([torch.randn(20000) * s for s in (1e-8, 1e-6, 1e-3, 1.0, 1e4, 1e5, 1e38)])
    values = torch.cat(
        [
            values,
            torch.tensor([65519.99, 65520.0, 2.0**-25, 2.0**-24, 6.1e-5, 1 + 2.0**-11, 1 + 3 * 2.0**-11]),
        ]
    )
    for dtype in (BF16, FP16):
        y, _, _ = cpu.layer_norm_forward(
            torch.zeros(1, values.numel()), torch.zeros(values.numel()), values, 1e-5, dtype
        )
        assert torch.equal(y[0], values.to(dtype))


@pytest.mark.skipif(
    shutil.which("objdump") is None
    or "g++" not in native.metadata("cpu").get("compiler", "")
    or "x86-64-v4" not in native.metadata("cpu")["target_clones"],
    reason="needs binutils, and a build by GCC 12 or newer for x86-64: it looks for the names that one gives",
)
def test_each_leaf_has_its_vector_clones():
    binary = native.load("cpu").__file__
    symbols = subprocess.run(["nm", "-C", binary], capture_output=True, text=True, check=True).stdout
    for leaf in ("forward_leaf", "backward_leaf", "add_blocks"):
        for clone in ("arch_x86_64_v3", "arch_x86_64_v4", "default"):
            assert any(f"{leaf}(" in s and f"[clone .{clone}]" in s for s in symbols.splitlines()), (
                leaf,
                clone,
            )
    code = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", binary], capture_output=True, text=True
    ).stdout
    bodies = {b.split(">:")[0]: b for b in code.split("\n\n") if "_leaf(" in b.split(">:")[0]}
    for name, body in bodies.items():
        if name.endswith("[clone .arch_x86_64_v4]"):
            assert "%zmm" in body, name
        if name.endswith("[clone .arch_x86_64_v3]"):
            assert "%ymm" in body and "%zmm" not in body and "vfmadd" in body, name
        if name.endswith("[clone .default]"):
            assert "%ymm" not in body, name
