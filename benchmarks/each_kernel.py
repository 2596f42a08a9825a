"""Every kernel at the sizes of T, S and B, beside what it has to beat, with its share of the roofline.

    python benchmarks/each_kernel.py [--parts products,fused,layer_norm,attention,ends] [--seconds 40] ...
    python benchmarks/each_kernel.py --device cpu --spaces T --seconds 15

products    sliced products beside cuBLAS with dense contiguous weights
fused       linear + gelu, linear + residual, norm + qkv, MLP beside the unfused dense sequence
layer_norm  beside a copy of as many bytes
attention   with relative position, beside torch's flash attention without it
ends        first tokens, and final norm with the mean, beside torch's compositions

Every way is compared with fp64 first, on a small batch; one that is wrong or fails is reported and not
timed, and costs no other. All ways of one job take turns. Where the time is over, what was measured is
saved: jobs are taken in an order that mixes sizes. On a CPU the C++ and torch backends run; a composition
of torch's takes for its parts what ``auto`` chooses. With --tiny Triton's interpreter runs there as well, to
check this script's own logic.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from common import environment, kernel_report, results, roofline, timing, works
from common.parts import PARTS
from common.product_works import timed
from common.products import SPACES
from common.works import Layer, Work
from tqdm import tqdm

CHECK_BATCH = 4
#: A space of one small layer, for checking this script where there is no GPU.
TINY = Layer("tiny", d=24, heads=2, hidden=72, D=32, H=3, M=96, e=32, grid=(2, 3), clamp=3)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the defaults of the device filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help="separated by commas")
    add("--spaces", default="T,S,B", help="of T, S and B, separated by commas")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    dtypes = ("bfloat16", "float16", "float32")
    add("--dtype", choices=dtypes, help="of activations (bfloat16; on a CPU float32)")
    add("--batch", type=int, help="images (128; on a CPU 8)")
    add("--threads", type=int, default=min(2, environment.processors()), help="CPU threads of torch")
    add("--seconds", type=float, default=40.0, help="per part; what is not done by then is left out")
    add("--rounds", type=int, default=9, help="turns per way")
    add("--tiny", action="store_true", help="one small layer and two images, to check this script")
    add("--out", type=Path, help="the JSON file (benchmarks/results/<device>/kernels.json)")
    options = parser.parse_args(argv)
    options.parts = options.parts.split(",")
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    options.spaces = options.spaces.upper().split(",")
    unknown = [name for name in options.spaces if name not in SPACES]
    if unknown:
        parser.error(f"there is no space {unknown[0]!r}: choose from {', '.join(SPACES)}")
    options.device = environment.pick_device(options.device)
    on_gpu = options.device.type == "cuda"
    options.dtype = getattr(torch, options.dtype or ("bfloat16" if on_gpu else "float32"))
    options.batch = 2 if options.tiny else options.batch or (128 if on_gpu else 8)
    if options.out is None:
        options.out = environment.result_folder(options.device) / "kernels.json"
    return options


def jobs(part: str, options: argparse.Namespace) -> list[Work]:
    """The jobs of a part, small and large ones mixed, always in the same order."""
    found = [TINY] if options.tiny else works.layers(options.spaces)
    every = list(PARTS[part](found))
    random.Random(0).shuffle(every)
    return every


def measure(work: Work, options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Check and time one job.

    Returns:
        One record per way that is right; one per way that was refused, with the reason.
    """
    device, dtype, batch = options.device, options.dtype, options.batch
    about = {"part": work.part, "space": work.layer.space, "op": work.op, "size": str(work)}
    work = dataclasses.replace(work, ways=runnable(work, device, options.tiny))
    passed, refused = works.check(work, work.inputs(min(CHECK_BATCH, batch), device, dtype, 0), dtype)
    failures = [{**about, "way": name, "reason": why} for name, why in refused.items()]
    moved = work.moved(batch, dtype.itemsize)
    turns = timing.rotation(moved, environment.cache_bytes(device), 1 if options.tiny else 8)
    sets = [work.inputs(batch, device, dtype, seed) for seed in range(turns)]
    samplers, methods = {}, {}
    for name in [name for name in passed if name not in work.untimed]:
        makers = [lambda make=work.ways[name], one=one: timed(make(one)) for one in sets]
        try:
            samplers[name], methods[name] = timing.sampler(makers, device, 5e-4)
        except Exception as error:
            failures.append({**about, "way": name, "reason": reason(error)})
    samples = timing.interleave(samplers, seconds=1.0, rounds=options.rounds, least=3)
    records = []
    for name, own in samples.items():
        record = {**about, "way": name, "baseline": work.baseline, "seconds": timing.spread(own)}
        record |= {"rounds": len(own), "method": methods[name], "error": passed[name]}
        record |= {"flops": work.flops(batch), "bytes": moved}
        if work.baseline in samples:
            record["speed"] = timing.ratio(samples[work.baseline], own)
        records.append(record)
    return records, failures


