"""Relative attention in Triton: against fp64, with poisoned surroundings, and the same bits every time."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import reference
import torch
from kernel_cases import (
    DTYPES,
    GPU,
    NAN,
    assert_as_good_as_torch,
    assert_written_once,
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
)

from growtas.errors import UsageError
from growtas.kernels import relative_attention as attention
from growtas.kernels.relative_attention.tiles import constrained

NAMES = ("out", "lse", "dqkv", "dkey_v", "dkey_h", "dvalue_v", "dvalue_h")

# images, heads, grid, cls, head_dim, clamp m of the tables; with one token, enough of them that the
# largest of their rounding errors is no accident
CASES = [
    pytest.param(1, 2, (14, 14), 1, 64, 14, id="T-one-image"),
    pytest.param(2, 2, (2, 3), 1, 32, 1, id="2x3-clamped"),
    pytest.param(3, 1, (5, 3), 0, 48, 2, id="5x3-without-cls-clamped"),
    pytest.param(3, 3, (1, 1), 1, 128, 3, id="1x1"),
    pytest.param(6, 2, (1, 1), 0, 64, 0, id="one-token"),
    pytest.param(2, 2, (4, 4), 1, 12, 3, id="digits"),
    pytest.param(1, 1, (3, 20), 0, 80, 4, id="wide-grid"),
]
if GPU:
    CASES += [
        pytest.param(128, 4, (14, 14), 1, 64, 14, id="T-4-batch-128"),
        pytest.param(3, 2, (32, 32), 1, 64, 14, id="32x32"),
    ]

#: The interpreter takes every dtype for one case and for each of the others one that meets what is its own.
ONE_DTYPE = {
    "T-one-image": "fp16-fp32",
    "5x3-without-cls-clamped": "fp32",
    "1x1": "fp16",
    "one-token": "fp32",
    "digits": "fp16-fp32",
    "wide-grid": "fp32",
}
CASES_AND_DTYPES = [
    pytest.param(*case.values, *dtypes.values, id=f"{case.id}-{dtypes.id}", marks=dtypes.marks)
    for case in CASES
    for dtypes in DTYPES
    if GPU or ONE_DTYPE.get(case.id, dtypes.id) == dtypes.id
]

#: The interpreter's time goes by operations, whatever their size: fewer, larger ones. A GPU keeps its tiles.
LARGE_TILES = {} if GPU else {"queries": 128, "keys": 128, "chunk": 256}


def _qkv(shape, dtype, device, layout="gaps"):
    """(3, B, h, N, e) whose surroundings, and what lies between its heads, are NaN."""
    _, b, h, n, e = shape
    if layout == "interleaved":  # as a matmul writes it: (B, N, 3, h, e)
        buffer = torch.full((b + 2, n, 3, h, e), NAN, device=device, dtype=dtype)
        view = buffer[1:-1].permute(2, 0, 3, 1, 4)
    else:
        buffer = torch.full((3, b + 2, h, n + 2, e + 8), NAN, device=device, dtype=dtype)
        view = buffer[:, 1:-1, :, 1:-1, :e]
    return view.copy_(torch.randn(shape))


def _inputs(b, heads, grid, cls, e, clamp, dtype, table_dtype, device, layout="gaps"):
    torch.manual_seed(b * 1000 + e)
    tokens = grid[0] * grid[1] + cls
    qkv = _qkv((3, b, heads, tokens, e), dtype, device, layout)
    entries = 2 * clamp + 2
    tables = [parameter((entries, e), (entries, e), table_dtype, device, 0.5) for _ in range(4)]
    dout = torch.full((b + 2, tokens, heads * e + 8), NAN, device=device, dtype=dtype)
    dout = dout[1:-1, :, : heads * e].copy_(torch.randn(b, tokens, heads * e))
    return qkv, tables, dout


def _run(backend, qkv, tables, dout, grid):
    out, lse = backend.relative_attention_forward(qkv, *tables, grid)
    return out, lse, *backend.relative_attention_backward(dout, qkv, *tables, out, lse, grid)


def _check(results, qkv, tables, dout, grid, what=""):
    truth = _run(reference, qkv.double(), [table.double() for table in tables], dout.double(), grid)
    plain = _run(reference, qkv, tables, dout, grid)
    tokens, pairs = qkv.shape[3], qkv.shape[1] * qkv.shape[2]
    for name, result, torch_result, true in zip(NAMES, results, plain, truth, strict=True):
        reduction = tokens * pairs * tokens if name.startswith(("dkey", "dvalue")) else tokens
        assert_as_good_as_torch(result, torch_result, true, reduction, f"{name} {what}")


# images, heads, grid, cls, head_dim, clamp; queries and keys of a tile, programs, kept in registers, dtype
ONE_PASS = [
    pytest.param(1, 1, (14, 14), 1, 64, 14, 128, 64, 1, 1, torch.float16, id="T-two-query-tiles-and-a-tail"),
    pytest.param(3, 1, (5, 3), 0, 48, 2, 16, 16, 2, 1, torch.float32, id="5x3-one-masked-tile"),
    pytest.param(2, 1, (4, 8), 0, 32, 9, 16, 16, 1, 0, torch.float16, id="4x8-no-tail-in-memory"),
    pytest.param(2, 1, (3, 13), 1, 16, 4, 16, 32, 1, 0, torch.float32, id="3x13-three-query-tiles-in-memory"),
    pytest.param(1, 3, (1, 1), 1, 64, 0, 16, 16, 3, 1, torch.float16, id="1x1"),
    pytest.param(1, 1, (16, 16), 1, 16, 14, 128, 128, 1, 1, torch.float32, id="257-tokens"),
]


@pytest.mark.parametrize("b, heads, grid, cls, e, clamp, queries, keys, programs, keep, dtype", ONE_PASS)
def test_backward_in_one_pass(b, heads, grid, cls, e, clamp, queries, keys, programs, keep, dtype, device):
    """Against fp64, the same bits twice, and every element of dqkv written, none twice."""
    qkv, tables, dout = _inputs(b, heads, grid, cls, e, clamp, dtype, torch.float32, device, "interleaved")
    tiles = {"queries": queries, "keys": keys, "programs": programs, "keep": keep, "chunk": 256}
    with poisoned_outputs(), constrained(one_pass=1, **tiles):
        out, lse = attention.relative_attention_forward(qkv, *tables, grid)
        results = attention.relative_attention_backward(dout, qkv, *tables, out, lse, grid)
        with nullcontext([]) if GPU else recorded_stores() as stores:
            again = attention.relative_attention_backward(dout, qkv, *tables, out, lse, grid)
    _check((out, lse, *results), qkv, tables, dout, grid)
    for name, one, other in zip(NAMES[2:], results, again, strict=True):
        assert torch.equal(one, other), name
        if not GPU:
            assert_written_once(stores, other, name)


def test_backward_takes_one_pass_where_it_fits(monkeypatch, device):
    """16-bit heads up to 64 wide on the smallest class of grids, on Hopper; the interpreter counts as one."""
    from growtas.kernels.relative_attention import tiles as tiles

    one_pass = tiles.one_pass
    assert not one_pass(torch.float16, 64, 16, device)
    monkeypatch.setattr(tiles, "ONE_PASS", True)
    fits = [
        one_pass(torch.float16, 64, 16, device),
        one_pass(torch.float32, 64, 16, device),
        one_pass(torch.float16, 128, 16, device),
        one_pass(torch.float16, 64, 32, device),
    ]
    hopper = not GPU or torch.cuda.get_device_capability()[0] >= 9
    assert fits == [hopper, False, False, False]
    with constrained(one_pass=0):
        assert not one_pass(torch.float16, 64, 16, device)


@pytest.mark.parametrize("b, heads, grid, cls, e, clamp, dtype, table_dtype", CASES_AND_DTYPES)
def test_matches_fp64(b, heads, grid, cls, e, clamp, dtype, table_dtype, device):
    qkv, tables, dout = _inputs(b, heads, grid, cls, e, clamp, dtype, table_dtype, device)
    with poisoned_outputs(), constrained(**LARGE_TILES):
        results = _run(attention, qkv, tables, dout, grid)
    assert results[0].is_contiguous() and results[2].is_contiguous()
    assert results[1].dtype == torch.float32
    _check(results, qkv, tables, dout, grid)


@pytest.mark.parametrize("b, heads, grid, cls, chunk", [(2, 1, (4, 5), 1, 32), (1, 1, (2, 16), 0, 64)])
def test_tiles_smaller_than_images_and_tables(b, heads, grid, cls, chunk, device):
    """Several query and key tiles per head, table space in chunks, table gradients over several tiles."""
    qkv, tables, dout = _inputs(b, heads, grid, cls, 16, 4, torch.float32, torch.float32, device)
    with poisoned_outputs(), constrained(queries=16, keys=16, chunk=chunk, programs=2):
        results = _run(attention, qkv, tables, dout, grid)
    _check(results, qkv, tables, dout, grid, f"chunk {chunk}")


def test_table_gradients_kept_in_registers(device):
    """Over all query tiles of a program, instead of partial sums in memory."""
    qkv, tables, dout = _inputs(2, 1, (4, 5), 1, 16, 9, torch.float16, torch.float32, device)
    with poisoned_outputs(), constrained(queries=16, keys=32, chunk=64, keep=1, programs=2):
        results = _run(attention, qkv, tables, dout, (4, 5))
    _check(results, qkv, tables, dout, (4, 5))


def test_sixteen_bits_hold_logits_far_from_zero(device):
    """The exponentials are taken of what is left after the maximum, forward and backward."""
    qkv, tables, dout = _inputs(1, 1, (3, 3), 1, 16, 2, torch.float16, torch.float16, device)
    qkv[0].mul_(30)
    qkv[1].sub_(60)
    with poisoned_outputs(), constrained(**LARGE_TILES):
        results = _run(attention, qkv, tables, dout, (3, 3))
    for name, result in zip(NAMES, results, strict=True):
        assert result.isfinite().all(), name


def test_any_strides(device):
    shape = (2, 2, (3, 4), 1, 32, 2)
    qkv, tables, dout = _inputs(*shape, torch.float32, torch.float32, device, "interleaved")
    assert not qkv.is_contiguous()
    with constrained(**LARGE_TILES):
        expected = _run(attention, qkv.contiguous(), tables, dout.contiguous(), (3, 4))
        results = _run(attention, qkv, tables, dout, (3, 4))
        scattered = torch.randn(2, 32, 3, 2, 13, device=device).permute(2, 0, 3, 4, 1).copy_(qkv)
        assert scattered.stride(-1) != 1
        by_token = dout.transpose(0, 1).contiguous().transpose(0, 1)
        others = _run(attention, scattered, tables, by_token, (3, 4))
    for name, result, copied, other in zip(NAMES, results, expected, others, strict=True):
        assert torch.equal(result, copied), name
        assert torch.equal(other, copied), name


@pytest.mark.parametrize("programs", [1, 3])
def test_gradients_do_not_depend_on_the_run(programs, device):
    qkv, tables, dout = _inputs(2, 2, (3, 4), 1, 32, 3, torch.float32, torch.float32, device)
    with constrained(queries=32, keys=32, chunk=64, programs=programs):
        first = _run(attention, qkv, tables, dout, (3, 4))
        second = _run(attention, qkv, tables, dout, (3, 4))
    for name, one, other in zip(NAMES, first, second, strict=True):
        assert torch.equal(one, other), name


@needs_interpreter
def test_every_element_is_written_once(device):
    qkv, tables, dout = _inputs(1, 2, (4, 5), 1, 24, 3, torch.float32, torch.float32, device)
    with recorded_stores() as stores, constrained(queries=16, keys=16, chunk=64, programs=3):
        results = _run(attention, qkv, tables, dout, (4, 5))
    for name, result in zip(NAMES, results, strict=True):
        assert_written_once(stores, result, name)


def test_distances_that_no_two_places_have_get_no_gradient(device):
    qkv, tables, dout = _inputs(1, 1, (2, 3), 1, 16, 6, torch.float32, torch.float32, device)
    with poisoned_outputs(), constrained(**LARGE_TILES):
        *_, dkey_v, dkey_h, dvalue_v, dvalue_h = _run(attention, qkv, tables, dout, (2, 3))
    for gradient, size in ((dkey_v, 2), (dkey_h, 3), (dvalue_v, 2), (dvalue_h, 3)):
        distance = torch.arange(14) - 7
        used = (distance.abs() < size) | (distance == -7)
        assert (gradient[~used] == 0).all()
        assert (gradient[used] != 0).any(dim=1).all()


def test_no_images(device):
    tables = [torch.ones(8, 16, device=device) for _ in range(4)]
    qkv = torch.empty((3, 0, 2, 7, 16), device=device)
    with poisoned_outputs():
        out, lse, dqkv, *gradients = _run(
            attention, qkv, tables, torch.empty(0, 7, 32, device=device), (2, 3)
        )
    assert out.shape == (0, 7, 32) and lse.shape == (0, 2, 7) and dqkv.shape == qkv.shape
    assert all((gradient == 0).all() for gradient in gradients)


def test_refuses_what_it_cannot_attend(device):
    qkv = torch.ones(3, 1, 1, 7, 16, device=device)
    tables = [torch.ones(8, 16, device=device) for _ in range(4)]
    with pytest.raises(UsageError, match="7 tokens, but a 2 x 2 grid makes 4"):
        attention.relative_attention_forward(qkv, *tables, (2, 2))
    with pytest.raises(UsageError, match=r"\(3, B, h, N, head_dim\) is needed"):
        attention.relative_attention_forward(qkv[0], *tables, (2, 3))
    with pytest.raises(UsageError, match="must be of one shape"):
        attention.relative_attention_forward(qkv, *tables[:3], tables[0][:6], (2, 3))
    with pytest.raises(UsageError, match="a row for"):
        attention.relative_attention_forward(qkv, *(table[:7] for table in tables), (2, 3))
    out, lse = attention.relative_attention_forward(qkv, *tables, (2, 3))
    with pytest.raises(UsageError, match="same forward pass"):
        attention.relative_attention_backward(out[:, :6], qkv, *tables, out, lse, (2, 3))
    wide = torch.ones(3, 1, 1, 7, 160, device=device)
    with pytest.raises(UsageError, match="160 channels is over the 128"):
        attention.relative_attention_forward(wide, *tables, (2, 3))
    assert "float64" in attention.unsupported(64, (14, 14), torch.float64)
    assert "63 x 2" in attention.unsupported(64, (63, 2), torch.float32)
    assert attention.unsupported(64, (62, 32), torch.bfloat16) == ""


def test_places_of_a_grid_are_made_once():
    """Worked out by hand for a 2 x 3 grid with cls: the window of query 5, at row 1, column 1."""
    from growtas.kernels.relative_attention.places import places

    made = places((2, 3), 1, 1, 16, torch.float32, torch.device("cpu"))
    assert places((2, 3), 1, 1, 16, torch.float32, torch.device("cpu")) is made
    assert made.hot[5].nonzero().flatten().tolist() == [1, 17, 31]
    assert made.hot[0].nonzero().flatten().tolist() == [14, 30, 31]
    assert made.hot[7:].count_nonzero() == 0
    assert made.terms_index[5, [0, 1, 14, 15]].tolist() == [0, 1, 31, 30]  # row distances -1, 0
    assert made.terms_index[5, [16, 17, 18, 30, 31]].tolist() == [33, 34, 35, 63, 62]  # columns -1, 0, 1
    assert made.tables_index[5, [0, 1, 2, 31]].tolist() == [0, 1, 15, 14]
    assert made.tables_index[0, [0, 31, 32, 63]].tolist() == [15, 31, 15, 31]
    assert made.table_rows[[0, 1, 2, 3, 31]].tolist() == [1, 2, 3, -1, 0]
    assert made.table_rows[[32, 33, 34, 35, 36, 37]].tolist() == [1, 1, 2, 3, 3, -1]  # clamped to 1


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_places_under_capture(kept, monkeypatch):
    """A graph uses kept buffers; those that it makes are its own, and not kept."""
    from growtas.kernels.relative_attention import places as module

    made = []

    def on_the_cpu(grid, cls, clamp, side, dtype, device):
        made.append(grid)
        return make(grid, cls, clamp, side, dtype, torch.device("cpu"))

    make = module._make
    capturing = [not kept]
    monkeypatch.setattr(module, "_make", on_the_cpu)
    monkeypatch.setattr(module, "_kept", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=bool))
    arguments = ((3, 2), 1, 1, 16, torch.float32, torch.device("cuda", 0))
    first = module.places(*arguments)
    capturing[0] = True
    second = module.places(*arguments)
    assert (second is first) is kept and len(made) == (1 if kept else 2)
    capturing[0] = False
    third = module.places(*arguments)
    assert third is module.places(*arguments)
    assert (third is first) is kept and len(made) == (1 if kept else 3)


def test_places_that_a_graph_may_read_are_never_evicted(monkeypatch):
    from growtas.kernels.relative_attention import places as module

    monkeypatch.setattr(module, "_kept", {})
    first = module.places((1, 1), 0, 1, 16, torch.float32, torch.device("cpu"))
    for side in range(1, 200):
        module.places((1, side % 15 + 1), 0, side, 16, torch.float32, torch.device("cpu"))
    assert module.places((1, 1), 0, 1, 16, torch.float32, torch.device("cpu")) is first
