"""A training step and a forward pass of a subnet: growtas beside the published way and a dense timm ViT.

    python benchmarks/train_step.py [--quick] [--profile] [--spaces T,S,B] [--device auto|cpu|cuda] ...

One process, all rivals in turns (common/timing.py). What a step holds, and what the rivals are, is said in
common/steps.py. Before anything is timed, growtas' logits and gradients are compared with those of the
published way on the same weights. The table gives the ratios, the bound (the larger of FLOPs and bytes of the
subnet's pass over the ceilings measured here) and the share of it that was reached, the memory kept for the
backward pass and the operations of a step; JSON goes to benchmarks/results/<device>/train_step.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import environment, results, roofline, step_profile, step_report, steps, timing
from common.products import SPACES
from common.steps import PASSES, SUBNETS, WAYS, Case
from tqdm import tqdm

from growtas import load_space, ops

COMPILED = ("compiled", "masked")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the defaults of the device filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="the smallest subnet and few rounds: within a minute on a CPU")
    add("--spaces", default="T", help="of T, S and B, or names of spaces, separated by commas")
    add("--subnets", default=",".join(SUBNETS), help=f"of {', '.join(SUBNETS)}")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--dtype", choices=tuple(DTYPES), help="of products, by autocast (float32; on a GPU bfloat16)")
    add("--batch", help="images; several separated by commas (8 on a CPU, 128,512 on a GPU)")
    add("--threads", type=int, default=min(2, environment.processors()), help="CPU threads of torch")
    add("--ways", help=f"of {', '.join(WAYS)} (without compiled; on a GPU all)")
    add("--backend", default="auto", help="growtas' backend: auto, torch, cpu, triton or cuda")
    add("--rounds", type=int, default=31, help="turns per way, at most")
    add("--seconds", type=float, default=40.0, help="of timing per case, about")
    add("--deadline", type=float, default=float("inf"), help="seconds after which no further case begins")
    add("--graph", action="store_true", help="on a GPU: time CUDA graphs, so without the host's share")
    add("--profile", action="store_true", help="on a CPU: where growtas' step goes, by kind of work")
    add("--json", action="store_true", help="print the result file in place of the tables")
    add("--out", type=Path, help="the JSON file (benchmarks/results/<device>/train_step.json)")
    options = parser.parse_args(argv)
    options.device = environment.pick_device(options.device)
    on_gpu = options.device.type == "cuda"
    options.dtype = DTYPES[options.dtype or ("bfloat16" if on_gpu else "float32")]
    if options.quick:
        options.subnets, options.seconds = "smallest", min(options.seconds, 8.0)
        options.batch = options.batch or ("128" if on_gpu else "2")
    options.spaces = options.spaces.split(",")
    options.subnets = options.subnets.split(",")
    options.ways = options.ways.split(",") if options.ways else list(WAYS if on_gpu else WAYS[:3])
    for given, known, what in ((options.subnets, SUBNETS, "subnet"), (options.ways, WAYS, "way")):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"there is no {what} {unknown[0]!r}: choose from {', '.join(known)}")
    try:
        options.batch = [int(size) for size in (options.batch or ("128,512" if on_gpu else "8")).split(",")]
    except ValueError:
        parser.error(f"--batch must be whole numbers separated by commas, not {options.batch}")
    for name, value in (
        ("batch", min(options.batch)),
        ("rounds", options.rounds),
        ("threads", options.threads),
    ):
        if value < 1:
            parser.error(f"--{name} must be 1 or more, not {value}")
    if not {"growtas", "published"} <= set(options.ways):
        parser.error("--ways must hold growtas and published: they are compared before anything is timed")
    if options.profile and on_gpu:
        parser.error("--profile looks at CPU time: run it with --device cpu")
    if options.out is None:
        # What the documents show is T, or on a GPU what gpu.py names; other spaces do not replace it.
        spaces = (
            "" if options.spaces == ["T"] else "_" + "_".join(Path(s).stem.lower() for s in options.spaces)
        )
        name = f"train_step{spaces}{'_quick' if options.quick else ''}.json"
        options.out = environment.result_folder(options.device) / name
    return options


def cases(options: argparse.Namespace) -> list[Case]:
    """The measurements to make: all subnets at the first batch, then at the next."""
    found = []
    for batch in options.batch:
        for space in options.spaces:
            full = SPACES.get(space.upper(), space)
            loaded = load_space(full)
            for name in options.subnets:
                subnet = steps.pick_subnet(loaded, name)
                found.append(Case(full, subnet, name, batch, options.device, options.dtype))
    return found


def short(space: str) -> str:
    """T, S or B for their presets; other spaces keep their names."""
    return {full: letter for letter, full in SPACES.items()}.get(space, space)


def measure(
    case: Case, options: argparse.Namespace, ceilings: roofline.Roofline
) -> tuple[list[dict], list[dict]]:
    """Check, count and time one case.

    Args:
        case: what to measure.
        options: of the command line.
        ceilings: of the device, measured here.

    Returns:
        One record per pass and way; what failed, with the reason.
    """
    about = {
        "space": short(case.space),
        "name": case.name,
        "subnet": str(case.subnet),
        "embed_dim": case.subnet.embed_dim,
        "depth": case.subnet.depth,
        "batch": case.batch,
    }
    failures: list[dict] = []
    found = steps.rivals(case, tuple(options.ways))
    difference = steps.check(case, found)
    counted: dict[str, dict] = {}
    for way, rival in list(found.items()):
        counted[way] = {}
        try:
            rival.net.train()
            rival.step()  # compiles, tunes, fills the allocator
        except Exception as error:
            failures.append({**about, "way": way, "reason": reason(error)})
            del found[way]
            continue
        try:
            # Counting looks inside of a step, where a compiled one has nothing to show.
            counted[way] = steps.costs(case, rival) if way not in COMPILED else {}
        except Exception as error:  # a profiler that does not work here costs its numbers only
            failures.append({**about, "way": f"counting {way}", "reason": reason(error)})
        free(case.device)
    records = []
    for direction in PASSES:
        samplers, methods = {}, {}
        for way, rival in found.items():
            call = rival.step if direction == "step" else rival.forward
            rival.net.train(direction == "step")
            samplers[way], methods[way] = timing.sampler(
                [lambda call=call: call], case.device, 0.0, use_graph=options.graph
            )
        samples = timing.interleave(
            samplers, seconds=options.seconds / 2, rounds=options.rounds, least=1 if options.quick else 5
        )
        work = steps.bound_of(case, direction)
        bound = ceilings.floor(work["flops"], work["bytes"])
        for way, own in samples.items():
            record = {**about, "pass": direction, "way": way, "seconds": timing.spread(own)}
            record |= {"rounds": len(own), "method": methods[way], **work, "bound": bound}
            record["share"] = bound / record["seconds"][0]
            if direction == "step":
                record |= counted[way]
            if way == "growtas":
                record["difference"] = difference
            for rival in WAYS[1:]:
                if rival in samples:
                    record[f"vs_{rival}"] = timing.ratio(samples[rival], own)
            records.append(record)
    if options.profile and case.device.type == "cpu":
        profile = step_profile.profile_step(found["growtas"].step, steps=1 if options.quick else 5)
        rows, width = case.batch * load_space(case.space).num_tokens, case.subnet.embed_dim
        wide = max(case.subnet.hidden_dims)
        sizes = ((rows, width, wide), (rows, wide, width), (1024, 1024, 1024))
        profile["flops"] = steps.product_flops(case)
        profile["peak_flops"] = step_profile.peak_flops(sizes, 0.2 if options.quick else 2.0)
        own = next(r for r in records if r["way"] == "growtas" and r["pass"] == "step")
        own["profile"] = profile
    return records, failures


def free(device: torch.device) -> None:
    """Give memory of finished work back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


