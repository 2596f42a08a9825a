"""Training steps as the jobs of ``make gpu`` time them, and what those jobs launch, for compiling ahead."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from common import step_bytes, steps, timing
from common.parts import PARTS, pick
from common.products import SPACES
from common.steps import Case, Rival
from common.works import Layer
from growtas import load_space, ops

TINY_SPACE = "digits"


def layer_of(space: str, name: str = "middle") -> Layer:
    """A layer of a space's subnet.

    Args:
        space: T, S or B.
        name: of the subnet, as ``steps.pick_subnet`` has it.
    """
    loaded = load_space(SPACES[space])
    subnet, side = steps.pick_subnet(loaded, name), loaded.image_size // loaded.patch_size
    return Layer(
        space, subnet.embed_dim, subnet.num_heads[0], subnet.hidden_dims[0], loaded.super_embed_dim,
        loaded.super_num_heads, loaded.super_hidden_dim, loaded.head_dim, (side, side),
        loaded.max_relative_position,
    )  # fmt: skip


# -- what is launched --------------------------------------------------------------------------------------


def record(
    context: Any,
    target: tuple,
    parts: Sequence[str],
    spaces: Sequence[str],
    every_signature: bool,
    candidate: dict | None,
) -> dict[str, Any]:
    """The kernel variants that jobs and training steps launch, by key; see ``growtas.warmup``."""
    from growtas import warmup
    from growtas.kernels.common import launch

    meta = torch.device("meta")
    with launch.recording(target[0]) as found, warmup._on_triton(target):
        if candidate:
            works = pick(context, candidate["part"], candidate["op"])
            with constrained(candidate["part"], candidate["op"], candidate["fields"]):
                _run_all(works, meta, context.batch, torch.bfloat16)
            return found
        for part in parts:
            _run_all(PARTS[part](context.layers()), meta, context.batch, torch.bfloat16)
    for name in () if context.tiny else spaces:
        found = found | record_space(load_space(SPACES[name]), every_signature, context.batch, target)
    return found


def record_space(space: Any, every_signature: bool, batch: int, target: tuple) -> dict[str, Any]:
    """The launches of a training step under autocast: at every signature, or at the middle subnet's alone."""
    from growtas import warmup
    from growtas.kernels.common import launch

    if every_signature:
        return warmup.record(space, (batch,), ("bf16-autocast",), 1000, target)
    subnet, dtypes = steps.pick_subnet(space, "middle"), (torch.bfloat16, torch.float32)
    signature = subnet.embed_dim, subnet.num_heads[0], subnet.hidden_dims[0]
    with launch.recording(target[0]) as found:
        for preferred in ("triton", "cublas"):
            with warmup._on_triton(target, preferred):
                warmup.run_block(space, *signature, batch, *dtypes)
                warmup.run_ends(space, subnet.embed_dim, 1000, batch, *dtypes)
    return found


def _run_all(found: Sequence, device: torch.device, batch: int, dtype: torch.dtype) -> None:
    """Run the Triton ways of works, on tensors without values; one that fails here fails in its own job."""
    for work in found:
        for name, make in work.ways.items():
            if name.startswith(("growtas triton", "growtas cublas")):
                with contextlib.suppress(Exception):
                    make(work.inputs(batch, device, dtype, 0))()


# -- tiles -------------------------------------------------------------------------------------------------


def tiles_module(part: str, op: str) -> Any:
    """The module that picks the tiles of an operation."""
    from growtas.kernels.common import tiles
    from growtas.kernels.mlp import tiles as mlp_tiles
    from growtas.kernels.relative_attention import tiles as relative_attention_tiles

    if part == "attention":
        return relative_attention_tiles
    return mlp_tiles if op.startswith("mlp") and hasattr(mlp_tiles, "constrained") else tiles


@contextlib.contextmanager
def constrained(part: str, op: str, fields: dict) -> Iterator[None]:
    """Within it, an operation's tiles have these fields; both modules of the MLP are told where they can."""
    from growtas.kernels.common import tiles

    module = tiles_module(part, op)
    with module.constrained(**fields):
        if module is not tiles and part == "fused":
            with contextlib.suppress(Exception), tiles.constrained(**fields):
                yield
                return
        yield


def candidate_fields(part: str, op: str) -> list[dict]:
    """Tiles to try for an operation: the ``CANDIDATES`` of its module, or stages and warps."""
    module = tiles_module(part, op)
    listed = getattr(module, "CANDIDATES", None)
    if isinstance(listed, dict):
        listed = next((listed[key] for key in (op, op.split()[0], part) if key in listed), None) or [
            fields for group in listed.values() for fields in group
        ]
    if listed:
        return [dataclasses.asdict(f) if dataclasses.is_dataclass(f) else dict(f) for f in listed]
    return [{"stages": s, "warps": w} for s, w in itertools.product((2, 3, 4), (4, 8))]


# -- rivals ------------------------------------------------------------------------------------------------


def case(context: Any, space: str, batch: int, subnet: str) -> Case:
    """One subnet of T, S or B at a batch; in a rehearsal the digits' space stands in."""
    name = TINY_SPACE if context.tiny else SPACES[space]
    picked = steps.pick_subnet(load_space(name), subnet)
    return Case(name, picked, subnet, 2 if context.tiny else batch, context.device, context.dtype)


