"""The first lines of a process that a test forks, so that it shares with its parent nothing that matters."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import torch
from tqdm.auto import tqdm


def begin(output: Path) -> None:
    """Make the calling process, just forked, one of its own.

    It has its own group, prints into a file, takes signals as a program does, and computes on one thread. The
    lock of tqdm is shared with the parent: a child that is killed while it prints would hold it for ever. It
    belongs to the class that growtas prints with, which is a subclass of ``tqdm.tqdm``.

    Args:
        output: what it prints, replaced.
    """
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    os.setpgid(0, 0)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # not those of pytest
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)
