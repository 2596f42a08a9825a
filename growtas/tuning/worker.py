"""A process that races one backend: a kernel that crashes, hangs or spoils memory costs this process alone.

``python -m growtas.tuning.worker`` answers each line on its standard input, a request in JSON, with a line on
its standard output. Whatever else is printed here goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, TextIO

import torch

from growtas.ops import dispatch
from growtas.tuning import calls, checks, clock, decide
from growtas.tuning.cases import Case, Job, torch_dtype

FEW_REPEATS = 3  # before the race: what differs so soon need not be timed
LEAST_SHARE = 0.3  # of the time, for timing, however long the checks took
MOST_SETS = 4  # of inputs
SHARE_OF_CACHE = 1.5


class Refused(Exception):
    """A candidate must not win. Args: kind: unsupported, wrong, bits or error; reason: a sentence."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Check and time one backend on one case.

    Args:
        request: ``case``, ``backend``, ``place`` (where its functions are), ``choices`` of the operations
            decided before, ``device``, ``threads`` of torch, ``seconds``, and ``repeats`` of the runs whose
            bits must be equal;
            ``compile`` where the jobs are only to be run once.

    Returns:
        ``measurements``, one per job; or ``refused`` and ``kind``.
    """
    case, name = Case.parse(request["case"]), request["backend"]
    dispatch.OPERATIONS[case.op].backends[name] = dispatch.Lazy(request["place"])
    device = torch.device(request["device"])
    torch.set_num_threads(request["threads"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if request.get("compile"):
            return {"measurements": _run_once(case, name, device)}
        found = _case(case, name, request["choices"], device, request["seconds"], request["repeats"])
    except Refused as refused:
        return {"refused": str(refused), "kind": refused.kind}
    except torch.OutOfMemoryError:
        return {"refused": f"{case} at {case.jobs[0].batch} images does not fit the memory", "kind": "memory"}
    except Exception as error:  # compilers, drivers and launchers raise anything
        first = (str(error).splitlines() or ["no message"])[0]
        return {"refused": f"{type(error).__name__}: {first}", "kind": "error", "spoiled": _spoiled(device)}
    finally:
        if device.type == "cuda":
            gc.collect()
            with suppress(RuntimeError):
                torch.cuda.empty_cache()  # other workers need it
    return {"measurements": found}


def _spoiled(device: torch.device) -> bool:
    """Return whether this process can do nothing on the GPU any more."""
    try:
        return torch.ones(1, device=device).sum().item() != 1
    except RuntimeError:
        return True


def _case(
    case: Case, name: str, choices: dict, device: torch.device, seconds: float, repeats: int
) -> list[dict[str, Any]]:
    """All measurements of a candidate that passes every check."""
    rest = {op: choices[op] for op in choices if op != case.op}
    own = partial(dispatch.assigned, {case.op: name}, rest)
    torchs = partial(dispatch.assigned, {case.op: "torch"}, rest)
    _check_support(case, own, device)
    begin = time.monotonic()
    for job in (*case.jobs, *case.checks):
        call = _made(job, device, 0, own)
        if problem := checks.compare(call, own):
            raise Refused("wrong", problem)
        if problem := checks.same_bits(call, own, FEW_REPEATS):
            raise Refused("bits", problem)
    rest_of_time = max(LEAST_SHARE * seconds, seconds - (time.monotonic() - begin))
    found = [_race(job, torchs, own, device, rest_of_time / len(case.jobs)) for job in case.jobs]
    if decide.wins(case.op, found):
        for job in (*case.jobs, *case.checks):
            if problem := checks.same_bits(_made(job, device, 0, own), own, repeats):
                raise Refused("bits", problem)
    return found


def _run_once(case: Case, name: str, device: torch.device) -> list[dict[str, Any]]:
    """Run every job, so that its kernels are compiled."""
    for job in (*case.jobs, *case.checks):
        with dispatch.assigned({case.op: name}):
            calls.make(job, device, 0).step()
    return []


def _made(job: Job, device: torch.device, seed: int, way: clock.Way) -> calls.Call:
    with way():
        return calls.make(job, device, seed)


def _check_support(case: Case, own: Callable[[], AbstractContextManager], device: torch.device) -> None:
    """Refuse what the operation would quietly run on torch instead."""
    if case.op != "relative_attention":
        return
    job, x = case.jobs[0], torch.empty(0, device=device, dtype=torch_dtype(case.dtype))
    with own():
        ask = dispatch.OPERATIONS[case.op](x, job.e).unsupported
    if reason := ask(job.e, (job.side, job.side), x.dtype):
        raise Refused("unsupported", reason)


def _race(job: Job, torchs: clock.Way, own: clock.Way, device: torch.device, seconds: float) -> dict:
    first = _made(job, device, 0, own)
    wanted = SHARE_OF_CACHE * clock.cache_bytes(device) / max(1, first.bytes())
    sets = [first, *(_made(job, device, seed, own) for seed in range(1, min(MOST_SETS, 1 + int(wanted))))]
    found = clock.race(sets, torchs, own, seconds)
    return {"size": job.name, "rows": job.batch * job.tokens, "result": job.dtype, **found}


def main() -> int:
    """Answer requests until there are no more."""
    out = _own_output()
    print(json.dumps({"ready": os.getpid()}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)
    return 0


def _own_output() -> TextIO:
    """Standard output for answers alone: what kernels or compilers print goes to standard error."""
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "w")


if __name__ == "__main__":
    sys.exit(main())
