"""Threads of the processes that growtas starts: how many, and how they wait.

The rules follow from the measurement of benchmarks/threads.py, in docs/distributed.md. Variables that the
user has set are never changed, nor is a process in which growtas is a library. Imports come when it is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from growtas.space import Space

SMALL_NET = 1_000_000
"""Parameters of a space's largest subnet below which a net computes on one thread."""
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

_ours = False


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_small(space: Space) -> bool:
    """Return whether the nets of a space are so small that they compute on one thread."""
    from growtas import cost
    from growtas.space import MobileNetSpace, SearchSpace

    searched = isinstance(space, SearchSpace | MobileNetSpace)
    return searched and cost.parameters(space.largest(), space, num_classes=0) < SMALL_NET


def alone() -> bool:
    """Return whether there is an idle core for every thread of this process, by the last minute's load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load + cores() < (os.cpu_count() or 1) + 0.5


def count_variables(count: int) -> dict[str, str]:
    """The variables that give a new process its number of threads; none where the user has set it."""
    if VARIABLES[0] in os.environ:  # the libraries of the others follow it
        return {}
    return {name: str(count) for name in VARIABLES if name not in os.environ}


def waiting_variables() -> dict[str, str]:
    """The variable that lets waiting threads of a new process sleep; none where the user has set how."""
    if any(name in os.environ for name in WAITING):
        return {}
    return {WAITING[0]: "passive"}  # understood by GNU's, LLVM's and Intel's OpenMP


@contextmanager
def chosen() -> Iterator[None]:
    """Let growtas choose the threads of this process: it is the command line's own.

    Waiting threads sleep where other programs compute on the machine, if torch is not loaded yet, which
    brings OpenMP.
    """
    global _ours
    before = _ours
    _ours = not any(name in os.environ for name in VARIABLES)
    if "torch" not in sys.modules and not alone():
        os.environ.update(waiting_variables())
    try:
        yield
    finally:
        _ours = before


def fit(space: Space) -> None:
    """Compute on one thread where the nets of a space are small and the threads are growtas' to choose."""
    if _ours and is_small(space):
        import torch

        torch.set_num_threads(1)
