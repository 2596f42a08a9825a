"""Jobs through submitit: on a Slurm that is a shell script, and on submitit's own local cluster."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit

import growtas
from growtas.errors import GrowtasError, UsageError
from growtas.jobs import Job, Placement, Runner
from growtas.jobs.slurm import Options, Slurm, SlurmHandle
from growtas.training.guards import Interrupted

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
FAKE = Path(__file__).with_name("fake_slurm.sh")
GIVEN = ("time=1:30:00", "partition=gpu", "cpus-per-task=8", "exclusive")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Slurm's commands on PATH; the folder that its jobs lie in."""
    bin_folder, jobs = tmp_path / "bin", tmp_path / "cluster"
    bin_folder.mkdir(), jobs.mkdir()
    for name in COMMANDS:
        (bin_folder / name).symlink_to(FAKE)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(jobs))
    return jobs


def launcher(tmp_path, *given, ranks=1, device="auto", jobs=None, space="digits"):
    placement = Placement.of(jobs, device, ranks, given or GIVEN)
    slurm = placement.launcher(growtas.load_space(space), tmp_path / "submitted")
    slurm.pause, slurm.every, slurm.grace = 0.1, 0.1, 1.0
    return slurm


def script(folder, name, text):
    """A job that runs a script."""
    (folder / f"{name}.py").write_text(text)
    return Job(name, "runpy:run_path", {"path_name": str(folder / f"{name}.py")}, folder / f"{name}.txt")


def wait_for(ready, limit=300.0):
    end = time.monotonic() + limit
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_jobs_run_in_slurm(tmp_path, cluster, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = "import os; print(*map(os.environ.get, {}))"
    told = told.format(("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"))
    assert Runner(launcher(tmp_path), "").run([script(tmp_path, "tell me", told)], "run", "job") == {}
    said = (tmp_path / "tell me.txt").read_text()
    assert said == "101 4 1\n", "Slurm's GPU, and one thread for small nets"
    lines = (cluster / "101" / "script").read_text().splitlines()
    for option in ("time=90", "partition=gpu", "cpus-per-task=8", "gpus-per-node=1", "job-name=tell-me"):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --exclusive" in lines and "#SBATCH --requeue" in lines
    assert (tmp_path / "tell me.slurm").read_text() == "101\n"


def test_whoever_submits_may_leave(tmp_path, cluster):
    """Ctrl-C leaves the jobs to Slurm; another call waits for those in the queue and submits none of them."""
    wait = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.05)"
    job, slurm = script(tmp_path, "wait", wait), launcher(tmp_path)
    submit = slurm.start

    def submit_and_leave(job):
        handle = submit(job)
        os.kill(os.getpid(), signal.SIGINT)
        return handle

    slurm.start = submit_and_leave
    with pytest.raises(
        Interrupted, match=r"1 job goes on in Slurm; to cancel: scancel 101\. Again\."
    ) as stop:
        Runner(slurm, "Again.").run([job], "run", "job")
    assert stop.value.exit_status == 130
    again = launcher(tmp_path)
    handle = again.start(job)
    assert handle.submitted.job_id == "101" and os.listdir(cluster) == ["101"]
    assert handle.poll() is None
    (tmp_path / "go").touch()
    wait_for(lambda: handle.poll() is not None)
    assert handle.poll() == ""
    wait_for(lambda: (cluster / "101" / "state").read_text() == "COMPLETED\n")
    assert again.queue() == set(), "it would be submitted anew"


def test_a_job_that_is_preempted_saves_its_state_and_goes_on(tmp_path, cluster):
    saved, text = (
        tmp_path / "saved",
        """
import time, pathlib
saved = pathlib.Path({0!r})
if saved.exists():
    print("went on")
else:
    try:
        print("began", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        saved.touch()
        raise
""",
    )
    job = script(tmp_path, "long", text.format(str(saved)))
    handle = launcher(tmp_path).start(job)
    wait_for(lambda: job.output.exists() and job.output.read_text() == "began\n")
    handle.submitted._interrupt(timeout=True)  # Slurm's signal, to every process of the job
    wait_for(lambda: handle.poll() is not None)
    assert handle.poll() == "" and saved.exists() and job.output.read_text() == "went on\n"
    assert os.listdir(cluster) == ["101"], "the same job, queued again"


def test_a_slurm_that_does_not_answer_keeps_its_jobs(tmp_path, cluster, monkeypatch):
    slurm = launcher(tmp_path)
    assert not slurm.has("101")
    slurm.every = 0
    (tmp_path / "bin" / "squeue").unlink()
    (tmp_path / "bin" / "squeue").symlink_to("/bin/false")
    assert slurm.has("101"), "the controller restarts, for one"


