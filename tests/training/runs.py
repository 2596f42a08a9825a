"""Small runs, started in this process or in one that is going to be killed."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import forked_child
import torch

from growtas.errors import GrowtasError
from growtas.space import SearchSpace
from growtas.training import checkpoint
from growtas.training.loop import Trainer

SPACE = SearchSpace(
    "small",
    embed_dim=(8, 12, 16),
    mlp_ratio=(1, 2),
    num_heads=(1, 2),
    depth=(1, 2, 3),
    image_size=8,
    patch_size=4,
    in_channels=1,
    head_dim=4,
    max_relative_position=1,
)

SMALL = {
    "epochs": 3,
    "batch_size": 96,
    "stages": 2,
    "transition": "1",
    "new_region": "standard",
    "drop_path": 0.2,
    "mixup": 0.8,
    "cutmix": 1.0,
    "eval_every": 1,
    "eval_subnets": 0,
    "tensorboard": False,
    "device": "cpu",
    "space": SPACE,
    "data": "digits",
}
"""A run of 33 steps that uses every source of randomness."""


def records(folder):
    """log.jsonl without the time stamps, and the checksums over them."""
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["time"], line["crc"]
    return lines


def same(first, second):
    """True where two nested states are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def assert_same_result(first, second):
    """Two run folders ended alike: checkpoint to the bit, log but for its times."""
    states = [checkpoint.load(Path(folder) / "checkpoint.pt") for folder in (first, second)]
    for state in states:
        state["log_offset"] = state["log_check"] = None  # time stamps differ, in length too: 1.5 and 1.25
    for key in states[0]:
        assert same(states[0][key], states[1][key]), key
    assert records(first) == records(second)


def _stop_often() -> None:
    """Stop this process after every training step and around every write of a file."""

    def stopping(function: Callable, before: bool) -> Callable:
        def call(*arguments, **given):
            if before:
                os.kill(os.getpid(), signal.SIGSTOP)
            result = function(*arguments, **given)
            if not before:
                os.kill(os.getpid(), signal.SIGSTOP)
            return result

        return call

    os.fsync, os.replace = stopping(os.fsync, True), stopping(os.replace, False)
    Trainer._after_step = stopping(Trainer._after_step, False)


class Child:
    """A process of its own, forked, that runs a function until it is killed.

    Args:
        work: what it does.
        output: file for what it prints.
        stops: whether it stops after every training step and around every write of a file, until its parent
            has looked: however busy the machine is, the parent sees each of these moments.
    """

    def __init__(self, work: Callable[[], object], output: Path, stops: bool = False) -> None:
        self.output = output
        self.pid = os.fork()
        if self.pid:
            with suppress(OSError):  # the child may have done it, or ended
                os.setpgid(self.pid, 0)
            return
        status = 1
        try:  # the child never returns from here
            forked_child.begin(output)
            if stops:
                _stop_often()
            work()
            status = 0
        except GrowtasError as error:
            os.write(2, str(error).encode())
            status = error.exit_status
        except BaseException:  # noqa: BLE001 - a forked child must not fall back into pytest
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until a condition holds where the process stops; there it stays."""
        while True:
            _, status = os.waitpid(self.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                self.pid = 0
                raise AssertionError(f"the training process ended: {self.output.read_text()}")
            if ready():
                return
            os.kill(self.pid, signal.SIGCONT)

    def kill(self, number: int = signal.SIGKILL) -> tuple[int, str]:
        """Send a signal to it and to the processes it started, as a terminal does, and wait for the end.

        Returns:
            Exit status (minus a fatal signal) and output.
        """
        os.killpg(self.pid, number)
        os.killpg(self.pid, signal.SIGCONT)
        return self.finish()

    def finish(self) -> tuple[int, str]:
        """Wait for the end. Returns: exit status (minus a fatal signal) and output."""
        while os.WIFSTOPPED(status := os.waitpid(self.pid, os.WUNTRACED)[1]):
            os.kill(self.pid, signal.SIGCONT)
        self.pid = 0
        return os.waitstatus_to_exitcode(status), self.output.read_text()
