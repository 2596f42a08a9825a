"""Some of the faults of ``kill.py``, which has all of them: what was stopped ends as what was left alone."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from thinning import thinned

sys.path.insert(0, str(Path(__file__).parent))

from attempts import Bench, Failed, at_every_call
from cases import CASES, FAST, clear
from disk import Counts, Disk, Fault

import growtas
from growtas import atomic
from growtas.training import checkpoint
from growtas.training.log import RunLog

KILLED = {
    "interference": 0.7,
    "plateau": 0.75,
    "uniform": 0.6,
    "prenas": 0.8,
    "focusformer": 0.7,
    "single": 0.5,
    "shrinking": 0.75,
    "files": 0.6,
    "transfer": 0.6,
    "search": 0.6,
    "pack": 0.5,
    "latency": 0.5,
    "tune": 0.5,
}
"""Cases and the share of their calls after which they are killed: where there is something to lose."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder in which cases are tried; the inputs and the cases left alone are computed once."""
    return Bench(tmp_path_factory.mktemp("faults"))


def at_share(bench, case, what, share, **given):
    """A fault at this share of a case's calls to the disk."""
    return Fault(what, max(1, int(share * bench.whole(case).calls["disk"])), **given)


@pytest.mark.parametrize(
    "name",
    thinned(KILLED, fast=("uniform", "prenas", "files", "transfer", "search", "pack", "latency", "tune")),
)
def test_a_kill(bench, name):
    """Of methods and every verb; of half of them in the middle of a write.

    The states of all methods go through a file in tests/training/test_stage_changes.py.
    """
    case = CASES[name]
    assert bench.suffer(case, [at_share(bench, case, "SIGKILL", KILLED[name], seed=len(name))]) == [-9]


@pytest.mark.parametrize("name", ["compare", "report"])
@pytest.mark.slow
def test_a_kill_of_jobs(bench, name):
    case = CASES[name]
    bench.suffer(case, [at_share(bench, case, "SIGKILL", share, seed=1) for share in (0.3, 0.6)])


def test_faults_in_turn(bench):
    """A run that is killed while it begins, interrupted, and killed while it is resumed and after that."""
    case = CASES["growtas"]
    faults = [("SIGKILL", 0.1), ("SIGTERM", 0.4), ("SIGKILL", 0.05), ("SIGKILL", 0.3)]
    given = [at_share(bench, case, what, share, seed=1) for what, share in faults]
    assert bench.suffer(case, given) == [-9, 143, -9, -9]


@pytest.mark.parametrize(
    ("what", "share", "lasting"),
    thinned(
        [("ENOSPC", 0.2, True), ("ENOSPC", 0.55, True), ("EIO", 0.7, False), ("EACCES", 0.9, True)],
        fast=(0, 2),
        several=True,
    ),
)
def test_a_disk_that_refuses(bench, what, share, lasting):
    case = CASES["growtas-curves"]
    assert bench.suffer(case, [at_share(bench, case, what, share, lasting=lasting, seed=1)]) == [1]


@pytest.mark.parametrize("share", thinned([0.05, 0.25, 0.5, 0.75], fast=(1, 2)))
def test_power_that_is_lost(bench, share):
    case = CASES["growtas"]
    bench.suffer(case, [at_share(bench, case, "power", share, seed=-1 if share == 0.5 else 7)])


@pytest.mark.parametrize("name", ["growtas", "search", "extract", "pack", "latency", "tune"])
def test_what_is_said_to_be_done_survives_a_loss_of_power(bench, name):
    bench.power_at_the_end(CASES[name], -1)


@pytest.mark.parametrize(
    ("owner", "name"), [(atomic, "flush_folder"), (RunLog, "sync")], ids=["folder", "log"]
)
def test_a_flush_that_is_left_out_is_noticed(bench, owner, name):
    """The fault injection itself: without the flush, a loss of power loses what was said to be done."""

    def no_flush(self, *_):
        if owner is RunLog:
            self._file.flush()
            return Path(self.path).stat().st_size
        return None

    with mock.patch.object(owner, name, no_flush), pytest.raises((Failed, growtas.GrowtasError, OSError)):
        bench.power_at_the_end(CASES["growtas"], -1)


def test_checkpoints_by_the_clock(bench, tmp_path):
    """``checkpoint_every_seconds``: killed within the first epoch, a run has its last steps."""
    given = FAST | {"method": "uniform", "batch_size": 96, "epochs": 1, "out": tmp_path / "run"}
    bench.inputs  # noqa: B018 - they are made here, and not in the child
    disk = Disk(tmp_path, None, Counts(), Fault("SIGKILL", 60))
    assert bench.attempt(lambda: growtas.train(**given, checkpoint_every_seconds=1e-9), disk) == -9
    assert 3 <= checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] < 11


def test_a_clock_that_is_set_back_and_a_folder_that_moves(bench):
    case, inputs = CASES["growtas"], bench.inputs
    fault = at_share(bench, case, "SIGKILL", 0.6)
    folder, moved = clear(bench.folder / "before"), bench.folder / "after"
    rng, now = random.Random(0), time.time

    def jumping(go):
        clock = mock.patch("time.time", lambda: now() + rng.uniform(-1e7, 1e7))
        with clock, mock.patch("time.monotonic", lambda: rng.uniform(0, 1e5)):
            go()

    disk = Disk(folder, None, Counts(), fault)
    assert bench.attempt(lambda: jumping(lambda: case.go(folder, inputs)), disk) == -9
    folder.rename(moved)
    assert bench.attempt(lambda: jumping(lambda: case.go(moved, inputs))) == 0, bench.told
    bench.ends(case, moved, again=False)


def test_four_processes_resume_one_run(bench):
    case, inputs = CASES["growtas"], bench.inputs
    folder = clear(bench.folder / "shared")
    assert bench.met(case, folder, at_share(bench, case, "SIGKILL", 0.5)) == -9
    pids = {f"output-{n}": None for n in range(4)}
    for output in pids:
        pids[output] = bench.start(lambda: case.go(folder, inputs), output=output)
    ends = {}
    for output, pid in pids.items():
        ends[output] = bench.wait(pid, output)
        assert ends[output] == 0 or "Another process is writing" in bench.told, bench.told
    assert 0 in ends.values() and set(ends.values()) <= {0, 2}
    bench.ends(case, folder, again=False)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["growtas", "search", "extract"])
def test_every_fault_at_every_call(bench, name):
    case = CASES[name]
    for fault in at_every_call(bench.whole(case).calls["disk"]):
        bench.suffer(case, [fault])
