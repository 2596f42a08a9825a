"""Parts of jobs on several ranks, as torchrun starts them: interrupts, and the sentence of one that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from growtas.errors import GrowtasError
from growtas.jobs.ranks import call_on_ranks
from growtas.training.guards import Interrupted

SCRIPT = """
import os, pathlib, time
from growtas import atomic
from growtas.errors import GrowtasError
folder, rank = pathlib.Path({folder!r}), os.environ["RANK"]
names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
if (folder / "fail").exists() and rank == "1":
    raise GrowtasError("The loss was not finite.")
try:
    atomic.write_text(folder / rank, " ".join(os.environ[name] for name in names))
    time.sleep(600)
except KeyboardInterrupt:
    (folder / ("saved" + rank)).touch()
    if rank == "0":
        raise GrowtasError("Interrupted after step 3 of 9.")
    raise
"""


def work(folder):
    (folder / "script.py").write_text(SCRIPT.format(folder=str(folder)))
    return "runpy:run_path", {"path_name": str(folder / "script.py")}, 2


def test_an_interrupt_reaches_every_rank_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    def interrupt():
        end = time.monotonic() + 300
        while not all((tmp_path / rank).exists() for rank in "01") and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="Interrupted after step 3 of 9") as stop:
        call_on_ranks(*work(tmp_path))
    assert stop.value.exit_status == 130
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 0 2 3", "2 1 2 3"]
    assert all((tmp_path / f"saved{rank}").exists() for rank in "01")


def test_the_sentence_of_a_rank_that_fails(tmp_path, monkeypatch):
    """Of one that stands for all: torchrun needs seconds to start."""
    start = subprocess.Popen

    def alone(command, **given):
        return start([sys.executable, *command[command.index("growtas.jobs.worker") - 1 :]], **given)

    monkeypatch.setattr(subprocess, "Popen", alone)
    with pytest.raises(GrowtasError, match=r"^jobs=0 is not possible; .* 1 or more\.$"):
        call_on_ranks("growtas.jobs.folder:check_counts", {"given": {"jobs": 0}, "least": {"jobs": 1}}, 2)


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others(tmp_path):
    (tmp_path / "fail").touch()
    with pytest.raises(GrowtasError, match="The loss was not finite."):
        call_on_ranks(*work(tmp_path))


def test_one_rank_is_this_process(tmp_path):
    call_on_ranks("growtas.atomic:write_text", {"path": str(tmp_path / "file"), "text": "here"}, 1)
    assert (tmp_path / "file").read_text() == "here"
