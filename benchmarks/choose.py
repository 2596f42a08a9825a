"""Measures every operation that has several back ends on this device, and commits the winners.

    python benchmarks/choose.py [--device auto|cpu|cuda] [--dry-run]

Writes growtas/ops/choices.json, which ``auto`` follows: per device class, operation, dtype and class of
shared widths (for attention, of head dims) the back end that beats torch. It enters only if its speed
relative to torch, the geometric mean over all sizes and row counts measured, is over a margin, for the
forward pass alone and for forward plus backward, and if it is slower at none of them: there the upper
quartile counts. What was measured stands beside the choices, losers included. Entries of other devices stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import contests as launcher_contests
from common import environment, norms, products, results, timing, ways
from common.race import PASSES, Race
from common.table import geometric_mean, render
from tqdm import tqdm

from growtas import load_space
from growtas.ops import backend
from growtas.space import SearchSpace, preset_names

MARGIN = 1.03
TOLERANCE = 0.97  # a size at which even the upper quartile is below has lost
CPU_BATCHES = (1, 8)
CPU_ROWS = tuple(197 * batch for batch in CPU_BATCHES)
GPU_BATCHES = (16, 128)
BLOCK = 9  # rounds whose median counts as one
OTHER_WIDTHS = {96: 128, 128: 128, 768: 1024}  # classes that no preset falls into, and a width of users' own


@dataclass(frozen=True)
class Contest:
    """One operation at one size.

    Args:
        op: of growtas.ops.
        work: a Norm, a Product or a Layer, for its name.
        width: channels of the shared weight, or the head dim of attention: what the choice goes by.
        rows: tokens of all images.
        race: its rivals.
        inputs: makes inputs from a seed.
        truth: of some inputs.
        moved: bytes of one backward pass, to choose how many inputs are walked through.
        block: rounds whose median counts as one.
    """

    op: str
    work: Any
    width: int
    rows: int
    race: Race | launcher_contests.WorkRace
    inputs: Any
    truth: Any
    moved: int
    block: int = BLOCK


def shared_widths() -> dict[int, int]:
    """Every embed_dim of the presets, and a few more, with the width of its supernet."""
    spaces = [space for space in map(load_space, preset_names()) if isinstance(space, SearchSpace)]
    found = {dim: space.super_embed_dim for space in spaces for dim in space.embed_dim}
    return dict(sorted((found | OTHER_WIDTHS).items()))


def contests(device: torch.device, dtype: torch.dtype) -> Iterator[Contest]:
    """Every operation with more than one back end on this device, at the widths of the presets."""
    widths = shared_widths()
    rows_of = CPU_ROWS if device.type == "cpu" else tuple(197 * batch for batch in GPU_BATCHES)
    for rows in rows_of:
        for width, shared in widths.items():
            yield _norm_contest(norms.Norm(rows, width, shared), device, dtype)
    batches = CPU_BATCHES if device.type == "cpu" else GPU_BATCHES
    for race in launcher_contests.races(device, dtype, backends):
        yield from (_launcher_contest(race, batch) for batch in batches)
    if len(backends("linear", device)) < 2:
        return
    for batch, selection in zip(batches, ("few", "some"), strict=True):
        for product in products.products(list(products.SPACES), selection):
            yield _product_contest(product, batch, device, dtype)


def _norm_contest(norm: norms.Norm, device: torch.device, dtype: torch.dtype) -> Contest:
    race = Race(
        build=lambda name, inputs: norms.build(name, norm, inputs),
        active=lambda name: ways.active(name, "layer_norm", norm.shared, device, dtype),
        device=device,
        dtype=dtype,
    )
    return Contest(
        "layer_norm", norm, norm.shared, norm.rows, race,
        inputs=lambda seed: norm.make_inputs(device, dtype, seed),
        truth=lambda inputs: norms.truth(norm, inputs),
        moved=norm.moved("backward", dtype.itemsize),
    )  # fmt: skip


def _product_contest(
    product: products.Product, batch: int, device: torch.device, dtype: torch.dtype
) -> Contest:
    race = Race(
        build=lambda name, inputs: ways.build(name, product, inputs),
        active=lambda name: ways.active(name, product.kernel, product.shared[1], device, dtype),
        device=device,
        dtype=dtype,
    )
    # Shared weights in fp32, as they are in training under autocast.
    return Contest(
        product.kernel, product, product.shared[1], batch * product.tokens, race,
        inputs=lambda seed: products.make_inputs(product, batch, device, dtype, torch.float32, seed),
        truth=lambda inputs: ways.truth(product, inputs),
        moved=product.moved("backward", batch, dtype.itemsize, 4),
        block=1 if device.type == "cpu" else BLOCK,  # there a call takes milliseconds
    )  # fmt: skip


def _launcher_contest(race: launcher_contests.WorkRace, batch: int) -> Contest:
    layer = race.layer
    sizes = f"h{layer.heads} e{layer.e}" if race.op == "relative_attention" else f"d{layer.d} m{layer.hidden}"
    return Contest(
        race.op,
        f"{race.op} {sizes} grid {layer.grid[0]}×{layer.grid[1]}",
        race.width,
        batch * layer.tokens,
        race,
        inputs=lambda seed: race.inputs(batch, seed),
        truth=lambda inputs: None,
        moved=race.work("backward").moved(batch, race.dtype.itemsize),
        block=1,  # a call takes so long that its rounds are few
    )


def backends(op: str, device: torch.device) -> list[str]:
    """The back ends of an operation that run on a device, torch first."""
    kinds = {"cpu": ("torch", "cpu"), "cuda": ("torch", "triton", "cuda")}[device.type]
    return [name for name in kinds if name in backend.KERNELS[op] and backend.available(name).ok]


def measure(contest: Contest, device: torch.device, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Let the back ends of one operation race at one size.

    Returns:
        One record per back end other than torch, with its speed relative to torch as median and quartiles;
        or with the reason why it was not timed.
    """
    names = list(getattr(contest.race, "names", ()))
    names = names or [f"growtas {name}" for name in backends(contest.op, device)]
    turns = timing.rotation(contest.moved, environment.cache_bytes(device), most=4)
    sets = [contest.inputs(seed) for seed in range(turns)]
    about = _about(contest)
    passed, refused = contest.race.check(names, sets[0], contest.truth(sets[0]), yardstick="growtas torch")
    records = [{**about, "backend": ways.short(name), "refused": why} for name, why in refused.items()]
    # Many short turns, calmed: a long one would more often be cut into by other programs.
    block = contest.block
    limits = {"seconds": seconds / 2, "rounds": rounds, "least": 5 * block, "sample_seconds": 3e-4}
    runs = {direction: contest.race.run(list(passed), sets, direction, **limits) for direction in PASSES}
    calm = {
        direction: {name: timing.calmed(own, block) for name, own in samples.seconds.items()}
        for direction, samples in runs.items()
    }
    forward = calm["forward"]
    # The passes may have been given different numbers of rounds.
    both = {name: zip(forward[name], calm["backward"][name], strict=False) for name in passed}
    total = {name: [sum(pair) for pair in pairs] for name, pairs in both.items()}
    for name in passed:
        if name == "growtas torch":
            continue
        record = {**about, "backend": ways.short(name), "method": runs["forward"].methods[name]}
        record["forward"] = timing.ratio(forward["growtas torch"], forward[name])
        record["step"] = timing.ratio(total["growtas torch"], total[name])
        record["torch_us"] = [1e6 * timing.spread(calm[d]["growtas torch"]).median for d in PASSES]
        record["rounds"] = block * len(total[name])
        records.append(record)
    return records


