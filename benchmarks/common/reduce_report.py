"""The averaging of gradients as tables, from reduce.py's result file, for the terminal and the documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import results
from common.table import number, render

NONE, OURS, BF16 = "no averaging", "growtas", "growtas, `--reduce-dtype bfloat16`"
AFTER = "whole gradients after the backward pass"
FIND, STATIC = "DDP, `find_unused_parameters=True`", "DDP, `static_graph=True`, zeros for unused blocks"
WAYS = (NONE, OURS, BF16, AFTER, FIND, STATIC)

CLUSTERS = {
    "8 GPUs, NVLink": (8, 450e9),
    "64 GPUs, 8 NICs a machine": (64, 400e9),
    "64 GPUs, 1 NIC a machine": (64, 50e9),
}
"""For the model: GPUs, and the bytes per second at which a ring goes around: NVLink's 450 GB/s each way in a
machine of 8 GPUs, else what NICs of 400 Gb/s carry out of it."""


def ring_seconds(sent: float, gpus: int, bandwidth: float) -> float:
    """A ring all-reduce without latencies: each GPU sends 2 (n - 1) / n of the bytes."""
    return 2 * (gpus - 1) / gpus * sent / bandwidth


def counts(data: Mapping[str, Any], markdown: bool = False) -> str:
    """Megabytes of a step by space.

    Args:
        data: of the result file.
        markdown: for the documentation.
    """
    rows = [
        [
            f"`{each['space']}`" if markdown else each["space"],
            *(number(each[key]) for key in ("all", "whole", "boxes", "stage_1_whole", "stage_1_boxes")),
            f"{each['stage_1_whole'] / each['stage_1_boxes']:.2f}",
        ]
        for each in data["counts"]
    ]
    header = ["MB of a step, float32", "all parameters (DDP)", "of used blocks", "growtas"]
    header += ["stage 1: of used blocks", "growtas in stage 1", "ratio in stage 1"]
    return render(header, rows, markdown=markdown)


def times(data: Mapping[str, Any], markdown: bool = False) -> str:
    """Exposed time by ranks and way. Args: data, markdown: as :func:`counts`."""

    def cell(record: Mapping[str, Any], key: str) -> str:
        middle, low, high = (f"{1e3 * value:.1f}" for value in record[key])
        return f"{middle} ({low} to {high})"

    rows = [
        [
            str(record["ranks"]),
            record["way"] if markdown else record["way"].replace("`", ""),
            "" if record["way"] == NONE else number(record["megabytes"]),
            cell(record, "wall"),
            *("" if record["way"] == NONE else cell(record, f"{key}_exposed") for key in ("wall", "cpu")),
        ]
        for record in data["records"]
    ]
    header = ["ranks", "way", "MB", "step, ms", "exposed, ms", "more CPU time of a rank, ms"]
    return render(header, rows, left=2, markdown=markdown)


def model(data: Mapping[str, Any], markdown: bool = False) -> str:
    """Modelled milliseconds on clusters. Args: data, markdown: as :func:`counts`."""
    rows = []
    for each in data["counts"]:
        name = f"`{each['space']}`" if markdown else each["space"]
        ways = {"DDP": each["all"], "growtas": each["boxes"], "growtas, bfloat16": each["boxes"] / 2}
        for way, megabytes in ways.items():
            took = [1e3 * ring_seconds(1e6 * megabytes, *cluster) for cluster in CLUSTERS.values()]
            rows.append([name, way, *(f"{each:.2f}" for each in took)])
    return render(["space", "way", *(f"{name}: ms" for name in CLUSTERS)], rows, left=2, markdown=markdown)


def setting(data: Mapping[str, Any]) -> str:
    """One line: the machine, its load and what was timed."""
    machine, own = data["machine"], data["settings"]
    loads = f"{machine['load_average']} when it began and {machine['load_average_at_end']} when it ended"
    return (
        f"{machine['device']}, {machine['processors']} processors with a load of {loads}, "
        f"{data['date'][:10]}, torch {data['versions']['torch']}, {own['space']} at {own['pixels']} pixels, "
        f"{own['batch']} images a rank, {own['rounds']} rounds, median (quartiles)"
    )


def _sections(folder: Path, *parts: Callable[[Mapping[str, Any]], str]) -> str:
    found = [results.read(path) for path in sorted(folder.glob("*/reduce.json"))]
    return "\n\n".join(part(data) for data in found for part in parts)


def sent(folder: Path) -> str:
    """The bytes, which are the same on every machine. Args: folder: of all results."""
    return _sections(folder, lambda data: counts(data, True))


def exposed(folder: Path) -> str:
    """The times of every machine. Args: folder: of all results."""
    return _sections(folder, lambda data: f"{setting(data)}:", lambda data: times(data, True))


def clusters(folder: Path) -> str:
    """The model. Args: folder: of all results."""
    return _sections(folder, lambda data: model(data, True))
