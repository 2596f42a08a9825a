"""torchrun and Slurm themselves: a killed rank, a signal to all, and the script of docs/distributed.md."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ranks import free_ports, launch
from runs import SMALL, assert_same_result

import growtas
from growtas.training import Run, checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DOCS = Path(__file__).parents[2] / "docs" / "distributed.md"
SETTINGS = SMALL | {"epochs": 12, "transition": "6"}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def arguments(tmp_path):
    """The command line's arguments of the small run."""
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(SMALL["space"].to_dict()))
    given = [f"--space={space}", f"--out={tmp_path / 'run'}", "--no-tensorboard"]
    for name, value in SETTINGS.items():
        if name not in ("space", "tensorboard"):
            given.append(f"--{name.replace('_', '-')}={value}")
    return given


@pytest.fixture
def undisturbed(tmp_path):
    """The same run on two ranks that nobody disturbed."""
    given = SETTINGS | {"space": tmp_path / "space.yaml", "out": tmp_path / "undisturbed"}
    statuses, outputs = launch(tmp_path, lambda _: growtas.train(**given))
    assert statuses == [0, 0], outputs
    return tmp_path / "undisturbed"


def start(command, tmp_path, **environment):
    output = open(tmp_path / "output", "wb")  # noqa: SIM115 - the process's
    environment = {**os.environ, **ENVIRONMENT, **environment}
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def wait_for_steps(folder, count, process):
    log = folder / "log.jsonl"
    while not log.exists() or log.read_bytes().count(b'"event": "step"') < count:
        assert process.poll() is None, "it ended"
        time.sleep(0.01)


def children(process):
    """The processes that one started, by their parent in /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.parametrize("which", [0, 1])
def test_torchrun_restarts_a_run_by_itself(arguments, undisturbed, tmp_path, which):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start([*torchrun, "--max-restarts=1", "-m", "growtas", "train", *arguments], tmp_path)
    wait_for_steps(tmp_path / "run", 24, process)
    victim = children(process.pid)[which]
    os.kill(victim, signal.SIGKILL)
    assert process.wait() == 0, (tmp_path / "output").read_text()
    output = (tmp_path / "output").read_text()
    assert re.search(rf"growtas: Rank \d \(process {victim} on .*\) ended without a word", output), output
    assert Run.open(tmp_path / "run").finished
    assert_same_result(tmp_path / "run", undisturbed)


def test_the_slurm_script_of_the_docs(arguments, undisturbed, tmp_path):
    (script,) = (
        each for each in re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL) if "srun" in each
    )
    text, count = re.subn(r"growtas train .*? &", f"growtas train {' '.join(arguments)} &", script)
    assert count == 1 and text.count("29500") == 1
    (tmp_path / "job.sh").write_text(text.replace("29500", *free_ports(1)))
    fakes = {
        "srun": 'shift; exec "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
        "scontrol": f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path / "asked"}',
    }
    (tmp_path / "bin").mkdir()
    for name, body in fakes.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    process = start(["bash", str(tmp_path / "job.sh")], tmp_path, **slurm)
    wait_for_steps(tmp_path / "run", 15, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    output, step = (
        (tmp_path / "output").read_text(),
        checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"],
    )
    told = f"growtas: Interrupted after step {step} of {12 * 11}; the checkpoint of step {step} is in"
    assert output.count(told) == 2, output
    process = start(["bash", str(tmp_path / "job.sh")], tmp_path, **slurm, SLURM_RESTART_COUNT="1")
    assert process.wait() == 0, (tmp_path / "output").read_text()
    assert_same_result(tmp_path / "run", undisturbed)
