"""Attention with relative position in C++: accurate, inside its memory, the same bits on any threads.

Truth is the reference in fp64; the kernel's error may be twice that of the reference in the kernel's dtypes.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import reference
import torch

from growtas import native
from growtas.ops.relative_attention import cpu

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NAN = float("nan")
NAMES = ("out", "lse", "dqkv", "dkey_v", "dkey_h", "dvalue_v", "dvalue_h")

# grid, cls, head_dim, clamp
SHAPES = [
    ((14, 14), 1, 64, 14),
    ((2, 3), 1, 40, 14),
    ((4, 4), 1, 16, 14),
    ((8, 8), 1, 24, 3),
    ((2, 8), 0, 32, 14),
    ((9, 8), 1, 16, 14),
    ((5, 3), 0, 32, 2),
    ((1, 1), 1, 64, 1),
    ((1, 1), 0, 24, 0),
    ((7, 1), 1, 7, 3),
    ((20, 18), 1, 64, 7),
    ((3, 35), 0, 128, 40),
]
LAYOUTS = ("interleaved", "contiguous", "token_major", "gaps")


def laid_out(values, layout):
    """The same (3, B, h, N, e) in other memory; what lies around and between its elements is NaN."""
    _, batch, heads, tokens, head_dim = values.shape
    order = {
        "interleaved": (1, 3, 2, 4, 0),
        "contiguous": (0, 1, 2, 3, 4),
        "token_major": (0, 1, 3, 2, 4),
        "gaps": (0, 1, 2, 3, 4),
    }[layout]
    sizes = [values.shape[i] for i in order]
    count = values.numel() * (2 if layout == "gaps" else 1)
    memory = torch.full((count + 40,), NAN, dtype=values.dtype)
    inside = memory[20 : 20 + count]
    if layout == "gaps":
        inside = inside[::2]
    view = inside.view(sizes) if layout != "gaps" else inside.unflatten(0, sizes)
    view = view.permute([order.index(i) for i in range(5)])
    return view.copy_(values)


def surrounded_rows(values, padding):
    """A matrix whose rows end in NaN."""
    memory = torch.full((*values.shape[:-1], values.shape[-1] + padding), NAN, dtype=values.dtype)
    memory[..., : values.shape[-1]] = values
    return memory[..., : values.shape[-1]]


def make(grid, cls, head_dim, clamp, dtype=FP32, layout="interleaved", batch=2, heads=3, table_dtype=FP32):
    g = torch.Generator().manual_seed(head_dim + grid[0])
    tokens = grid[0] * grid[1] + cls
    qkv = torch.randn(3, batch, heads, tokens, head_dim, generator=g).to(dtype)
    tables = [torch.randn(2 * clamp + 2, head_dim, generator=g) * 0.5 for _ in range(4)]
    tables = [surrounded_rows(table.to(table_dtype), 3) for table in tables]
    dout = surrounded_rows(torch.randn(batch, tokens, heads * head_dim, generator=g).to(dtype), 5)
    return laid_out(qkv, layout), tables, dout, grid


def run(qkv, tables, dout, grid):
    out, lse = cpu.relative_attention_forward(qkv, *tables, grid)
    backward = cpu.relative_attention_backward(dout, qkv, *tables, out, lse, grid)
    return out, lse, *backward


def run_reference(qkv, tables, dout, grid, wide=None):
    if wide:
        qkv, tables, dout = qkv.to(wide), [table.to(wide) for table in tables], dout.to(wide)
    out, lse = reference.relative_attention_forward(qkv, *tables, grid)
    return out, lse, *reference.relative_attention_backward(dout, qkv, *tables, out, lse, grid)


def assert_accurate(actual, qkv, tables, dout, grid):
    truth = run_reference(qkv, tables, dout, grid, wide=torch.float64)
    peer = run_reference(qkv, tables, dout, grid)
    for name, got, want, same in zip(NAMES, actual, truth, peer, strict=True):
        assert got.shape == want.shape and got.dtype == same.dtype, name
        assert got.isfinite().all(), name
        floor = 4e-7 * max(want.abs().max().item(), 1)
        for measure in (torch.amax, lambda e: e.square().mean().sqrt()):
            error, peer_error = (measure((x.double() - want).abs()).item() for x in (got, same))
            assert error <= 2 * peer_error + floor, (name, error, peer_error, floor)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_that_of_torch(shape, level):
    inputs = make(*shape)
    assert_accurate(run(*inputs), *inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_every_layout_and_dtype(layout, dtype, level):
    for shape in (((5, 7), 1, 64, 14), ((4, 4), 0, 40, 2)):
        inputs = make(*shape, dtype, layout)
        actual = run(*inputs)
        assert_accurate(actual, *inputs)
        if layout != "gaps":
            assert actual[2].stride() == inputs[0].stride()


@pytest.mark.parametrize("table_dtype", [BF16, FP16], ids=str)
def test_tables_in_half_precision(table_dtype):
    inputs = make((5, 7), 1, 64, 3, table_dtype, table_dtype=table_dtype)
    assert_accurate(run(*inputs), *inputs)


def test_many_tokens_are_taken_in_blocks_of_queries():
    inputs = make((37, 30), 1, 32, 14, batch=1, heads=2)
    assert_accurate(run(*inputs), *inputs)


@pytest.mark.parametrize("spread", ["dout", "out"])
def test_gradients_of_results_with_gaps(spread):
    qkv, tables, dout, grid = make((2, 3), 1, 8, 2)
    out, lse = cpu.relative_attention_forward(qkv, *tables, grid)
    given = {"dout": dout.contiguous(), "out": out}
    wanted = cpu.relative_attention_backward(given["dout"], qkv, *tables, out, lse, grid)
    given[spread] = torch.stack([given[spread], torch.full_like(dout, NAN)], -1)[..., 0]
    found = cpu.relative_attention_backward(given["dout"], qkv, *tables, given["out"], lse, grid)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_large_logits_neither_overflow_nor_vanish(level):
    qkv, tables, dout, grid = make((6, 6), 1, 64, 14)
    for factor in (30.0, 1e-6):
        inputs = ((qkv * factor), [t * factor for t in tables], dout, grid)
        assert_accurate(run(*inputs), *inputs)


def test_nan_stays_nan():
    qkv, tables, dout, grid = make((6, 6), 1, 64, 14)
    qkv[0, 1, 2, 5] = NAN
    out, lse = cpu.relative_attention_forward(qkv, *tables, grid)
    assert out[1, 5, 2 * 64 :].isnan().all() and lse[1, 2, 5].isnan()
    assert out[0].isfinite().all() and out[1, 6].isfinite().all()


@pytest.mark.parametrize("batch, heads", [(3, 3), (35, 2)])
def test_the_number_of_threads_changes_no_bit(batch, heads):
    """35 x 2 tasks are more than there are blocks of partial sums."""
    grid = (14, 14) if batch == 3 else (3, 3)
    inputs = make(grid, 1, 64, 14, batch=batch, heads=heads)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(*inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_images():
    qkv, tables, dout, grid = make((3, 3), 1, 64, 14, batch=0)
    out, lse, dqkv, *dtables = run(qkv, tables, dout, grid)
    assert out.shape == (0, 10, 192) and lse.shape == (0, 3, 10) and dqkv.shape == qkv.shape
    assert all(torch.equal(d, torch.zeros_like(d)) for d in dtables)


def test_unsupported_is_a_clause():
    assert cpu.unsupported(64, (14, 14), FP32) == ""
    assert "256 channels, not 300" in cpu.unsupported(300, (14, 14), FP32)
    assert "not float64" in cpu.unsupported(64, (14, 14), torch.float64)


def test_the_native_function_refuses_impossible_sizes():
    module, x = native.load("cpu"), torch.zeros(64)
    view, rows = (x.data_ptr(), 0, (1, 1, 1, 1, 1)), (x.data_ptr(), 0, (1, 1))
    tables = [(x.data_ptr(), 0, 1)] * 4
    for sizes, message in [
        ((1, 1, 4, 1, 2, 3, 1), "must be 0 or 1, is -2"),
        ((1, 0, 1, 1, 1, 1, 1), "number of heads is 0"),
        ((1, 1, 1, 1000, 1, 1, 1), "head_dim is 1000"),
    ]:
        with pytest.raises(ValueError, match=message):
            module.relative_attention_forward(sizes, view, tables, rows, x.data_ptr(), 2)


@pytest.mark.skipif(
    shutil.which("objdump") is None or "x86-64-v4" not in native.metadata("cpu")["target_clones"],
    reason="needs binutils, and a build for x86-64 by a compiler that knows x86-64-v4",
)
def test_the_tiles_stay_in_registers():
    """The inner loop of a full tile: one FMA per vector of the tile, no access to the stack."""
    dump = ["objdump", "-d", "-C", "--no-show-raw-insn", native.load("cpu").__file__]
    code = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    bodies = {body.split(">:")[0]: body for body in code.split("\n\n") if "::tile<" in body.split(">:")[0]}
    for tile, register, fmas in (("Avx512::tile<6, 4, ", "%zmm", 24), ("Avx2::tile<6, 2, ", "%ymm", 12)):
        found = [body for name, body in bodies.items() if tile in name]
        assert len(found) == 2, tile  # A by rows and by columns
        for body in found:
            fused = [line for line in body.splitlines() if "vfmadd" in line]
            assert len(fused) >= fmas and all(register in line for line in fused)
            assert not re.search(rf"vmov[a-z]+ +{register}\d+,-?0x[0-9a-f]+\(%r[sb]p\)", body), "spilled"
