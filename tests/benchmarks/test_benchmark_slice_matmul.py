"""slice_matmul.py: the rivals compute the same, a wrong one is never timed, nothing measured is lost."""

from __future__ import annotations

import json
import re

import pytest
import render_docs
import slice_matmul
import torch
from common import norms, product_report, products, roofline, ways
from common.race import Race

CPU = torch.device("cpu")


def race(product, dtype=torch.float32, build=None) -> Race:
    return Race(
        build=build or (lambda name, inputs: ways.build(name, product, inputs)),
        active=lambda name: ways.active(name, product.kernel, product.inner, CPU, dtype),
        device=CPU,
        dtype=dtype,
    )


def small(op: str) -> products.Product:
    if op == "qkv":
        return products.Product("T", op, 5, 24, 3 * 2 * 8, (3 * 3 * 8, 32), 2, 8)
    return products.Product("T", op, 5, 24, 37, (41, 32))


def test_products_are_those_of_the_spaces():
    every = products.products(["T", "S", "B"], "all")
    assert len(every) == 3 * 6 + 3 * 9 + 6 + 2 * 9
    some = {(p.op, p.inner, p.columns) for p in products.products(["T"])}
    assert {("qkv", 192, 576), ("qkv", 240, 768), ("fc1", 216, 756), ("fc1", 240, 840)} <= some
    assert {("fc1", 240, 960), ("fc2", 756, 216), ("fc2", 840, 240)} <= some
    assert {p.shared for p in products.products(["T"]) if p.op == "qkv"} == {(768, 256)}
    assert len(products.products(["S", "B"], "few")) == 6


def test_work_is_counted_by_hand():
    product = products.Product("T", "fc1", tokens=2, inner=3, columns=5, shared=(7, 11))
    assert product.flops("forward", batch=2) == 2 * 4 * 3 * 5
    assert product.flops("backward", batch=2) == 2 * product.flops("forward", batch=2)
    # bf16 activations, fp32 weights: x 4x3, W 5x3, b 5, y 4x5
    assert product.moved("forward", 2, 2, 4) == 2 * 12 + 4 * 15 + 4 * 5 + 2 * 20
    assert product.moved("backward", 2, 2, 4) == 2 * (2 * 12 + 4 * 15 + 2 * 20) + 4 * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", ["qkv", "fc1"])
def test_all_ways_agree_with_fp64(op, dtype):
    product = small(op)
    inputs = products.make_inputs(product, 2, CPU, dtype, torch.float32, seed=1)
    names = ways.names(CPU)
    if dtype == torch.float32 and not torch.cuda.is_available():  # the interpreter, which knows no bf16
        names.append("growtas triton")
    passed, refused = race(product, dtype).check(
        names, inputs, ways.truth(product, inputs), yardstick="dense"
    )
    assert refused == {} and list(passed) == names
    assert {"published", "views", "dense", "growtas torch"} <= set(passed)
    assert passed["growtas torch"]["backward"][0] < 10 * torch.finfo(dtype).eps


def broken(product, what):
    """Builds ways of which growtas' is wrong in one place."""

    def build(name, inputs):
        way = ways.build(name, product, inputs)
        if name != "growtas torch":
            return way
        run, plain = way.run, way.plain_gradients
        if what == "output":
            way.run = lambda: run() * 1.001
        elif what == "nan":
            way.run = lambda: run() * float("nan")
        elif what == "gradient":
            way.plain_gradients = lambda g: plain((g[0], g[1], g[2] * 1.01))
        elif what == "spill":
            way.plain_gradients = lambda g: plain((g[0], g[1].index_fill(1, torch.tensor(31), 1e-9), g[2]))
        elif what == "crash":
            way.run = lambda: (_ for _ in ()).throw(RuntimeError("no such kernel"))
        return way

    return build


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("output", "forward error"),
        ("nan", "forward error"),
        ("gradient", "backward error"),
        ("spill", "not zero outside"),
        ("crash", "no such kernel"),
    ],
)
def test_a_wrong_way_is_refused(what, reason):
    product = small("fc1")
    inputs = products.make_inputs(product, 2, CPU, torch.float32, torch.float32, seed=1)
    contest = race(product, build=broken(product, what))
    passed, refused = contest.check(ways.names(CPU), inputs, ways.truth(product, inputs), yardstick="dense")
    assert list(refused) == ["growtas torch"] and reason in refused["growtas torch"]
    assert "published" in passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_agree_with_fp64(dtype):
    norm = norms.Norm(rows=37, width=24, shared=32)
    inputs = norm.make_inputs(CPU, dtype, seed=1)
    contest = Race(
        build=lambda name, inputs: norms.build(name, norm, inputs),
        active=lambda name: ways.active(name, "layer_norm", 24, CPU, dtype),
        device=CPU,
        dtype=dtype,
    )
    mine = [name for name in norms.names(CPU) if name != norms.LAYER]
    passed, refused = contest.check(mine, inputs, norms.truth(norm, inputs), yardstick="growtas torch")
    assert refused == {} and list(passed) == mine


