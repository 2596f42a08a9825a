"""Local jobs: the GPUs and threads that each is given, and how they answer an interrupt. No GPU is needed."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
import torch

import growtas
from growtas import threads
from growtas.errors import UsageError
from growtas.jobs import Job, Placement, job
from growtas.jobs.local import Local


class Process:
    """A process that ends when it is told to; what subprocess.Popen offers of it."""

    def __init__(self, variables):
        self.variables, self.returncode, self.told = variables, None, []
        self.stdin = SimpleNamespace(close=lambda: None)

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        self.told.append(number)
        self.returncode = -number

    def wait(self, timeout=None):
        return self.returncode

    def kill(self):
        pass


@pytest.fixture
def started(monkeypatch):
    """The processes that launchers start, of which none is real."""
    for name in (*threads.VARIABLES, *threads.WAITING, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    processes = []

    def start(arguments, output, variables, *rest):
        processes.append(Process(variables))
        return processes[-1]

    monkeypatch.setattr(job, "start_process", start)
    return processes


def gpus(monkeypatch, count, visible=None):
    """Let torch see GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def launcher(tmp_path, *given, space="autoformer-tiny"):
    return Placement.of(*given).launcher(growtas.load_space(space), tmp_path)


def start(launcher, tmp_path, count):
    handles = [launcher.start(Job(f"job {n}", "a:b", {}, tmp_path / f"{n}.txt")) for n in range(count)]
    return handles, [handle.process.variables.get("CUDA_VISIBLE_DEVICES") for handle in handles]


def test_each_job_has_its_own_gpu(tmp_path, monkeypatch, started):
    gpus(monkeypatch, 3)
    local = launcher(tmp_path, None, "auto")
    assert local.at_once == 3
    handles, given = start(local, tmp_path, 3)
    assert given == ["0", "1", "2"]
    handles[1].process.returncode = 0
    assert start(local, tmp_path, 1)[1] == ["1"], "the one that is free again"


def test_more_jobs_than_gpus_share_them_evenly(tmp_path, monkeypatch, started):
    gpus(monkeypatch, 2)
    assert start(launcher(tmp_path, 5, "cuda"), tmp_path, 5)[1] == ["0", "1", "0", "1", "0"]


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        ("5,GPU-8f2a,1", "cuda", ["5", "GPU-8f2a", "1"]),
        ("5, 3", "auto", ["5", "3", "5"]),
        ("5,3", "cuda:1", ["3", "3", "3"]),
        (None, "cuda:1", ["1", "1", "1"]),
        ("5,3", "cpu", [None, None, None]),
    ],
)
def test_what_the_user_makes_visible_is_respected(tmp_path, monkeypatch, started, visible, device, expected):
    gpus(monkeypatch, len(visible.split(",")) if visible else 2, visible)
    assert start(launcher(tmp_path, 3, device), tmp_path, 3)[1] == expected


def test_jobs_of_several_ranks_have_as_many_gpus(tmp_path, monkeypatch, started):
    gpus(monkeypatch, 5, "9,8,7,6,5")
    local = launcher(tmp_path, None, "cuda", 2)
    assert local.at_once == 2
    assert start(local, tmp_path, 2)[1] == ["9,8", "7,6"]
    with pytest.raises(UsageError, match="ranks=6 needs as many GPUs .* gives 5"):
        Placement.of(None, "cuda", 6)
    with pytest.raises(UsageError, match="ranks=2 needs as many GPUs .* gives 1"):
        Placement.of(None, "cuda:0", 2)
    with pytest.raises(UsageError, match="sees 5 CUDA GPUs"):
        Placement.of(None, "cuda:5")


def test_threads_of_each_process(tmp_path, monkeypatch, started):
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setattr(threads, "alone", lambda: True)

    def variables(*given, space="autoformer-tiny"):
        local = launcher(tmp_path, *given, space=space)
        return local.at_once, start(local, tmp_path, 1)[0][0].process.variables

    alone = dict.fromkeys(threads.VARIABLES, "8")
    assert variables(None, "cpu") == (1, alone)
    assert variables(4, "cpu") == (4, dict.fromkeys(threads.VARIABLES, "2") | {"OMP_WAIT_POLICY": "passive"})
    assert variables(2, "cpu", 2)[1]["OMP_NUM_THREADS"] == "2"
    assert variables(1, "cpu", space="digits")[1]["OMP_NUM_THREADS"] == "1"
    assert variables(None, "cpu", space="digits")[0] == 8
    monkeypatch.setattr(threads, "alone", lambda: False)
    assert variables(1, "cpu")[1] == alone | {"OMP_WAIT_POLICY": "passive"}
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    assert variables(1, "cpu")[1] == {"OMP_NUM_THREADS": "8", "OPENBLAS_NUM_THREADS": "8"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert variables(1, "cpu", space="digits")[1] == {}, "the user's number stays"


def test_a_process_gets_its_variables(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os; print(os.environ['OMP_NUM_THREADS'], os.environ['HOME']); 1 / 0")
    work = Job("fail", "runpy:run_path", {"path_name": str(script)}, tmp_path / "output")
    process = job.start_process(work.worker_arguments(), work.output, {"OMP_NUM_THREADS": "3"})
    assert process.wait() == 1
    process.stdin.close()
    lines = work.output.read_text().splitlines()
    assert lines[0] == f"3 {os.environ['HOME']}" and lines[-1].startswith("ZeroDivisionError")


def test_an_interrupt_reaches_every_job_once(tmp_path, started):
    handles, _ = start(Local(2, 1), tmp_path, 2)
    assert Local(2, 1).stop(handles) == ""
    assert [process.told for process in started] == [[signal.SIGINT]] * 2
    handles, _ = start(Local(2, 1), tmp_path, 1)
    Local(2, 1).stop(handles, kill=True)
    assert started[-1].told == [signal.SIGKILL]
    assert handles[0].poll() == f"it said nothing (killed by SIGKILL; see {tmp_path / '0.txt'})"