def test_jobs_that_slurm_ends_or_refuses(tmp_path, cluster):
    slurm = launcher(tmp_path)
    killed = script(tmp_path, "killed", "import os; os.kill(os.getppid(), 9)")  # as for want of memory
    handle = slurm.start(killed)
    wait_for(lambda: handle.poll() is not None)
    said = r"Slurm job 101 ended without a result, as FAILED \(see .*101_0_log.err\)"
    assert re.fullmatch(said, handle.poll())
    cancelled = script(tmp_path, "cancelled", "import time; print('x', flush=True); time.sleep(600)")
    handle = slurm.start(cancelled)
    wait_for(lambda: cancelled.output.exists() and cancelled.output.read_text())
    handle.submitted.cancel()
    wait_for(lambda: handle.poll() is not None)
    assert "killed by SIGTERM" in handle.poll()
    with pytest.raises(GrowtasError, match="Slurm refused the job 'killed': .*invalid partition .*missing"):
        launcher(tmp_path, "time=1", "partition=missing").start(killed)


@pytest.mark.parametrize(
    "result, says",
    [
        (pickle.dumps(("success", 3)), "exit status 3"),
        (pickle.dumps(("error", "Traceback\nRuntimeError: no memory")), "failed: RuntimeError: no memory"),
        (pickle.dumps(("success", print)), "cannot be read, since it asks for builtins.print"),
        (b"cos\nsystem\n(S'touch run'\ntR.", "cannot be read, since it asks for os.system"),
        (b"", "cannot be read"),
        (b"\x80garbage", "cannot be read"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_results_are_values_and_run_nothing(tmp_path, monkeypatch, result, says):
    monkeypatch.chdir(tmp_path)
    paths = SimpleNamespace(result_pickle=tmp_path / "result.pkl", stderr="err")
    paths.result_pickle.write_bytes(result)
    handle = SlurmHandle(SimpleNamespace(job_id="7", paths=paths), tmp_path / "output.txt", None)
    assert says in handle.poll() and not (tmp_path / "run").exists()


@pytest.mark.slow  # the same as above but for who starts the processes
def test_submitits_own_cluster(tmp_path):
    executor = submitit.LocalExecutor(tmp_path / "submitted")
    executor.update_parameters(timeout_min=60)
    job = script(tmp_path, "tell", "import os; print(os.environ['SUBMITIT_EXECUTOR'])")
    assert Runner(Slurm(executor, 1, None, 1, 0.1, queue=lambda: None), "").run([job], "run", "job") == {}
    assert job.output.read_text() == "local\n"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("240", 240), ("90:30", 90), ("1:30:00", 90), ("2-0", 2880), ("1-12:30", 2190), ("1-00:00:00", 1440)],
)
def test_times_are_slurms(text, minutes):
    assert Options.parse([f"time={text}"]).minutes == minutes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["partition=gpu"], "slurm needs time=MINUTES"),
        (["time=soon"], "slurm has time=soon; give minutes"),
        (["time=0"], "slurm has time=0; give minutes"),
        (["time=1", "nodes=2"], "slurm has nodes=2, which growtas sets itself"),
        (["time=1", "requeue=often"], "slurm has requeue='often'; it must be a whole number"),
    ],
)
def test_options_that_are_not_possible(options, says):
    with pytest.raises(UsageError, match=says):
        Placement.of(None, "auto", 1, options)


def test_resources_of_a_job(tmp_path, cluster):
    def others(*given, **kinds):
        return launcher(tmp_path, "time=60", *given, **kinds).executor.parameters["additional_parameters"]

    assert others(ranks=4) == {"requeue": True, "gpus_per_node": 4}
    assert others(device="cpu") == {"requeue": True}
    assert others("gres=gpu:a100:1") == {"requeue": True, "gres": "gpu:a100:1"}
    slurm = launcher(tmp_path, "time=60", "requeue=7", jobs=3, space="autoformer-tiny")
    assert (slurm.executor.max_num_timeout, slurm.at_once, slurm.threads) == (7, 3, None)
    assert launcher(tmp_path).at_once > 1000
    words = Placement.of(3, "cuda", 2, ["time=1:00:00", "partition=a b"]).words()
    assert words == " --jobs 3 --device cuda --ranks 2 --slurm time=1:00:00 'partition=a b'"
    assert Placement.of(None, "auto").words() == ""
    with pytest.raises(UsageError, match="Slurm chooses the GPUs"):
        launcher(tmp_path, device="cuda:1")


def test_missing_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="sbatch and srun, which are not here"):
        launcher(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install 'growtas\[slurm\]'"):
        launcher(tmp_path)


@pytest.mark.slow
def test_a_comparison_in_slurm(tmp_path, cluster):
    """Each cell is a job, and trains on two ranks; what is finished is not done again."""
    given = {"methods": ["uniform"], "seeds": 2, "epochs": 1, "lr": "3e-3", "limits": [4e4], "subnets": 1}
    given |= {"population": 4, "generations": 1, "settings": ["batch_size=192"]}
    where = {"device": "cpu", "ranks": 2, "slurm": ["time=60"]}
    made = growtas.compare(tmp_path / "out", "digits", **given | {"seeds": 1}, **where)
    assert not made.failed and os.listdir(cluster) == ["101"]
    made = growtas.compare(tmp_path / "out", **given, **where)
    assert not made.failed and not made.summary.missing and sorted(os.listdir(cluster)) == ["101", "102"]
