"""Save and restore the signal handlers and random generators of the process that a run lives in."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from growtas.errors import GrowtasError


class Interrupted(GrowtasError):
    """The user stopped the run; it can be resumed. Exit status as shells expect it: 128 + signal."""

    def __init__(self, sentence: str, signal_number: int) -> None:
        super().__init__(sentence)
        self.exit_status = 128 + signal_number


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Give the user's global generators back as they were: training seeds them at every step."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one is not collected.

    Yields:
        A list that the first signal's number is put into. Outside the main thread, where handlers cannot be
        set, it stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in caught}

    def collect(number: int, frame: object) -> None:
        received.append(number)
        for each in caught:
            signal.signal(each, before[each])

    for number in caught:
        signal.signal(number, collect)
    try:
        yield received
    finally:
        for number in caught:
            signal.signal(number, before[number])
