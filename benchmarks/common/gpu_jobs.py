"""The jobs of ``make gpu``'s workers: every function is one, and appends its records by itself.

Jobs measure through the scripts' own parts (common/works.py, common/timing.py, common/steps.py), so that a
figure of this run and one of each_kernel.py are the same thing. ``tiny`` is the rehearsal: one small layer
on a CPU, Triton interpreted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import each_kernel
import torch

from common import environment, gpu_steps, gpu_worker, roofline, steps, timing, works
from common.parts import PARTS, pick
from common.poison import poisoned, same_bits, tensors_of
from common.product_works import timed
from common.works import Layer
from growtas import ops

SPACES = ("T", "S", "B")


class Context:
    """The context of every job: the device, where records go, and what was measured before.

    Args:
        device: ``cuda``, or ``cpu`` for a rehearsal with tiny sizes.
        records: files of JSON lines.
    """

    def __init__(self, device: str, records: Sequence[str]) -> None:
        self.device = environment.pick_device(device)
        self.records = list(records)
        self.tiny = self.device.type == "cpu"
        self.dtype = torch.float32 if self.tiny else torch.bfloat16
        self.batch = 2 if self.tiny else 128
        self.state: dict[str, Any] = {}
        if self.tiny:
            steps.COMPILER = "eager"

    def add(self, kind: str, **record: Any) -> None:
        """Append a record."""
        from common.results import rounded

        gpu_worker.append(self.records, rounded({"kind": kind, **record}))

    def healthy(self) -> str:
        """Why the device can no longer be used by this process; empty where it can."""
        if self.device.type != "cuda":
            return ""
        try:
            torch.cuda.synchronize()
        except Exception as error:
            return gpu_worker.one_line(error)
        return ""

    @cached_property
    def ceilings(self) -> roofline.Roofline | None:
        """The ceilings that the run measured first."""
        found = [r for r in gpu_worker.read(self.records[0]) if r["kind"] == "ceilings"]
        return roofline.Roofline(found[-1]["bandwidth"], found[-1]["flops"]) if found else None

    def bound(self, flops: float, moved: float, seconds: float) -> dict[str, float]:
        """The least time by the measured ceilings, and the share of it that was reached."""
        if self.ceilings is None:
            return {}
        least = self.ceilings.floor(flops, moved)
        return {"bound": least, "share": least / seconds}

    def layers(self, subnets: Sequence[str] = ()) -> list[Layer]:
        """The middle layers of T, S and B: the middle embed_dim, the most heads, the widest MLP.

        Args:
            subnets: of T, in their place: ``smallest``, ``largest``.
        """
        if self.tiny:
            return [each_kernel.TINY]
        if subnets:
            return [gpu_steps.layer_of("T", name) for name in subnets]
        return [gpu_steps.layer_of(name) for name in SPACES]


# -- the machine -------------------------------------------------------------------------------------------


def about(context: Context) -> None:
    """Versions, the device, and the ptxas that Triton uses."""
    found = environment.describe(context.device)
    with contextlib.suppress(Exception):
        from triton.backends.nvidia.compiler import get_ptxas

        path = get_ptxas(90).path
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20).stdout
        found["ptxas"] = f"{path}: {text.strip().splitlines()[-1]}"
    for name in ("TRITON_PTXAS_PATH", "CUDA_HOME", "MAX_JOBS"):
        found[name] = os.environ.get(name)
    context.add("about", **found)


def ceilings(context: Context, seconds: float = 2.0) -> None:
    """A large copy, read and written, and a large product of 16 bits; on random data."""
    found = roofline.measure(context.device, context.dtype, 0.0 if context.tiny else seconds)
    context.add("ceilings", **found._asdict())


# -- compiling ---------------------------------------------------------------------------------------------


def compile_kernels(
    context: Context,
    share: int,
    shares: int,
    parts: Sequence[str] = tuple(PARTS),
    spaces: Sequence[str] = ("T",),
    every_signature: bool = False,
    candidate: dict | None = None,
) -> None:
    """Compile a share of what the run launches into Triton's cache, without launching.

    Args:
        context: of the run.
        share, shares: which share of how many; every process finds the same list and takes its own.
        parts: whose jobs are recorded, in the middle layers.
        spaces: whose training step is recorded, at the middle subnet or
        every_signature: at every layer signature.
        candidate: ``{"part", "op", "fields"}``: one job with its tiles constrained, in place of all that.
    """
    from growtas import warmup
    from growtas.kernels.common import launch

    if launch.INTERPRETED:
        return context.add("compiled", share=share, variants=0, of=0, fresh=0, seconds=0.0)
    target = warmup._targets(() if context.device.type == "cuda" else (90,))[0]
    found = gpu_steps.record(context, target, parts, spaces, every_signature, candidate)
    own = sorted(found)[share::shares]
    fresh, begin = 0, time.perf_counter()
    for key in own:
        try:
            fresh += warmup.compile_into_cache(found[key], target[0])
        except Exception as error:
            context.add("compile_failed", kernel=found[key].kernel, key=key, why=gpu_worker.one_line(error))
    return context.add(
        "compiled", share=share, variants=len(own), of=len(found), fresh=fresh,
        seconds=time.perf_counter() - begin,
    )  # fmt: skip


# -- smoke -------------------------------------------------------------------------------------------------


def smoke(
    context: Context, part: str, op: str, backend: str, subnets: Sequence[str] = (), repeats: int = 100
) -> None:
    """One kernel against fp64 with its outputs poisoned, then repeated: any change of a bit is a race.

    Args:
        context: of the run.
        part, op: the job.
        backend: ``triton``, ``cublas`` or ``cuda``; its way with 16-bit weights too, where there is one.
        subnets: as :meth:`Context.layers`.
        repeats: calls whose results are compared, at the full batch.
    """
    if context.tiny and backend == "cuda":
        return  # a rehearsal has no device for it
    repeats = 1 if context.tiny else repeats
    for work in pick(context, part, op, subnets):
        names = [n for n in work.ways if n in (f"growtas {backend}", f"growtas {backend} same")]
        yardstick = work.yardstick or work.baseline
        for name in names:
            begin = time.perf_counter()
            ways = {n: work.ways[n] for n in dict.fromkeys((yardstick, name))}
            own = dataclasses.replace(work, ways=ways)
            about = {"part": part, "op": op, "space": work.layer.space, "size": str(work), "way": name}
            context.add("smoke_begins", **about)
            record: dict[str, Any] = {"error": None, "repeats": 0}
            try:
                inputs = own.inputs(min(8, context.batch), context.device, context.dtype, 0)
                with poisoned(), ops.use("torch"):
                    passed, refused = works.check(own, inputs, context.dtype)
                record |= {"error": passed.get(name), "yardstick": passed.get(yardstick)}
                status = refused.get(name, "ok")
                if status == "ok":
                    inputs = own.inputs(context.batch, context.device, context.dtype, 1)
                    changed, record["repeats"], record["unwritten"] = _repeat(ways[name], inputs, repeats)
                    status = f"{changed} of {repeats} repetitions differ in bits" if changed else "ok"
            except Exception as error:
                status = gpu_worker.one_line(error)
            context.add("smoke", **about, status=status, **record, took=time.perf_counter() - begin)
            if context.healthy():
                return


def _repeat(make: Any, inputs: Any, repeats: int) -> tuple[int, int, bool]:
    """How many repetitions gave other bits than the first, how many ran, and whether NaN was left."""
    with poisoned():
        call = timed(make(inputs))
        first = [t.clone() for t in tensors_of(call())]
        changed = 0
        for _ in range(repeats):
            again = tensors_of(call())
            changed += not all(same_bits(a, b) for a, b in zip(first, again, strict=True))
    return changed, repeats, any(bool(t.isnan().any()) for t in first if t.is_floating_point())


# -- timing ------------------------------------------------------------------------------------------------


def crashed(context: Context) -> set[tuple[str, str]]:
    """Operation and way of every smoke test that began and did not end: it took its process down, or hung."""
    records = gpu_worker.read(context.records[0])
    ended = {(r["size"], r["way"]) for r in records if r["kind"] == "smoke"}
    begun = [r for r in records if r["kind"] == "smoke_begins"]
    return {(r["op"], r["way"]) for r in begun if (r["size"], r["way"]) not in ended}


def race(
    context: Context,
    part: str,
    op: str,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    subnets: Sequence[str] = (),
) -> None:
    """Time an operation in all ways, in turns, at the middle layers of T, S and B.

    Ways that took their process down in the smoke test are left out: they would take the others along.

    Args:
        context: of the run.
        part, op: the job.
        skip: ways to leave out.
        only: ways to time beside the baseline; all where empty.
        subnets: as :meth:`Context.layers`.
    """
    bad = {way for name, way in crashed(context) if name == op} | set(skip)
    for work in pick(context, part, op, subnets):
        only_these = {*only, work.baseline, work.yardstick or work.baseline}
        ways = {n: make for n, make in work.ways.items() if n not in bad and (not only or n in only_these)}
        with ops.use("torch"):  # the parts of torch's compositions; launchers choose nothing
            records, failures = each_kernel.measure(dataclasses.replace(work, ways=ways), _options(context))
        for record in records:
            bound = context.bound(record["flops"], record["bytes"], record["seconds"][0])
            context.add("race", **record, **bound)
        for failure in failures:
            context.add("refused", **failure)


def _options(context: Context) -> Any:
    from argparse import Namespace

    return Namespace(
        device=context.device, dtype=context.dtype, batch=context.batch, tiny=context.tiny, rounds=9
    )


def to_try(context: Context, kernels: int = 2, most: int = 8) -> None:
    """List the tiles to try: of the kernels that lose most time against their bound at the middle of T.

    Args:
        context: of the run.
        kernels: how many.
        most: tile choices of each.
    """
    records = gpu_worker.read(context.records[0])
    own = [r for r in records if r["kind"] == "race" and r["way"].startswith("growtas triton")]
    own = [r for r in own if "bound" in r and (r["space"] == "T" or context.tiny) and r["part"] != "products"]
    best: dict[str, dict] = {}
    for found in own:  # of the ways with fp32 and with 16-bit weights, the faster one
        known = best.get(found["op"])
        if known is None or found["seconds"][0] < known["seconds"][0]:
            best[found["op"]] = found
    worst = sorted(best.values(), key=lambda r: r["bound"] - r["seconds"][0])[:kernels]
    for found in worst:
        for fields in gpu_steps.candidate_fields(found["part"], found["op"])[: 2 if context.tiny else most]:
            about = {name: found[name] for name in ("part", "op", "way")}
            context.add("to_try", **about, fields=fields)


def candidates(context: Context, part: str, op: str, way: str, fields: dict, label: str) -> None:
    """Time a kernel with its tiles constrained, at the middle layers, beside the choice that is committed."""
    for work in pick(context, part, op):
        if way not in work.ways:
            continue
        inputs = [work.inputs(context.batch, context.device, context.dtype, seed) for seed in range(2)]
        about = {"part": part, "op": op, "size": str(work), "way": way, "fields": label}
        try:
            with gpu_steps.constrained(part, op, fields):
                makers = [lambda make=work.ways[way], one=one: timed(make(one)) for one in inputs]
                sample, method = timing.sampler(makers, context.device, 5e-4)
                seconds = timing.spread([sample() for _ in range(3 if context.tiny else 9)])
                passed, refused = works.check(
                    dataclasses.replace(
                        work, ways={n: work.ways[n] for n in {work.yardstick or work.baseline, way}}
                    ),
                    work.inputs(min(4, context.batch), context.device, context.dtype, 0),
                    context.dtype,
                )
        except Exception as error:
            context.add("candidate", **about, status=gpu_worker.one_line(error))
            continue
        moved = work.moved(context.batch, context.dtype.itemsize)
        bound = context.bound(work.flops(context.batch), moved, seconds[0])
        status = refused.get(way, "ok")
        context.add("candidate", **about, seconds=seconds, method=method, status=status, **bound)


# -- training steps ----------------------------------------------------------------------------------------


def step_prepare(context: Context, way: str, space: str, batch: int, subnet: str = "middle") -> None:
    """Build a rival and run a few steps, so that it has compiled what it needs; its process is kept."""
    begin = time.perf_counter()
    case = gpu_steps.case(context, space, batch, subnet)
    rival = gpu_steps.rival(context, case, way)
    for _ in range(1 if context.tiny else 3):
        rival.step()
    context.state["rival"] = rival
    if context.device.type == "cuda":
        torch.cuda.empty_cache()  # it waits for its turn, beside others
    about = gpu_steps.about(case, way)
    context.add("step_prepared", **about, took=time.perf_counter() - begin)


def step_time(
    context: Context, way: str, space: str, batch: int, subnet: str = "middle", seconds: float = 2.0
):
    """Time a training step: the whole, the host's share, the device's; what ran, and the memory it took."""
    if "rival" not in context.state:
        step_prepare(context, way, space, batch, subnet)
    rival = context.state["rival"]
    for record in gpu_steps.measure(context, rival, 0.2 if context.tiny else seconds):
        kind, bound = record.pop("kind"), {}
        if "flops" in record:
            bound = context.bound(record["flops"], record["bytes"], record["seconds"][0])
            bound |= gpu_steps.model_of(context, rival.case, way)
        context.add(kind, **gpu_steps.about(rival.case, way), **record, **bound)


def step_check(context: Context, space: str) -> None:
    """Whole steps of growtas on each backend against the published way, on few images."""
    batch = 2 if context.tiny else 8
    for way in ("growtas triton", "growtas cublas", "growtas torch", "growtas auto"):
        case = gpu_steps.case(context, space, batch, "middle")
        with gpu_steps.backend(context, way):
            try:
                rivals = steps.rivals(case, ("growtas", "published"))
                found = steps.check(case, rivals)
                status = "ok"
                if way == "growtas triton":
                    found["bits_differ"] = gpu_steps.replays_differ(rivals["growtas"])
                    status = "replayed launches give other bits" if found["bits_differ"] else "ok"
            except Exception as error:
                found, status = {}, gpu_worker.one_line(error)
        context.add("step_check", **gpu_steps.about(case, way), status=status, **found)


def random_subnets(context: Context, way: str, space: str, batch: int, count: int = 50) -> None:
    """Images per second averaged over random subnets: growtas samples them, the masked net masks them."""
    case = gpu_steps.case(context, space, batch, "middle")
    count = 2 if context.tiny else count
    found = gpu_steps.over_subnets(context, case, way, count)
    context.add("random_subnets", **gpu_steps.about(case, way), **found)
