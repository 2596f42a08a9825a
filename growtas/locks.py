"""Locks on files, held by one process and by none that it forks.

A loading process outlives a killed parent by seconds. Were the lock its own too, the run could not be
resumed for that long.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from typing import IO

_held: weakref.WeakSet[IO] = weakref.WeakSet()


def lock(file: IO) -> None:
    """Lock an open file until it is closed. Raises: OSError: another process holds the lock."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held.add(file)


def _let_go() -> None:
    """In a forked process: put the null device in the place of every locked file."""
    for file in list(_held):
        if not file.closed:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, file.fileno())
            os.close(null)


os.register_at_fork(after_in_child=_let_go)
