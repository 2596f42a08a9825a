"""each_kernel.py on a CPU, with one small layer and Triton's interpreter: every job is right and counted."""

from __future__ import annotations

import dataclasses
import json

import each_kernel
import pytest
import torch
from common import kernel_report, works
from common.fused_works import fused_work, fused_works
from common.memory_works import attention_work, attention_works, norm_work, norm_works
from common.product_works import product_work, product_works

CPU = torch.device("cpu")
LAYER = each_kernel.TINY
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is compiled in this process")


def every_work():
    return [work for make in each_kernel.PARTS.values() for work in make([LAYER])]


@interpreted
@pytest.mark.parametrize("work", every_work(), ids=lambda work: work.op.replace(" ", "-"))
def test_every_way_is_right(work):
    """All but CUDA C++, in fp32; a launcher whose name or arguments changed fails here, not on a GPU."""
    ways = each_kernel.runnable(work, CPU, interpreted=True)
    assert any(name.startswith("growtas triton") for name in ways)
    assert "growtas torch" in ways or work.part == "attention"
    assert "growtas cpu" in ways or work.part not in ("layer_norm", "attention")
    work = dataclasses.replace(work, ways=ways)
    passed, refused = works.check(work, work.inputs(2, CPU, torch.float32, 0), torch.float32)
    assert refused == {} and list(passed) == list(ways)
    assert all(error < 1e-5 for name, error in passed.items() if name not in work.unchecked)


@interpreted
@pytest.mark.parametrize(
    "work",
    [product_work(LAYER, "fc1", "forward"), fused_work(LAYER, "linear_residual backward")],
    ids=lambda work: work.op.replace(" ", "-"),
)
def test_half_precision_is_held_to_the_rivals_error(work):
    work = dataclasses.replace(work, ways={n: m for n, m in work.ways.items() if "cuda" not in n})
    passed, refused = works.check(work, work.inputs(2, CPU, torch.float16, 0), torch.float16)
    assert refused == {} and passed["growtas triton"] < 1e-3


def test_a_wrong_way_is_refused():
    work = product_work(LAYER, "fc1", "forward")
    right = work.ways["cublas"]

    def wrong(factor):
        return lambda i: lambda: tuple(factor * y for y in right(i)())

    def crash(_):
        raise LookupError("no such launcher\nand more")

    ways = {"cublas": right, "close": wrong(1.0), "off": wrong(1.001), "nan": wrong(float("nan"))}
    ways |= {"short": lambda i: lambda: (right(i)()[0][:1],), "crash": crash}
    work = dataclasses.replace(work, ways=ways)
    passed, refused = works.check(work, work.inputs(2, CPU, torch.float32, 0), torch.float32)
    assert list(passed) == ["cublas", "close"]
    assert refused["crash"] == "LookupError: no such launcher" and "error against fp64" in refused["off"]


def test_jobs_are_those_of_the_spaces():
    found = list(works.layers(["T", "S", "B"]))
    assert len(found) == 12 + 27 + 18
    assert len(list(product_works(found))) == 3 * ((6 + 6 + 6 + 6) + (9 + 9 + 9 + 9) + (6 + 6 + 9 + 9))
    assert {work.layer.d for work in norm_works(found)} == {192, 216, 240, 320, 384, 448, 528, 576, 624}
    assert {work.layer.heads for work in attention_works(found)} == {3, 4, 5, 6, 7, 9, 10}
    tiny = [work for work in fused_works(found) if work.layer.space == "T"]
    assert {work.op for work in tiny} == {work.op for work in fused_works([LAYER])}
    assert len({str(work) + work.op for work in tiny}) == len(tiny)
    layer = next(layer for layer in found if (layer.d, layer.heads, layer.hidden) == (216, 4, 756))
    assert (layer.D, layer.H, layer.M, layer.tokens) == (256, 4, 1024, 197)


def test_work_is_counted_by_hand():
    rows, d, m = 2 * LAYER.tokens, LAYER.d, LAYER.hidden
    forward = product_work(LAYER, "fc1", "forward")
    assert forward.flops(2) == 2 * rows * d * m
    assert forward.moved(2, 2) == 2 * rows * (d + m) + 4 * d * m
    mlp = fused_work(LAYER, "mlp")
    assert mlp.flops(2) == 4 * rows * d * m and mlp.moved(2, 2) == 8 * rows * d + 8 * d * m
    assert norm_work(LAYER, "forward").moved(2, 2) == 4 * rows * d
    assert norm_work(LAYER, "backward").moved(2, 2) == 6 * rows * d
    attention = attention_work(LAYER, "forward")
    n, width = LAYER.tokens, LAYER.width
    assert attention.flops(2) == 2 * (2 * rows * width * (n + 2 + 3 + 1))
    assert attention.moved(2, 2) == 4 * 2 * rows * width and attention.moved(2, 4) == 4 * 4 * rows * width