def guarded(contest: Contest, device: torch.device, *args: Any) -> list[dict[str, Any]]:
    """As :func:`measure`, but an error costs this contest only: its back ends count as refused."""
    try:
        return measure(contest, device, *args)
    except Exception as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        rivals = [name for name in backends(contest.op, device) if name != "torch"]
        return [{**_about(contest), "backend": name, "refused": why} for name in rivals]


def _about(contest: Contest) -> dict[str, Any]:
    """What the records of a contest have in common."""
    return {
        "op": contest.op,
        "dtype": str(contest.race.dtype).removeprefix("torch."),
        "class": backend.shape_class(contest.width),
        "size": str(contest.work),
        "rows": contest.rows,
    }


def gain(records: Sequence[dict[str, Any]]) -> float:
    """How much faster than torch a back end is on the whole; 0 where it is refused or slower at some size.

    Args:
        records: of one back end, operation, dtype and class.

    Returns:
        The smaller of two geometric means of the medians, of the forward pass and of both passes.
    """
    if any("refused" in record for record in records):
        return 0.0
    passes = ("forward", "step")
    if any(record[key][2] < TOLERANCE for record in records for key in passes):  # the upper quartile
        return 0.0
    return min(geometric_mean(record[key][0] for record in records) for key in passes)


def decide(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, str]]]:
    """The back ends that beat torch beyond doubt.

    Args:
        records: of :func:`measure`, of one device.

    Returns:
        By operation, dtype and class of widths; a class is missing where torch stays.
    """
    table: dict[str, dict[str, dict[str, str]]] = {}
    groups: dict[tuple[str, str, str], dict[str, list[dict]]] = {}
    for record in records:
        key = record["op"], record["dtype"], record["class"]
        groups.setdefault(key, {}).setdefault(record["backend"], []).append(record)
    for (op, dtype, width_class), rivals in groups.items():
        gains = {name: gain(own) for name, own in rivals.items()}
        best = max(gains, key=gains.get, default=None)
        if best is not None and gains[best] > MARGIN:
            table.setdefault(op, {}).setdefault(dtype, {})[width_class] = best
    return table


