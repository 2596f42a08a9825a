"""gpu.py without a GPU: steps are bounded, a failure does not end the run, nothing is left behind."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import choose
import each_kernel
import gpu
import pytest
import torch
import train_step
from common import environment, results


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_gpu_is_one_sentence_and_status_2(capsys):
    assert gpu.main([]) == 2
    assert "No CUDA device is visible" in capsys.readouterr().err


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_run_keeps_output_and_status(capfd):
    log = io.StringIO()
    assert gpu.run(python("print('seen')"), 30, log, dict(os.environ)) == "ok"
    assert gpu.run(python("raise SystemExit(3)"), 30, log, dict(os.environ)) == "exit status 3"
    assert "seen" in log.getvalue() and "seen" in capfd.readouterr().out


def test_a_step_over_its_time_may_save_and_is_then_ended(tmp_path):
    code = (
        "import pathlib, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "try:\n    time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    pathlib.Path({str(tmp_path / 'saved')!r}).write_text('kept')\n"
    )
    begin = time.monotonic()
    status = gpu.run(python(code), 1.5, io.StringIO(), dict(os.environ))
    assert status == "stopped at its limit of 2 s" and time.monotonic() - begin < 15
    assert (tmp_path / "saved").read_text() == "kept"
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    for _ in range(50):
        if not child.exists() or child.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        raise AssertionError("a child of the step is still running")


def test_one_failure_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "overlay", lambda: tmp_path)
    ran = []

    def start(command, limit, log, environment):
        ran.append((command[0], environment.get("PYTHONPATH")))
        return "ok" if command[0] != "bad" else "exit status 1"

    monkeypatch.delenv("PYTHONPATH", raising=False)
    todo = [
        gpu.Step("build", ["bad"], 9, [["other"]]),
        gpu.Step("tests", ["bad"], 9),
        gpu.Step("measure", ["good"], 9),
    ]
    gpu.run_all(todo, 1, io.StringIO(), start)
    assert ran == [("bad", None), ("other", None), ("bad", str(tmp_path)), ("good", str(tmp_path))]
    assert [step.failed for step in todo] == [False, True, False]
    late = [gpu.Step("measure", ["good"], 9)]
    gpu.run_all(late, 0, io.StringIO(), start)
    assert late[0].failed and "no time" in late[0].status


def test_the_overlay_holds_growtas_and_its_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    for name in ("growtas/ops/backend.py", "growtas/__init__.py", "kernels/linear.py", "kernels/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("here = __file__\n")
    folder = gpu.overlay()
    assert folder == gpu.overlay(), "a second run must not trip over the first"
    code = "import growtas.kernels.linear as k, growtas.ops.backend as b; print(k.here, b.here)"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(python(code), env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(folder / "growtas" / "kernels" / "linear.py"),
        str(folder / "growtas" / "ops" / "backend.py"),
    ]


def test_a_whole_run_reports_every_step_and_keeps_copies(tmp_path, monkeypatch, capfd):
    """On a GPU in name only: the processor stands in, and the steps are two lines of Python."""
    results_folder = tmp_path / "results" / "a-gpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment, "pick_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(environment, "result_folder", lambda _: results_folder)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    save = f"import pathlib; pathlib.Path({str(results_folder / 'slice_matmul.json')!r}).write_text('{{}}')"
    todo = [gpu.Step("tests", python("raise SystemExit(1)"), 30), gpu.Step("slice_matmul", python(save), 30)]
    monkeypatch.setattr(gpu, "steps", lambda *_: todo)
    assert gpu.main(["--minutes", "1"]) == 1
    data = results.read(results_folder / "gpu.json")
    assert [(s["step"], s["status"]) for s in data["steps"]] == [
        ("tests", "exit status 1"),
        ("slice_matmul", "ok"),
    ]
    assert {"machine", "versions", "commit"} <= set(data)
    copied = {path.name for path in (tmp_path / "out").iterdir()}
    assert copied == {"gpu.json", "gpu.log", "slice_matmul.json", "choices.json"}
    assert "exit status 1" in capfd.readouterr().out


def test_the_steps_run_scripts_that_know_their_options(tmp_path, capsys):
    todo = gpu.steps(sys.executable, tmp_path)
    assert [step.name for step in todo[:3]] == ["build", "warmup", "tests"]
    assert {"products", "fused", "layer_norm", "attention", "train_step", "choose", "compiled", "graph"} == {
        step.name for step in todo[3:]
    }
    scripts = {Path(script.__file__): script for script in (each_kernel, train_step, choose)}
    for step in todo[3:]:
        script = scripts[Path(step.command[1])]
        with pytest.raises(SystemExit):
            script.main(["--help"])
        shown = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {word for word in step.command if word.startswith("--")} <= shown
    outs = [step.command[step.command.index("--out") + 1] for step in todo if "--out" in step.command]
    assert len(set(outs)) == len(outs) and all(Path(out).parent == tmp_path for out in outs)
    chosen = gpu.gpu_tests()
    assert {"tests/ops/test_reference.py", "tests/kernels/test_triton_linear.py"} <= set(chosen)
    assert "tests/test_build.py" not in chosen


def test_the_gpu_steps_parse(tmp_path, monkeypatch):
    """Every option of the measuring steps has a value that its script takes; the processor stands in."""
    monkeypatch.setattr(environment, "pick_device", lambda _: torch.device("cpu"))
    for step in gpu.steps(sys.executable, tmp_path)[3:]:
        for script in (each_kernel, train_step):
            if step.command[1] == script.__file__:
                options = script.parse(step.command[2:])
                assert options.out == tmp_path / step.command[-1]
                assert options.seconds < step.limit


def test_what_was_reached_is_shown_from_the_files(tmp_path):
    head = {"benchmark": "any"}
    record = {"part": "products", "op": "fc1 forward", "way": "growtas triton", "size": "T fc1"}
    record |= {"roofline": 0.5, "speed": [1.25, 1.2, 1.3]}
    results.write(tmp_path / "kernels_products.json", head, [record])
    step = {"space": "T", "name": "middle", "embed_dim": 216, "depth": 13, "batch": 128, "pass": "step"}
    step |= {"way": "growtas", "vs_published": [6.0, 5.9, 6.1]}
    results.write(tmp_path / "train_step.json", head, [step])
    shown = gpu.bars(tmp_path)
    assert "1.25" in shown and "1.0, met" in shown and "6.00" in shown and "T middle d216 L13" in shown
    assert gpu.bars(tmp_path / "nothing") == ""
