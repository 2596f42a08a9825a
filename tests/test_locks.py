"""A lock is its process's own: one that it forked, and that outlives it, does not hold it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from growtas.locks import lock


@pytest.mark.parametrize("forks", [False, True])
def test_a_killed_process_lets_go_at_once(tmp_path, forks):
    path, lives = tmp_path / "file", tmp_path / "lives"
    process = os.fork()
    if not process:
        held = open(path, "ab")  # noqa: SIM115 - held until the kill
        lock(held)
        if not forks or not os.fork():
            lives.write_text(str(os.getpid()))
        time.sleep(600)
        os._exit(0)
    while not lives.exists() or not lives.read_text():
        time.sleep(0.01)
    try:
        with open(path, "ab") as file, pytest.raises(BlockingIOError):
            lock(file)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        with open(path, "ab") as file:
            lock(file)
    finally:
        if forks:
            os.kill(int(lives.read_text()), signal.SIGKILL)


def test_what_a_forked_process_writes_does_not_reach_the_file(tmp_path):
    with open(tmp_path / "file", "ab") as file:
        lock(file)
        process = os.fork()
        if not process:
            file.write(b"from the child")
            file.flush()
            os._exit(0)
        os.waitpid(process, 0)
        file.write(b"from the parent")
    assert (tmp_path / "file").read_bytes() == b"from the parent"
