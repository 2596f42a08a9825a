"""Stands in for common/gpu_jobs.py in a rehearsal: no torch, no device; jobs that end, crash and hang.

What a job does is chosen by FAKE_GPU_JOBS, JSON of {"crash": [...], "hang": [...]}: parts of "job operation".
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from common import gpu_worker

FAULTS = json.loads(os.environ.get("FAKE_GPU_JOBS", "{}"))
SPACES = ("T", "S", "B")


class Context:
    """As the real one, without a device."""

    def __init__(self, device: str, records: Sequence[str]) -> None:
        self.records, self.state = list(records), {}

    def add(self, kind: str, **record: Any) -> None:
        """Append a record."""
        gpu_worker.append(self.records, {"kind": kind, **record})

    def healthy(self) -> str:
        """Nothing can break."""
        return ""


def fault(name: str) -> None:
    """Crash or hang where that was asked for."""
    if any(part in name for part in FAULTS.get("crash", ())):
        os.kill(os.getpid(), signal.SIGSEGV)
    if any(part in name for part in FAULTS.get("hang", ())):
        time.sleep(600)
    if any(part in name for part in FAULTS.get("fail", ())):
        raise ArithmeticError(f"{name} is wrong\nand more")


def about(context: Context) -> None:
    """A machine."""
    versions = {"torch": "2", "triton": "3"}
    context.add("about", machine={"device": "a GPU"}, versions=versions, commit="abc")


def ceilings(context: Context) -> None:
    """Round ceilings."""
    context.add("ceilings", bandwidth=3e12, flops=8e14)


def compile_kernels(context: Context, share: int, shares: int, **_: Any) -> None:
    """A few variants."""
    fault(f"compile {share}")
    context.add("compiled", share=share, variants=5, of=5 * shares, fresh=5, seconds=1.0)


def smoke(context: Context, part: str, op: str, backend: str, subnets: Sequence[str] = ()) -> None:
    """A right kernel at three sizes."""
    for space in SPACES:
        known = {"part": part, "op": op, "space": space, "size": f"{space} {op}", "way": f"growtas {backend}"}
        context.add("smoke_begins", **known)
        fault(f"smoke {op} {space}")
        context.add("smoke", **known, status="ok", error=1e-3, repeats=100, unwritten=False)


def race(
    context: Context,
    part: str,
    op: str,
    skip: Sequence[str],
    only: Sequence[str],
    subnets: Sequence[str] = (),
) -> None:
    """Two ways at three sizes."""
    for space in SPACES:
        fault(f"race {op} {space}")
        for way, seconds in (("dense", 1e-4), ("growtas triton", 8e-5), ("growtas triton same", 7e-5)):
            context.add(
                "race", part=part, op=op, space=space, size=f"{space} {op}", way=way, baseline="dense",
                seconds=[seconds] * 3, speed=[1e-4 / seconds] * 3, bound=5e-5, share=5e-5 / seconds,
            )  # fmt: skip


def to_try(context: Context) -> None:
    """Two candidates."""
    for stages in (2, 3):
        fields = {"stages": stages}
        context.add("to_try", part="fused", op="mlp", way="growtas triton", fields=fields)


def candidates(context: Context, part: str, op: str, way: str, fields: dict, label: str) -> None:
    """One candidate's time."""
    fault(f"candidates {label}")
    context.add(
        "candidate", part=part, op=op, size=f"T {op}", way=way, fields=label, status="ok", seconds=[6e-5] * 3
    )


def step_prepare(context: Context, way: str, space: str, batch: int) -> None:
    """A rival that is kept."""
    fault(f"prepare {way}")
    context.state["rival"] = way


def step_time(context: Context, way: str, space: str, batch: int) -> None:
    """A step; what was prepared has to be in this process."""
    fault(f"step {way}")
    known = {"way": way, "space": space, "batch": batch}
    context.add(
        "step", **known, seconds=[7e-3] * 3, host=[3e-3] * 3, cpu=[3e-3] * 3, peak_bytes=2**32,
        images_per_second=18000.0, bound=3e-3, share=0.4, prepared=context.state.get("rival") == way,
    )  # fmt: skip
    context.add("profile", **known, kernels=190, device=6e-3, longest=[["_forward", 13, 2e-3]])
    context.add("graphed", **known, seconds=[6e-3] * 3, method="CUDA graph")


def step_check(context: Context, space: str) -> None:
    """A right step."""
    context.add(
        "step_check", way="growtas triton", space=space, batch=8, status="ok", logits=1e-3, gradients=1e-2
    )


def random_subnets(context: Context, way: str, space: str, batch: int) -> None:
    """Fifty subnets."""
    context.add("random_subnets", way=way, space=space, batch=batch, subnets=50, images_per_second=15000.0)
