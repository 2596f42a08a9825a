"""The sliced products of T, S and B: growtas beside the published way, strided views and dense weights.

    python benchmarks/slice_matmul.py [--quick] [--spaces T,S,B] [--device auto|cpu|cuda] ...

Every way computes the same product on the same inputs. First its result and gradients are compared with fp64;
a way that is wrong is reported and not timed. Then all ways take turns (common/timing.py). The table on the
screen gives speed relative to the published way and to dense weights; JSON and a plot go to
benchmarks/results/<device>/. How to read them: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import environment, product_report, products, results, roofline, timing, ways
from common.products import Product
from common.race import PASSES, Race
from tqdm import tqdm

QUICK_SECONDS = 16.0  # from here on: with imports before and the plot after it, under 30 on a busy machine

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the defaults of the device filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one width per operation, few rounds: within 30 seconds")
    add("--all", action="store_true", help="every signature of the spaces, not a selection")
    add("--spaces", default="T,S,B", help="of T, S and B, separated by commas")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--dtype", choices=tuple(DTYPES), help="of activations (default: float32; on a GPU bfloat16)")
    add("--weights", default="float32", choices=(*DTYPES, "same"), help="dtype of the shared weights")
    add("--batch", type=int, help="images (default: 8 on a CPU, 128 on a GPU; 2 with --quick on a CPU)")
    add("--threads", type=int, help="CPU threads of torch (default: all; with --quick those that look idle)")
    add("--rounds", type=int, default=25, help="turns per way, at most")
    add("--seconds", type=float, default=180.0, help="of timing in all, about; --quick has its own limit")
    add("--eager", action="store_true", help="on a GPU: time launches from Python, not a CUDA graph")
    add("--out", type=Path, help="the JSON file (default: benchmarks/results/<device>/slice_matmul.json)")
    add("--plot", type=Path, help="the picture, .png or .svg (default: beside the JSON, .png)")
    options = parser.parse_args(argv)
    options.spaces = options.spaces.upper().split(",")
    unknown = [name for name in options.spaces if name not in products.SPACES]
    if unknown:
        parser.error(f"there is no space {unknown[0]!r}: choose from {', '.join(products.SPACES)}")
    for name in ("batch", "threads", "rounds"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more, not {getattr(options, name)}")
    options.device = environment.pick_device(options.device)
    on_gpu = options.device.type == "cuda"
    options.dtype = DTYPES[options.dtype or ("bfloat16" if on_gpu else "float32")]
    options.weights = options.dtype if options.weights == "same" else DTYPES[options.weights]
    options.batch = options.batch or (128 if on_gpu else 2 if options.quick else 8)
    options.threads = options.threads or (
        environment.idle_processors() if options.quick else environment.processors()
    )
    options.seconds = 12.0 if options.quick else options.seconds
    options.deadline = time.perf_counter() + QUICK_SECONDS if options.quick else float("inf")
    if options.out is None:
        name = "slice_matmul_quick.json" if options.quick else "slice_matmul.json"
        options.out = environment.result_folder(options.device) / name
    options.plot = options.plot or options.out.with_suffix(".png")
    return options


def measure(product: Product, names: list[str], options, seconds: float) -> tuple[list[dict], list[dict]]:
    """Check and time one product in every way.

    Returns:
        One record per pass and way; one per way that was refused, with the reason.
    """
    element, weight_element = options.dtype.itemsize, options.weights.itemsize
    moved = product.moved("backward", options.batch, element, weight_element)
    most = 1 if options.quick and options.device.type == "cpu" else 8
    sets = [
        products.make_inputs(product, options.batch, options.device, options.dtype, options.weights, seed)
        for seed in range(timing.rotation(moved, environment.cache_bytes(options.device), most))
    ]
    about = {"space": product.space, "op": product.op, "inner": product.inner, "columns": product.columns}
    race = Race(
        build=lambda name, inputs: ways.build(name, product, inputs),
        active=lambda name: ways.active(name, product.kernel, product.inner, options.device, options.dtype),
        device=options.device,
        dtype=options.dtype,
    )
    passed, refused = race.check(names, sets[0], ways.truth(product, sets[0]), yardstick="dense")
    failures = [{**about, "way": name, "reason": reason} for name, reason in refused.items()]
    records = []
    for direction in PASSES:
        samples, methods = race.run(
            list(passed), sets, direction, seconds=seconds / 2, rounds=options.rounds,
            least=1 if options.quick else 3, use_graph=not options.eager,
        )  # fmt: skip
        for name, own in samples.items():
            record = {
                **about,
                "pass": direction,
                "way": name,
                "seconds": timing.spread(own),
                "rounds": len(own),
            }
            record |= {"flops": product.flops(direction, options.batch)}
            record |= {"bytes": product.moved(direction, options.batch, element, weight_element)}
            record |= {"error": passed[name][direction], "method": methods[name]}
            for rival in ("published", "dense"):
                if rival in samples:
                    record[f"vs_{rival}"] = timing.ratio(samples[rival], own)
            records.append(record)
    return records, failures


def guarded(measure_: Callable, product: Product, *args: Any) -> tuple[list[dict], list[dict]]:
    """As :func:`measure`, but an error costs this product only: what was measured before is saved.

    A kernel that leaves its slice can break the whole CUDA context; then all that follow fail like this, at
    once.
    """
    try:
        return measure_(product, *args)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        about = {"space": product.space, "op": product.op, "inner": product.inner, "columns": product.columns}
        return [], [{**about, "way": "every way", "reason": reason}]


def add_rates(records: list[dict], ceiling: roofline.Roofline) -> None:
    """TFLOP/s, GB/s and the share of the roofline, from the medians; in place."""
    for record in records:
        seconds = record["seconds"][0]
        record["tflops"] = record["flops"] / seconds * 1e-12
        record["gbs"] = record["bytes"] / seconds * 1e-9
        record["roofline"] = ceiling.floor(record["flops"], record["bytes"]) / seconds


def run(options: argparse.Namespace) -> tuple[dict, list[dict]]:
    """Measure everything; on Ctrl-C or SIGTERM, what was measured until then.

    Returns:
        What all records have in common, and the records.
    """
    torch.set_num_threads(options.threads)
    environment_then = environment.describe(options.device)
    share = 0.3 if options.quick else 2.0
    names = ways.names(options.device)
    todo = products.products(options.spaces, "all" if options.all else "few" if options.quick else "some")
    if options.quick:  # where the time runs out, the small products of every kind are there
        todo.sort(key=lambda product: product.columns * product.inner)
    records, failures, complete, ceiling, left_out = [], [], False, None, []
    begin = time.perf_counter()
    try:
        ceiling = roofline.measure(options.device, options.dtype, share)
        with tqdm(todo, disable=None, unit="product") as bar:
            for place, product in enumerate(bar):
                left = options.deadline - time.perf_counter()
                if left <= 0:
                    left_out = [str(product) for product in todo[place:]]
                    break
                bar.set_description(str(product))
                # Comparing and warming up take about as long as timing.
                seconds = min(options.seconds / len(todo), left / (2 * (len(todo) - place)))
                found, failed = guarded(measure, product, names, options, seconds)
                records += found
                failures += failed
        complete = True
        # Measured again: on a busy machine the better of two moments is nearer to the ceiling.
        if time.perf_counter() < options.deadline and not failures:
            ceiling = ceiling.best(roofline.measure(options.device, options.dtype, share))
    except KeyboardInterrupt:
        print("\nInterrupted: what was measured until now is kept.", file=sys.stderr)
    if ceiling is not None:
        add_rates(records, ceiling)
    head = {
        "benchmark": "slice_matmul",
        **environment_then,
        "settings": {
            "dtype": str(options.dtype).removeprefix("torch."),
            "weights": str(options.weights).removeprefix("torch."),
            "batch": options.batch,
            "quick": options.quick,
            "method": ", ".join(sorted({record["method"] for record in records})) or "nothing",
            "seconds": round(time.perf_counter() - begin, 1),
        },
        "roofline": ceiling._asdict() if ceiling else None,
        "complete": complete,
        "left_out": left_out,
        "failures": failures,
    }
    return head, product_report.in_order(records)


def main(argv: list[str] | None = None) -> int:
    """Measure, show and save.

    Returns:
        The exit status: 0; 1 where a way was wrong or failed; 130 where interrupted.
    """
    options = parse(argv)
    # A time limit from outside keeps what was measured, as Ctrl-C does; background jobs start deaf to both.
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        head, records = run(options)
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)
    print(product_report.describe(head))
    if records:
        print(f"\n{product_report.table(records)}\n\nspeed, geometric mean over the widths")
        print(f"{product_report.summary(records)}\n")
        results.write(options.out, head, records)
        product_report.plot(head, records, options.plot)
        print(f"wrote {os.path.relpath(options.out)} and {os.path.relpath(options.plot)}")
    if head["left_out"]:
        print(f"left out, since --quick ran out of time on this busy machine: {', '.join(head['left_out'])}")
    for failure in head["failures"]:
        print(
            f"NOT TIMED: {failure['way']} on {failure['space']} {failure['op']} "
            f"{failure['inner']}→{failure['columns']}: {failure['reason']}",
            file=sys.stderr,
        )
    return 130 if not head["complete"] else 1 if head["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
