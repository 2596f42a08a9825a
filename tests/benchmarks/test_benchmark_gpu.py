"""gpu.py rehearsed on a CPU: the whole script, with jobs that crash and hang, cut at any second.

The crew, the workers, the files and the tables are the real ones; a job's function is a stand-in
(fake_gpu_jobs.py), except in the last tests, which run the real functions on tiny sizes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest
import torch
from common import gpu_plan, gpu_tables, gpu_worker
from common.gpu_crew import Crew, Job
from thinning import thinned

HERE = Path(__file__).parent
REHEARSAL = (
    "import sys; import gpu; from common import gpu_crew\n"
    "gpu.RESERVE_SECONDS = 0.0\n"
    "sys.exit(gpu.main(sys.argv[1:], jobs='fake_gpu_jobs'))"
)


def environment(out: Path, **faults: list[str]) -> dict[str, str]:
    path = os.pathsep.join([str(gpu.ROOT / "benchmarks"), str(HERE)])
    return {**os.environ, "PYTHONPATH": path, "OUT": str(out), "FAKE_GPU_JOBS": json.dumps(faults)}


def rehearse(
    out: Path, run: str = "a", minutes: float = 10.0, **faults: list[str]
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", REHEARSAL, "--rehearse", "--run", run, "--minutes", str(minutes)]
    return subprocess.run(
        command, env=environment(out, **faults), cwd=gpu.ROOT, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def crew(tmp_path):
    made = []

    def make(seconds: float = 600.0, **faults: list[str]) -> Crew:
        log = open(tmp_path / "log", "ab", buffering=0)  # noqa: SIM115
        found = Crew(
            seconds, [str(tmp_path / "records.jsonl")], log, environment(tmp_path, **faults), "cpu",
            "fake_gpu_jobs", side=2, ready=2,
        )  # fmt: skip
        made.append((found, log))
        return found

    yield make
    for found, log in made:
        found.end()
        log.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_gpu_is_one_sentence_and_status_2(capsys):
    assert gpu.main([]) == 2
    assert "No CUDA device is visible" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("run", ["a", "b"])
def test_a_whole_run(tmp_path, run):
    done = rehearse(tmp_path, run)
    assert done.returncode == 0, done.stdout + done.stderr
    records = gpu_worker.read(str(tmp_path / f"run-{run}.jsonl"))
    kept = gpu_worker.read(str(tmp_path / "rehearsal" / f"run-{run}.jsonl"))
    assert sorted(map(json.dumps, kept)) == sorted(map(json.dumps, records))
    assert {r["status"] for r in gpu_tables.of(records, "job")} == {"ok"}
    kinds = {r["kind"] for r in records}
    assert {"about", "ceilings", "compiled", "smoke", "race", "step", "profile", "step_check"} <= kinds
    assert ("candidate" in kinds) == (run == "a") and ("random_subnets" in kinds) == (run == "b")
    prepared = {
        (r["way"], r["batch"]): r["prepared"] for r in gpu_tables.of(records, "step") if r["space"] == "T"
    }
    assert prepared["compiled", 128] and prepared["masked", 128] and not prepared["timm", 128]
    assert len(list(tmp_path.iterdir())) <= 6
    assert "== smoke" in done.stdout and "growtas triton" in done.stdout.split(f"== run {run}")[1]
    assert len(done.stdout.split(f"== run {run}")[1]) < 12_000


@pytest.mark.slow
def test_what_crashes_hangs_or_fails_costs_only_itself(tmp_path):
    faults = {
        "crash": ["smoke mlp backward S", "race fc1 forward", "prepare masked"],
        "fail": ["step published"],
    }
    done = rehearse(tmp_path, **faults)
    assert done.returncode == 1
    records = gpu_worker.read(str(tmp_path / "run-a.jsonl"))
    bad = {r["job"]: r["status"] for r in gpu_tables.of(records, "job") if r["status"] != "ok"}
    died = "its process died: killed by SIGSEGV"
    assert bad == {
        "smoke triton mlp backward": died,
        "time fc1 forward": died,
        "time cuda fc1 forward": died,
        "smoke cublas mlp backward": died,
        "prepare masked T 128": died,
        "step masked T 128": "left out: prepare masked T 128 failed",
        "step published T 128": "ArithmeticError: step published is wrong",
    }
    smoke = gpu_tables.smoke(records)
    assert "S mlp backward, growtas triton: took its process down" in smoke and "3/3" in smoke
    assert {r["way"] for r in gpu_tables.of(records, "step")} >= {"growtas triton", "compiled", "timm"}


def test_a_job_that_hangs_is_ended_and_the_next_goes_on(crew):
    own = crew(hang=["smoke mlp T"])
    args = {"part": "fused", "backend": "triton"}
    jobs = [
        Job("hangs", "smoke", {**args, "op": "mlp"}, limit=1.0),
        Job("waits", "smoke", {**args, "op": "other"}, needs=("hangs",)),
        Job("is left out", "smoke", {**args, "op": "other"}, requires=("hangs",)),
    ]
    own.run(jobs)
    assert jobs[0].status.startswith("stopped after") and jobs[1].status == "ok"
    assert jobs[2].status == "left out: hangs failed"


def test_a_command_that_hangs_or_fails(crew):
    own = crew()
    jobs = [
        Job("hangs", command=["sleep", "60"], limit=0.5, lane="side"),
        Job("fails", command=[sys.executable, "-c", "raise SystemExit(3)"]),
    ]
    own.run(jobs)
    assert jobs[0].status.startswith("stopped after") and jobs[1].status == "exit status 3"


def test_the_run_ends_in_time(crew):
    own = crew(seconds=2.0, hang=["smoke"])
    jobs = [Job(name, "smoke", {"part": "fused", "op": name, "backend": "triton"}) for name in ("one", "two")]
    begin = time.monotonic()
    own.run(jobs)
    assert time.monotonic() - begin < 300 and all(job.status != "ok" for job in jobs)


def test_workers_that_do_not_start_are_said_once(crew, tmp_path):
    own = crew()
    own.environment["PYTHONPATH"] = ""
    job = Job("any", "smoke", {})
    own.run([job])
    assert job.status.startswith(("its process died", "no worker starts"))


@pytest.mark.parametrize("number", thinned([signal.SIGTERM, signal.SIGKILL], fast=(1,)))
def test_a_cut_at_any_second_keeps_what_was_known(tmp_path, number):
    command = [sys.executable, "-c", REHEARSAL, "--rehearse", "--minutes", "10"]
    process = subprocess.Popen(
        command, env=environment(tmp_path, hang=["race qkv"]), cwd=gpu.ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    path = tmp_path / "run-a.jsonl"
    wanted = random.Random(int(number)).randrange(3, 60)
    end = time.monotonic() + 300
    while len(gpu_worker.read(str(path))) < wanted and time.monotonic() < end:
        time.sleep(0.05)
    before = gpu_worker.read(str(path))
    process.send_signal(number)
    out, _ = process.communicate(timeout=300)
    after = gpu_worker.read(str(path))
    assert len(before) >= wanted and after[: len(before)] == before
    assert all(line.startswith('{"kind"') for line in path.read_text().splitlines())
    if number == signal.SIGTERM:
        assert process.returncode == 1 and "== run a" in out
    for _ in range(3000):  # workers see that they are alone
        if not alive(str(path)):
            break
        time.sleep(0.1)
    assert not alive(str(path)), "a worker outlived the run"


def alive(word: str) -> list[str]:
    """Processes that have a word in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