def runnable(work: Work, device: torch.device, interpreted: bool = False) -> dict[str, Callable]:
    """The ways that run on a device: on a CPU its own and torch's, and what Triton's interpreter checks.

    Args:
        work: whose ways.
        device: where.
        interpreted: take Triton's kernels on a CPU as well.
    """
    found = {}
    for name, make in work.ways.items():
        backend = name.removeprefix("growtas ").removesuffix(" same") if name.startswith("growtas ") else None
        if device.type == "cuda":
            # torch's composition is a rival of what is fused; elsewhere it is the dense way once more.
            fits = backend in (None, "triton", "cublas", "cuda") or (
                backend == "torch" and work.part == "fused"
            )
        else:
            there = backend in ("cpu", "torch") and not name.endswith(" same")
            fits = (
                backend is None
                or (there and works.exists(work, name))
                or (interpreted and backend in ("triton", "cublas"))
            )
        if fits:
            found[name] = make
    return found


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


def measure_part(part: str, options: argparse.Namespace) -> Iterator[tuple[list[dict], list[dict], str]]:
    """The jobs of a part until its time is over: records, failures, or what was left out."""
    end = time.perf_counter() + options.seconds
    for work in tqdm(jobs(part, options), disable=None, unit="job", desc=part):
        if time.perf_counter() > end:
            yield [], [], str(work)
            continue
        try:
            yield *measure(work, options), ""
        except Exception as error:
            about = {"part": part, "space": work.layer.space, "op": work.op, "size": str(work)}
            yield [], [{**about, "way": "every way", "reason": reason(error)}], ""


def run(options: argparse.Namespace) -> tuple[dict, list[dict]]:
    """Measure all parts; on Ctrl-C or SIGTERM, what was measured until then."""
    torch.set_num_threads(options.threads)
    head = environment.describe(options.device)
    records, failures, left_out, complete, ceiling = [], [], [], False, None
    begin = time.perf_counter()
    try:
        ceiling = roofline.measure(options.device, options.dtype, 0.1 if options.tiny else 2.0)
        for part in options.parts:
            for found, failed, left in measure_part(part, options):
                records += found
                failures += failed
                left_out += [left] if left else []
        complete = True
    except KeyboardInterrupt:
        print("\nInterrupted: what was measured until now is kept.", file=sys.stderr)
    for record in records:
        seconds = record["seconds"][0]
        record["tflops"] = record["flops"] / seconds * 1e-12
        record["gbs"] = record["bytes"] / seconds * 1e-9
        record["roofline"] = ceiling.floor(record["flops"], record["bytes"]) / seconds
    settings = {
        "dtype": str(options.dtype).removeprefix("torch."),
        "batch": options.batch,
        "parts": options.parts,
        "methods": sorted({record["method"] for record in records}),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    ceilings = {"roofline": ceiling._asdict() if ceiling else None}
    extra = {"settings": settings, **ceilings, "complete": complete, "left_out": left_out}
    return {"benchmark": "kernels", **head, **extra, "failures": failures}, records


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show and save.

    Returns:
        The exit status: 0; 1 where something failed or was left out; 130 where interrupted.
    """
    options = parse(argv)
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        head, records = run(options)
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)
    if records:
        means = kernel_report.summary(records, bars=options.device.type == "cuda")
        print(f"{kernel_report.table(records)}\n\n{means}\n")
    results.write(options.out, head, records)
    print(f"wrote {os.path.relpath(options.out)}")
    if head["left_out"]:
        print(f"left out, since the time was over: {len(head['left_out'])} jobs", file=sys.stderr)
    for failure in head["failures"]:
        print(f"NOT TIMED: {failure['way']} on {failure['size']}: {failure['reason']}", file=sys.stderr)
    return 130 if not head["complete"] else 1 if head["failures"] or head["left_out"] else 0


if __name__ == "__main__":
    sys.exit(main())
