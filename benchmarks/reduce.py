"""Averaging gradients over ranks: bytes counted and exposed time measured, beside DistributedDataParallel.

    python benchmarks/reduce.py [--ranks 1,2,4] [--space autoformer-tiny] [--rounds 15] [--out FILE]

Bytes are counted for random subnets of each space. Times are of Gloo ranks on this machine, one thread each:
a forward and a backward pass of the space at small images, without and with averaging. In a round all ways
take their turn with the same subnet; a turn begins for all ranks together and ends with the slowest. Exposed
is what a way takes longer than no averaging, round by round. CPU time is all threads' of a rank.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import environment, reduce_report, results
from common.reduce_report import AFTER, BF16, FIND, NONE, OURS, STATIC
from common.timing import interleave, spread
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import growtas
from growtas.methods.schedule import stage_groups
from growtas.space import Space, load_space, seeded_rng
from growtas.subnet import AnySubnet
from growtas.training.ranks.reducer import GradientReducer, plan

COUNTED = ("autoformer-tiny", "autoformer-small", "autoformer-base", "ofa-mobilenetv3")
SUBNETS, CLASSES, BATCH, PIXELS = 200, 1000, 8, 64
WARM_UP = 2  # DDP makes its buckets anew after the first step
RECORDS = "records.json"
Pass = Callable[[Tensor, AnySubnet], None]


def counted(name: str, subnets: int = SUBNETS) -> dict[str, Any]:
    """Megabytes that a step sends in float32, means over random subnets.

    Args:
        name: of a preset.
        subnets: how many are drawn, from all groups and from those of stage 1 of two.

    Returns:
        ``all`` for every parameter, ``whole`` for those that a subnet uses, ``boxes`` for what it uses of
        them; ``stage_1_whole`` and ``stage_1_boxes``.
    """
    space = load_space(name)
    with torch.device("meta"):
        net = growtas.Supernet(space, CLASSES)
    sizes = {key: parameter.numel() for key, parameter in net.named_parameters()}
    found = {"space": name, "all": 4e-6 * sum(sizes.values())}
    stages = {"": range(len(space.groups)), "stage_1_": stage_groups(2, len(space.groups))[0]}
    for stage, groups in stages.items():
        rng, whole, boxes = seeded_rng("bytes", name, stage), 0, 0
        for _ in range(subnets):
            planned = plan(list(sizes), [net.subnet_shapes(space.sample(rng, tuple(groups)))])
            whole += sum(sizes[key] for bucket in planned.buckets for key in bucket)
            boxes += planned.numel
        found |= {f"{stage}whole": 4e-6 * whole / subnets, f"{stage}boxes": 4e-6 * boxes / subnets}
    return found


class WithZeros(nn.Module):
    """A supernet in whose graph every parameter is, so that DDP may take it for static."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, subnet: AnySubnet) -> Tensor:
        unused = [parameter.flatten()[0] for parameter in self.net.unused_parameters(subnet)]
        return self.net(images, subnet) + 0 * sum(unused)


def new_net(space: Space) -> nn.Module:
    """The supernet with the same weights everywhere."""
    torch.manual_seed(0)
    return growtas.Supernet(space, CLASSES)


def passes(module: nn.Module, reducer: GradientReducer | None = None) -> Pass:
    """A forward and a backward pass, with the reducer's averages where there is one."""

    def run(images: Tensor, subnet: AnySubnet) -> None:
        module.zero_grad(set_to_none=True)
        loss = module(images, subnet).square().mean()
        if reducer is None:
            loss.backward()
            return
        with reducer.last_backward((subnet,)):
            loss.backward()

    return run


def averaged_after(net: nn.Module) -> Pass:
    """Whole gradients, joined in one tensor and averaged when the backward pass is over."""
    run = passes(net)

    def run_and_average(images: Tensor, subnet: AnySubnet) -> None:
        run(images, subnet)
        gradients = [each.grad for each in net.parameters() if each.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat.div_(dist.get_world_size())
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    return run_and_average


def ddp(net: nn.Module, **options: bool) -> DistributedDataParallel:
    """torch's, with the copies and the bytes saved that options save."""
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # since torch 2.14
    return DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True, **options)


def bytes_of_ddp(module: DistributedDataParallel, images: Tensor, subnet: AnySubnet) -> int:
    """The bytes that its buckets hold in a step; the hook that counts stays with the module."""
    sent = []

    def count(_, bucket):  # DDP refuses annotations that are strings
        sent.append(bucket.buffer().nbytes)
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

    module.register_comm_hook(None, count)
    for _ in range(WARM_UP):
        sent.clear()
        passes(module)(images, subnet)
    return sum(sent)