def merge(path: Path, device_class: str, head: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Replace the entries of one class of devices in the file and keep those of the others.

    Args:
        path: of choices.json.
        device_class: ``cpu``, ``sm_90``, ...
        head: machine, versions, commit and date.
        records: of :func:`measure`.
    """
    old = results.read(path) if path.exists() else {}
    choices = {key: value for key, value in old.get("choices", {}).items() if key != device_class}
    choices[device_class] = decide(records)
    sources = {key: value for key, value in old.get("sources", {}).items() if key != device_class}
    sources[device_class] = head
    kept = [record for record in old.get("measurements", []) if record["device"] != device_class]
    fresh = [{"device": device_class, **record} for record in records]
    top = {
        "about": "Written by benchmarks/choose.py: do not edit. Speeds are relative to the torch back end: "
        "median, lower and upper quartile.",
        "choices": dict(sorted(choices.items())),
        "sources": dict(sorted(sources.items())),
    }
    results.write(path, top, kept + fresh, key="measurements")


def show(records: Sequence[dict[str, Any]]) -> str:
    """The measurements as a table."""
    rows = []
    for record in records:
        cells = [
            record["op"],
            record["dtype"],
            record["class"],
            record["size"],
            str(record["rows"]),
            record["backend"],
        ]
        if "refused" in record:
            rows.append([*cells, "refused", ""])
            continue
        for key in ("forward", "step"):
            median, low, high = record[key]
            cells.append(f"{median:.2f} [{low:.2f}, {high:.2f}]")
        rows.append(cells)
    header = [
        "operation",
        "dtype",
        "class",
        "size",
        "rows",
        "back end",
        "× torch, forward",
        "× torch, both passes",
    ]
    return render(header, rows, left=4)


def main(argv: list[str] | None = None) -> int:
    """Measure, decide, write.

    Returns:
        The exit status: 0; 1 where a back end was refused, since it is wrong or failed; 130 if interrupted.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtypes", default="float32,bfloat16", help="separated by commas")
    parser.add_argument("--threads", type=int, default=environment.processors(), help="CPU threads of torch")
    parser.add_argument("--seconds", type=float, default=90.0, help="of timing in all, about")
    parser.add_argument("--rounds", type=int, default=27 * BLOCK, help="turns per back end, at most")
    parser.add_argument("--out", type=Path, default=backend.CHOICES_FILE)
    parser.add_argument("--dry-run", action="store_true", help="measure and show, write nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = environment.pick_device(options.device)
    head = environment.describe(device)
    todo = [
        contest
        for name in options.dtypes.split(",")
        for contest in contests(device, getattr(torch, name))
        if len(backends(contest.op, device)) > 1
    ]
    if not todo:
        print(f"No operation has a second back end on {device} here: `growtas doctor` says what is missing.")
        return 0
    begin, records = time.perf_counter(), []
    try:
        for contest in tqdm(todo, disable=None, unit="contest"):
            records += guarded(contest, device, options.seconds / len(todo), options.rounds)
    except KeyboardInterrupt:
        # A class of widths is decided by all of its sizes: half of the measurements decide nothing.
        print("\nInterrupted: nothing was written.", file=sys.stderr)
        print(show(records))
        return 130
    head["seconds"] = round(time.perf_counter() - begin, 1)
    print(show(records))
    print(f"chosen over torch: {json.dumps(decide(records))}")
    if not options.dry_run:
        merge(options.out, backend.device_class(device), head, records)
        print(f"wrote {options.out}")
    refused = [record for record in records if "refused" in record]
    for record in refused:
        print(
            f"REFUSED: {record['backend']} {record['size']} {record['dtype']}: {record['refused']}",
            file=sys.stderr,
        )
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