def test_a_check_that_still_runs_is_not_called_a_crash():
    known = {"part": "fused", "op": "mlp", "space": "T", "size": "T mlp", "way": "growtas cublas"}
    records = [{"kind": "smoke_begins", **known}]
    assert "T mlp, growtas cublas: still running" in gpu_tables.smoke(records)
    records.append({"kind": "job", "job": "smoke cublas mlp", "status": "exit status 1"})
    assert "T mlp, growtas cublas: took its process down" in gpu_tables.smoke(records)


def test_a_record_that_was_cut_off_is_left_out(tmp_path):
    path = str(tmp_path / "records.jsonl")
    gpu_worker.append([path], {"kind": "one"})
    with open(path, "a") as file:
        file.write('{"kind": "tw')
    assert gpu_worker.read(path) == [{"kind": "one"}] and gpu_worker.read(str(tmp_path / "none")) == []


def test_the_overlay_holds_growtas_and_its_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    for name in (
        "growtas/ops/dispatch.py",
        "growtas/__init__.py",
        "kernels/linear/forward.py",
        "kernels/__init__.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("here = __file__\n")
    folder = gpu.overlay()
    (tmp_path / "growtas" / "_cuda.so").write_text("built since")
    assert folder == gpu.overlay() and (folder / "growtas" / "_cuda.so").exists()
    code = "import growtas.kernels.linear.forward as k, growtas.ops.dispatch as b; print(k.here, b.here)"
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(folder / "growtas" / "kernels" / "linear" / "forward.py"),
        str(folder / "growtas" / "ops" / "dispatch.py"),
    ]


def test_every_job_is_a_function_that_takes_its_arguments():
    import inspect

    from common import gpu_jobs

    plans = [make(None, Path("out"), ["tests/x.py"]) for make in (gpu_plan.jobs_a, gpu_plan.jobs_b)]
    for plan in plans:
        jobs = [job for half in plan for job in half]
        names = [job.name for job in jobs]
        assert len(set(names)) == len(names)
        assert all(name in names for job in jobs for name in (*job.needs, *job.requires))
        for job in jobs:
            assert bool(job.do) != bool(job.command)
            if job.do:
                inspect.signature(getattr(gpu_jobs, job.do)).bind(None, **job.args)
    known = {work.op for make in gpu_jobs.PARTS.values() for work in make([gpu_jobs.each_kernel.TINY])}
    assert {op for ops in gpu_plan.OPS.values() for op in ops} == known
    assert "tests/ops/test_reference.py" not in gpu.cuda_tests() and gpu.cuda_tests()