def about(case: Case, way: str) -> dict[str, Any]:
    """The fields of a record that name its case."""
    return {
        "way": way,
        "space": case.space,
        "subnet": str(case.subnet),
        "name": case.name,
        "batch": case.batch,
    }


def backend(context: Any, way: str) -> Any:
    """The backend that a way names: ``growtas triton``; none for the others.

    A rehearsal takes torch for all: whole steps in Triton's interpreter take minutes.
    """
    if not way.startswith("growtas "):
        return contextlib.nullcontext()
    return ops.use("torch" if context.tiny else way.split()[1])


def rival(context: Any, case: Case, way: str) -> Rival:
    """A network in training mode; growtas' backend stays in force for the rest of the process."""
    backend(context, way)
    name = way.split()[0]
    found = steps.rivals(case, (name,))[name]
    found.net.train()
    return found


def model_of(context: Any, case: Case, way: str) -> dict[str, float]:
    """The least seconds of growtas' step by the model of its launches and the measured ceilings."""
    backend = way.removeprefix("growtas ")
    if backend not in step_bytes.BACKENDS or context.ceilings is None or case.subnet.embed_dim > 256:
        return {}  # wider rows take other launches than the model has
    found = step_bytes.step_bytes(load_space(case.space), case.subnet, case.batch, backend)
    return {"model": step_bytes.least(found, *context.ceilings)}


def measure(context: Any, rival: Rival, seconds: float) -> Iterator[dict[str, Any]]:
    """Records of a rival's step: times first, then what the profiler sees, each as soon as it is known."""
    cuda = context.device.type == "cuda"
    for _ in range(2):
        rival.step()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    sample, _ = timing.sampler([lambda: rival.step], context.device, seconds / 20, use_graph=False)
    whole = timing.interleave({"step": sample}, seconds=seconds, rounds=15, least=3)["step"]
    host, cpu = host_seconds(rival.step, cuda, 3 if context.tiny else 15)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    images = rival.case.batch / timing.spread(whole)[0]
    yield {
        "kind": "step", "seconds": timing.spread(whole), "host": host, "cpu": cpu, "peak_bytes": peak,
        "images_per_second": images, **steps.bound_of(rival.case),
    }  # fmt: skip
    yield {"kind": "profile", **profile(rival.step, cuda)}
    if cuda:
        sample, how = timing.sampler([lambda: rival.step], context.device, 0.0)
        graphed = timing.spread([sample() for _ in range(7)])
        yield {"kind": "graphed", "seconds": graphed, "method": how}


def replays_differ(rival: Rival, steps: int = 4) -> int:
    """How many gradients differ from the first step's in a later one, whose launches are replayed."""
    first: list[torch.Tensor | None] = []
    differing = 0
    for step in range(steps):
        rival.clear()
        rival.loss().backward()
        gradients = [parameter.grad for parameter in rival.net.parameters()]
        if not step:
            first = gradients
        differing += sum(
            a is not b and (a is None or b is None or not torch.equal(a, b))
            for a, b in zip(first, gradients, strict=True)
        )
    rival.clear()
    return differing


def host_seconds(step: Callable[[], Any], cuda: bool, rounds: int) -> tuple[timing.Spread, timing.Spread]:
    """The host's time to hand a step to an idle device: of the clock, and of the processor."""
    clock, processor = [], []
    for _ in range(rounds):
        if cuda:
            torch.cuda.synchronize()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        step()
        clock.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_cpu)
    return timing.spread(clock), timing.spread(processor)


def profile(step: Callable[[], Any], cuda: bool, most: int = 14) -> dict[str, Any]:
    """Kernels of a step: how many, their time added up, and the longest by name."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    if not cuda:
        step()
        return {"kernels": 0, "device": 0.0, "longest": []}
    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    by_name: dict[str, list[float]] = {}
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            by_name.setdefault(event.name[:80], []).append(event.time_range.elapsed_us() * 1e-6)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:most]
    return {
        "kernels": sum(map(len, by_name.values())),
        "device": sum(sum(times) for times in by_name.values()),
        "longest": [[name, len(times), sum(times)] for name, times in longest],
    }


def over_subnets(context: Any, case: Case, way: str, count: int) -> dict[str, Any]:
    """Steps of random subnets, the same for every way: images per second over all of them."""
    space, draw = load_space(case.space), random.Random(0)
    subnets = [space.sample(draw) for _ in range(count)]
    found = context.state.get("rival") or rival(context, case, way)
    cuda, times, host = context.device.type == "cuda", [], []
    for turn in range(2):  # the first walk compiles and fills the allocator
        for subnet in subnets:
            found.choose(subnet)
            if cuda:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(1 if turn == 0 else 2):
                found.step()
            handed = time.perf_counter()
            if cuda:
                torch.cuda.synchronize()
            if turn:
                times.append((time.perf_counter() - begin) / 2)
                host.append((handed - begin) / 2)
    return {
        "subnets": count, "images_per_second": case.batch * count / sum(times),
        "seconds": timing.spread(times), "host": timing.spread(host),
    }  # fmt: skip
