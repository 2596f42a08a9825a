"""Small comparisons, their processes forked so that they need not import torch again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import forked_child
import pytest
import yaml

from growtas import atomic
from growtas.errors import GrowtasError
from growtas.jobs import worker
from growtas.training.log import RunLog

SPACE = {
    "name": "small",
    "embed_dim": [8, 12, 16],
    "mlp_ratio": [1, 2],
    "num_heads": [1, 2],
    "depth": [1, 2],
    "image_size": 8,
    "patch_size": 4,
    "in_channels": 1,
    "head_dim": 4,
    "max_relative_position": 1,
}
SMALL = {
    "data": "digits",
    "methods": ["uniform", "growtas", "growtas+:epochs=1"],
    "seeds": 2,
    "epochs": 2,
    "lr": "3e-3",
    "limits": [2000],
    "subnets": 3,
    "population": 4,
    "generations": 2,
    "settings": ["batch_size=192", "transition=1"],
    "jobs": 2,
    "device": "cpu",
}


def space_file(folder: Path) -> str:
    """The small space as a YAML file."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return str(path)


def meanwhile(patch: pytest.MonkeyPatch, module, work) -> None:
    """Have another process do something between a module's plan and its lock."""
    locked = module.locked

    def after(*given):
        patch.setattr(module, "locked", locked)
        work()
        return locked(*given)

    patch.setattr(module, "locked", after)


class Fork:
    """A process of its own that runs a function; what subprocess.Popen offers of it."""

    def __init__(self, work, output: Path) -> None:
        self.output, self.status = output, None
        theirs, ours = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(theirs)
            self.stdin = open(ours, "wb")
            with suppress(OSError):
                os.setpgid(self.pid, 0)
            return
        status = 1
        try:  # the child never returns from here
            forked_child.begin(output)
            os.dup2(theirs, 0)
            os.close(theirs), os.close(ours)
            status = work() or 0
        except GrowtasError as error:
            os.write(2, str(error).encode())
            status = error.exit_status
        except BaseException:  # noqa: BLE001 - a forked child must not fall back into pytest
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def _ended(self, status: int) -> int:
        self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return self._ended(status) if pid else None
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        return self._ended(os.waitpid(self.pid, 0)[1]) if self.status is None else self.status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait_until(self, ready, limit: float = 120.0) -> None:
        """Wait for a condition while it runs."""
        end = time.monotonic() + limit
        while not ready():
            assert self.poll() is None, self.output.read_text()
            assert time.monotonic() < end, "the process did not get there"
            time.sleep(0.002)


def forked(arguments: list[str], output: Path, *rest: object) -> Fork:
    """In place of ``job.start_process``."""
    atomic.make_folder(output.parent)
    return Fork(lambda: worker.main(arguments), output)


def children(process: Fork) -> list[int]:
    """The processes that a process has started and that run."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def state(pid: int) -> str:
    """The letter of a process's state as ps shows it; X where it has ended, which may be at any moment."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def runs(pid: int) -> bool:
    """True where a process runs that is nobody's child here any more."""
    return state(pid) not in "ZX"


@contextmanager
def stopping_itself(folder: str) -> Iterator[None]:
    """Processes forked in this block stop as by SIGSTOP after the third step of a run in such a folder.

    From outside, so small a run could not be stopped before it is done, on a machine that is busy.
    """
    write = RunLog.write

    def stop(self: RunLog, event: str, step: int, *rest: object, **values: object) -> None:
        write(self, event, step, *rest, **values)
        if event == "step" and step == 2 and folder in str(self.path):
            os.kill(os.getpid(), signal.SIGSTOP)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "write", stop)
        yield


def stopped_child(process: Fork) -> int:
    """The one child of a process, once it has stopped itself."""
    process.wait_until(lambda: [state(pid) for pid in children(process)] == ["T"])
    return children(process)[0]


def pending(process: int, number: int) -> bool:
    """True where a stopped process has been sent a signal that it has not seen yet."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return any(int(status[key], 16) >> (number - 1) & 1 for key in ("SigPnd", "ShdPnd"))


def wait_for(ready, limit: float = 120.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + limit
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def results(folder: Path) -> dict[str, dict]:
    """Every cell.json without what depends on the moment."""
    found = {}
    for file in sorted((folder / "cells").rglob("cell.json")):
        data = json.loads(file.read_text())
        del data["time"], data["made_by"], data["crc"]
        found[str(file.relative_to(folder))] = data
    return found


def fingerprints(folder: Path) -> dict[str, tuple[int, str]]:
    """When and with what each file of the finished cells was written."""
    return {
        str(file): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for done in (folder / "cells").rglob("cell.json")
        for file in done.parent.rglob("*")
        if file.is_file()
    }
