"""Locks on files, held by one process and by none that it forks.

A loading process outlives a killed parent by seconds. Were the lock its own too, the run could not be
resumed for that long.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from growtas import atomic
from growtas.errors import GrowtasError, UsageError

_held: weakref.WeakSet[IO] = weakref.WeakSet()


def lock(file: IO) -> None:
    """Lock an open file until it is closed.

    Raises:
        OSError: another process holds the lock, or removed the file since it was opened.
    """
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
        raise OSError(errno.EAGAIN, "the file is another one by now", file.name)
    _held.add(file)


@contextmanager
def locked(file: Path, sentence: str, wait: float = 0.0, remove: bool = False) -> Iterator[None]:
    """Hold a lock on a file that is there for nothing else.

    Args:
        file: created, with its folder, where it is missing; never changed.
        sentence: of the error where another process holds it; told at once where it is waited for.
        wait: seconds to wait for the other process.
        remove: the file at the end, from a folder that is for others to see.

    Raises:
        UsageError: another process keeps the lock for that long.
        GrowtasError: the file cannot be written.
    """
    end, told = time.monotonic() + wait, False
    while True:
        try:
            atomic.make_folder(file.parent)
            opened = open(file, "ab")  # noqa: SIM115 - held below
        except OSError as error:
            raise GrowtasError(
                f"{file} cannot be written ({error.strerror}); mend that, or choose another folder."
            ) from error
        try:
            lock(opened)
            break
        except OSError as error:
            opened.close()
            if time.monotonic() >= end:
                raise UsageError(sentence) from error
        if not told:
            print(f"growtas: {sentence}", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.2)
    with opened:
        try:
            yield
        finally:
            if remove:
                with suppress(OSError):  # a lock that stays is taken by the next process
                    file.unlink(missing_ok=True)


def _let_go() -> None:
    """In a forked process: put the null device in the place of every locked file."""
    for file in list(_held):
        if not file.closed:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, file.fileno())
            os.close(null)


os.register_at_fork(after_in_child=_let_go)