def planned_bytes(net: nn.Module, subnets: Sequence[AnySubnet]) -> dict[str, float]:
    """The mean bytes that a step sends by the plans of its subnets, by way."""
    sizes = {key: parameter.numel() for key, parameter in net.named_parameters()}
    plans = [plan(list(sizes), [net.subnet_shapes(subnet)]) for subnet in subnets]
    boxes = sum(each.numel for each in plans) / len(plans)
    whole = sum(sizes[key] for each in plans for bucket in each.buckets for key in bucket) / len(plans)
    return {OURS: 4 * boxes, BF16: 2 * boxes, AFTER: 4 * whole}


def measured(rank: int, world: int, name: str, rounds: int, folder: Path) -> None:
    """Work of one rank; rank 0 writes the records."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    space = dataclasses.replace(load_space(name), image_size=PIXELS)
    rng = seeded_rng("subnets", name)
    subnets = [space.smallest(), *(space.sample(rng) for _ in range(rounds + WARM_UP - 1))]
    images = torch.randn(BATCH, space.in_channels, PIXELS, PIXELS)

    def of_ddp() -> dict[str, DistributedDataParallel]:
        static = ddp(WithZeros(new_net(space)), static_graph=True)
        return {FIND: ddp(new_net(space), find_unused_parameters=True), STATIC: static}

    sent = {way: bytes_of_ddp(module, images, subnets[0]) for way, module in of_ddp().items()}
    sent |= planned_bytes(new_net(space), subnets[WARM_UP:])
    ways = {NONE: passes(new_net(space)), AFTER: averaged_after(new_net(space))}
    for way, dtype in ((OURS, torch.float32), (BF16, torch.bfloat16)):
        net = new_net(space)
        ways[way] = passes(net, GradientReducer(net, world, dtype))
    ways |= {way: passes(module) for way, module in of_ddp().items()}
    cpu: dict[str, list[float]] = {way: [] for way in ways}

    def sampler(way: str) -> Callable[[], float]:
        turn = itertools.count()

        def sample() -> float:
            subnet = subnets[next(turn)]
            dist.barrier()
            before, start = time.process_time(), time.perf_counter()
            ways[way](images, subnet)
            took = torch.tensor([time.perf_counter() - start, time.process_time() - before])
            dist.all_reduce(took, dist.ReduceOp.MAX)
            cpu[way].append(took[1].item())
            return took[0].item()

        return sample

    samplers = {way: sampler(way) for way in ways}
    for _ in range(WARM_UP):
        for sample in samplers.values():
            sample()
    for each in cpu.values():
        each.clear()
    samples = interleave(samplers, seconds=math.inf, rounds=rounds)
    if rank == 0:
        (folder / RECORDS).write_text(json.dumps(records_of(world, samples, cpu, sent)))
    dist.destroy_process_group()


def records_of(
    world: int,
    samples: Mapping[str, list[float]],
    cpu: Mapping[str, list[float]],
    sent: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Median and quartiles of the steps, and of what is exposed, by way."""
    found = []
    for way in reduce_report.WAYS:
        more = {"ranks": world, "way": way, "megabytes": sent.get(way, 0) / 1e6}
        for key, times in (("wall", samples), ("cpu", cpu)):
            beside = zip(times[way], times[NONE], strict=True)
            more |= {key: spread(times[way]), f"{key}_exposed": spread([a - b for a, b in beside])}
        found.append(more)
    return found


def on_ranks(world: int, name: str, rounds: int) -> list[dict[str, Any]]:
    """The records of so many ranks, each a process.

    Raises:
        SystemExit: a rank failed; it has said why.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, name, rounds, Path(folder))
        ranks = [context.Process(target=measured, args=(rank, *arguments)) for rank in range(world)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise SystemExit(f"Of {world} ranks some failed: {[rank.exitcode for rank in ranks]}.")
        return json.loads((Path(folder) / RECORDS).read_text())


def main(arguments: list[str] | None = None) -> int:
    """Count, measure, print, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--space", default=COUNTED[0], help="whose supernet is timed")
    parser.add_argument("--count", default=",".join(COUNTED), help="spaces whose bytes are counted")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", help="the JSON file (benchmarks/results/<processor>/reduce.json)")
    given = parser.parse_args(arguments)
    cpu = torch.device("cpu")
    out = Path(given.out) if given.out else environment.result_folder(cpu) / "reduce.json"
    described = environment.describe(cpu)
    described["machine"]["threads"] = 1
    counts = [counted(name) for name in given.count.split(",")]
    records = [r for n in given.ranks.split(",") for r in on_ranks(int(n), given.space, given.rounds)]
    described["machine"]["load_average_at_end"] = round(os.getloadavg()[0], 2)
    settings = {"space": given.space, "rounds": given.rounds, "batch": BATCH, "pixels": PIXELS}
    head = {"benchmark": "reduce", **described, "settings": settings, "subnets": SUBNETS, "counts": counts}
    results.write(out, head, records)
    data = results.read(out)
    print(
        "\n\n".join(each(data) for each in (reduce_report.counts, reduce_report.times, reduce_report.model))
    )
    print(f"\n{reduce_report.setting(data)}\nwrote {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