TINY = ["--spaces", "T", "--quick", "--device", "cpu", "--batch", "1", "--rounds", "2", "--threads", "1"]


@pytest.fixture
def fast(monkeypatch):
    """No time for the roofline here: its ceilings are given, and its own test measures small ones."""
    monkeypatch.setattr(roofline, "measure", lambda *_: roofline.Roofline(bandwidth=1e10, flops=1e11))


def test_a_run_writes_json_a_plot_and_a_table(tmp_path, capsys, fast):
    out = tmp_path / "new" / "result.json"
    assert slice_matmul.main([*TINY, "--out", str(out)]) == 0
    data = json.loads(out.read_text())
    assert data["complete"] and not data["failures"] and data["settings"]["dtype"] == "float32"
    assert {"torch", "python", "growtas"} <= set(data["versions"]) and data["commit"] and data["date"]
    assert {(r["op"], r["pass"], r["way"]) for r in data["records"]} >= {
        (op, turn, way)
        for op in ("qkv", "fc1", "fc2")
        for turn in ("forward", "backward")
        for way in ("published", "views", "dense", "growtas torch")
    }
    for record in data["records"]:
        seconds = record["seconds"][0]
        assert record["tflops"] == pytest.approx(record["flops"] / seconds * 1e-12, rel=1e-4)
        floor = max(record["flops"] / 1e11, record["bytes"] / 1e10)
        assert record["roofline"] == pytest.approx(floor / seconds, rel=1e-4)
        assert len(record["vs_dense"]) == 3 and record["error"][0] < 1e-5
        if record["way"] == "dense":
            assert record["vs_dense"] == [1.0, 1.0, 1.0]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "T fc1 216→756" in shown and "geometric mean" in shown
    header = next(line for line in shown.splitlines() if line.startswith("GEMM"))
    assert [name for name in re.split(r"  +", header.strip()) if name] == [
        "GEMM", "pass", "growtas", "ms", "± %", "published", "views", "dense", "× published", "× dense",
        "TFLOP/s", "GB/s", "bound ms", "share", "error",
    ]  # fmt: skip


def test_ctrl_c_keeps_what_was_measured(tmp_path, capsys, fast, monkeypatch):
    measure, done = slice_matmul.measure, []

    def interrupted(*args):
        if done:
            raise KeyboardInterrupt
        done.append(args[0])
        return measure(*args)

    monkeypatch.setattr(slice_matmul, "measure", interrupted)
    out = tmp_path / "result.json"
    assert slice_matmul.main([*TINY, "--out", str(out)]) == 130
    data = json.loads(out.read_text())
    assert not data["complete"]
    assert {product_report.label(record) for record in data["records"]} == {str(done[0])}


def test_an_error_costs_one_product_only(tmp_path, capsys, fast, monkeypatch):
    measure = slice_matmul.measure

    def broken(product, *args):
        if product.op == "fc1":
            raise RuntimeError("out of memory\nand a long story")
        return measure(product, *args)

    monkeypatch.setattr(slice_matmul, "measure", broken)
    out = tmp_path / "result.json"
    assert slice_matmul.main([*TINY, "--out", str(out)]) == 1
    data = json.loads(out.read_text())
    assert [failure["reason"] for failure in data["failures"]] == ["RuntimeError: out of memory"]
    assert {record["op"] for record in data["records"]} == {"qkv", "fc2"}


def test_a_wrong_way_makes_the_run_fail(tmp_path, capsys, fast, monkeypatch):
    build = ways.build
    monkeypatch.setattr(
        ways, "build", lambda name, p, inputs: broken_everywhere(build(name, p, inputs), name)
    )
    out = tmp_path / "result.json"
    assert slice_matmul.main([*TINY, "--out", str(out)]) == 1
    assert "NOT TIMED: growtas torch" in capsys.readouterr().err
    data = json.loads(out.read_text())
    assert {failure["way"] for failure in data["failures"]} == {"growtas torch"}
    assert all(record["way"] != "growtas torch" for record in data["records"])


def broken_everywhere(way, name):
    if name == "growtas torch":
        run = way.run
        way.run = lambda: run() + 1
    return way


@pytest.mark.parametrize("argument", [["--spaces", "X"], ["--batch", "0"], ["--dtype", "int8"]])
def test_bad_arguments_are_usage_errors(argument, capsys):
    with pytest.raises(SystemExit) as stop:
        slice_matmul.main(argument)
    assert stop.value.code == 2
    assert argument[1].lower() in capsys.readouterr().err.lower()


def test_the_roofline_is_measured():
    found = roofline.measure(CPU, torch.float32, seconds=0.0)
    assert 1e8 < found.bandwidth < 1e13 and 1e9 < found.flops < 1e15
    half = roofline.Roofline(bandwidth=2.0, flops=10.0)
    assert half.floor(flops=20, moved=2) == 2.0 and half.floor(flops=5, moved=8) == 4.0


def test_the_tables_of_the_documentation_are_those_of_the_results():
    assert render_docs.main(["--check"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_gpu_is_said_clearly():
    with pytest.raises(SystemExit, match="No CUDA device is visible"):
        slice_matmul.main(["--device", "cuda"])