def guarded(measure_: Callable, case: Case, *arguments: Any) -> tuple[list[dict], list[dict]]:
    """As :func:`measure`, but an error costs this case only."""
    try:
        return measure_(case, *arguments)
    except Exception as error:
        about = {"space": short(case.space), "name": case.name, "batch": case.batch}
        return [], [{**about, "way": "every way", "reason": reason(error)}]
    finally:
        free(case.device)


def run(options: argparse.Namespace) -> tuple[dict, list[dict]]:
    """Measure every case; on Ctrl-C or SIGTERM, what was measured until then.

    Returns:
        What all records have in common, and the records.
    """
    torch.set_num_threads(options.threads)
    ops.use(options.backend)
    head = environment.describe(options.device)
    head["versions"]["timm"] = environment.version("timm")
    records, failures, left_out, complete = [], [], [], False
    begin = time.perf_counter()
    todo = cases(options)
    try:
        ceilings = roofline.measure(options.device, options.dtype, 0.0 if options.quick else 1.0)
        head["roofline"] = ceilings._asdict()
        with tqdm(todo, disable=None, unit="case") as bar:
            for place, case in enumerate(bar):
                if time.perf_counter() - begin > options.deadline:
                    left_out = [f"{short(c.space)} {c.name} batch {c.batch}" for c in todo[place:]]
                    break
                bar.set_description(f"{short(case.space)} {case.name}, batch {case.batch}")
                found, failed = guarded(measure, case, options, ceilings)
                records += found
                failures += failed
        complete = True
    except KeyboardInterrupt:
        print("\nInterrupted: what was measured until now is kept.", file=sys.stderr)
    settings = {
        "dtype": str(options.dtype).removeprefix("torch."),
        "backend": options.backend,
        "quick": options.quick,
        "rounds": options.rounds,
        "methods": sorted({record["method"] for record in records}),
        "profiled": options.profile,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    extra = {"settings": settings, "complete": complete, "left_out": left_out, "failures": failures}
    return {"benchmark": "train_step", **head, **extra}, records


def show(head: dict, records: list[dict]) -> None:
    """Print the tables, and whether the bars are met."""
    print(step_report.describe(head))
    if not records:
        return
    print(f"\n{step_report.table(records)}\n\ngrowtas' speed relative to\n{step_report.headline(records)}")
    if head["settings"]["dtype"] == "float32":
        print("\n" + "\n".join(step_report.bars(records)))
    for record in records:
        if "profile" in record:
            print(f"\n{step_report.label(record)}, where growtas' step goes")
            print(step_report.profile_table(record["profile"]))
            print(step_report.profile_note(record["profile"]))


def main(argv: list[str] | None = None) -> int:
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
    if options.json:
        print(json.dumps(results.rounded({**head, "records": records}), ensure_ascii=False))
    else:
        show(head, records)
    if records:
        results.write(options.out, head, records)
        print(f"wrote {os.path.relpath(options.out)}", file=sys.stderr)
    if head["left_out"]:
        print(f"left out, since the deadline had passed: {', '.join(head['left_out'])}", file=sys.stderr)
    for failure in head["failures"]:
        print(
            f"NOT TIMED: {failure['way']} on {failure['space']} {failure['name']}, batch "
            f"{failure['batch']}: {failure['reason']}",
            file=sys.stderr,
        )
    return 130 if not head["complete"] else 1 if head["failures"] or head["left_out"] else 0


if __name__ == "__main__":
    sys.exit(main())
