"""Loading processes: how many there are, and what each does before its first image."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

PATIENCE = 20  # seconds: less than the 30 after which torchrun kills what it told to end
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def begin_loading(worker: int) -> None:
    """Prepare a loading process. Args: worker: its number."""
    _leave_signals_to_training()
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next image: each new page costs a fault, in a VM above all."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # larger pieces, of rare images, are given back
        libc.mallopt(M_TRIM_THRESHOLD, 2**26)


def _leave_signals_to_training() -> None:
    """A signal often reaches every process of a job; the training process alone decides what it means.

    So SIGTERM ends a loading process only when the training process had time to finish its step and to end
    it. torch ends training at once, in the middle of whatever it does, when a loading process dies of a
    signal; one that exits with status 0 is only missed at the next batch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(PATIENCE))


def worker_count(workers: int | None) -> int:
    """The loading processes of one rank: as many as were asked for, else its share of the machine's cores."""
    if workers is not None:
        return workers
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # torchrun's ranks on this machine


def cores() -> int:
    """The cores of this machine that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