def test_the_issues_count_for_t_holds():
    """T at d = 240, batch 128: qkv is 9.3 GFLOP, and the fused MLP moves about 24 MB of activations."""
    layer = next(layer for layer in works.layers(["T"]) if layer.d == 240 and layer.heads == 4)
    assert product_work(layer, "qkv", "forward").flops(128) == pytest.approx(9.3e9, rel=0.01)


def test_a_missing_launcher_is_named():
    with pytest.raises(LookupError, match="triton has no linear_sideways"):
        works.launcher("triton", "linear_sideways")
    assert works.launcher("triton", "linear_forward").__module__ == "growtas.kernels.linear.forward"


@interpreted
@pytest.mark.slow
def test_a_run_writes_json_and_tables(tmp_path, capsys):
    out = tmp_path / "kernels.json"
    arguments = ["--tiny", "--device", "cpu", "--dtype", "float32", "--rounds", "1", "--out", str(out)]
    assert each_kernel.main([*arguments, "--parts", "layer_norm,attention"]) == 0
    data = json.loads(out.read_text())
    assert data["complete"] and not data["failures"] and not data["left_out"]
    assert {r["part"] for r in data["records"]} == {"layer_norm", "attention"}
    assert not any(r["way"] == "reference" for r in data["records"])
    for record in data["records"]:
        assert record["gbs"] == pytest.approx(record["bytes"] / record["seconds"][0] * 1e-9, rel=1e-3)
        assert record["roofline"] > 0 and len(record["speed"]) == 3
    shown = capsys.readouterr().out
    assert "tiny attention forward" in shown and "growtas cpu" in shown
    assert each_kernel.main([*arguments, "--parts", "layer_norm", "--seconds", "-1"]) == 1
    assert len(json.loads(out.read_text())["left_out"]) == 2


def test_an_error_costs_one_job_only(tmp_path, monkeypatch, capsys):
    def broken(work, _):
        if work.op == "attention forward":
            raise RuntimeError("an illegal memory access\nand more")
        return [], []

    monkeypatch.setattr(each_kernel, "measure", broken)
    out = tmp_path / "kernels.json"
    arguments = ["--tiny", "--device", "cpu", "--dtype", "float32", "--out", str(out)]
    assert each_kernel.main([*arguments, "--parts", "attention,layer_norm"]) == 1
    failures = json.loads(out.read_text())["failures"]
    assert [(f["op"], f["reason"]) for f in failures] == [
        ("attention forward", "RuntimeError: an illegal memory access")
    ]


def test_a_gpu_runs_its_own_backends_only():
    work = product_work(LAYER, "fc1", "forward")
    assert list(each_kernel.runnable(work, torch.device("cuda"))) == [
        "cublas", "strided", "growtas triton", "growtas triton same", "growtas cublas", "growtas cuda",
        "growtas cuda same",
    ]  # fmt: skip
    assert "growtas torch" in each_kernel.runnable(work, CPU)
    assert "growtas triton" not in each_kernel.runnable(work, CPU)


def test_means_are_geometric_and_judged_by_part():
    def record(part, op, way, speed):
        return {"part": part, "op": op, "way": way, "speed": [speed] * 3, "roofline": 0.5, "size": op}

    found = kernel_report.means(
        [
            record("fused", "mlp", "growtas triton", 4.0),
            record("fused", "norm_qkv", "growtas triton", 1.0),
            record("fused", "mlp", "unfused", 1.0),
            record("attention", "attention forward", "growtas triton", 0.6),
        ]
    )
    assert [(m["part"], m["op"], m["speed"], m["bar"]) for m in found] == [
        ("fused", "mlp", pytest.approx(4.0), 1.5),
        ("fused", "norm_qkv", pytest.approx(1.0), 1.5),
        ("fused", "all", pytest.approx(2.0), 1.5),
        ("attention", "attention forward", pytest.approx(0.6), 0.7),
    ]
    assert found[2]["lowest"] == 1.0
    record = record("fused", "mlp", "growtas triton", 4.0)
    assert "1.5, met" in kernel_report.summary([record]) and "met" not in kernel_report.summary(
        [record], False
    )


def test_the_bound_stands_beside_the_time_with_the_share_reached():
    record = {"part": "products", "op": "fc1 forward", "size": "T fc1 forward", "way": "growtas triton"}
    record |= {"seconds": [1e-4, 1e-4, 1e-4], "tflops": 1.0, "gbs": 2.0, "roofline": 0.25, "error": 1e-3}
    header, _, line = kernel_report.table([record]).splitlines()
    assert header.split()[-4:] == ["bound", "µs", "share", "error"]
    assert line.split()[-3:] == ["25.0", "25%", "1e-03"]
