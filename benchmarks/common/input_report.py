"""The speed of reading images as tables, from input.py's result file, for the terminal and the documents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from common import results
from common.table import number, render

PARTS = EVERYTHING, RESIZED, CROPS = "everything", "resized bytes", "crops for a GPU to resize"
"""How far a way goes on the CPU."""

BASELINE = f"timm, {EVERYTHING}"
STORES = {
    f"growtas, JPEG files, {CROPS}": "JPEG files",
    f"growtas, packed jpeg, {CROPS}": "packed, `--format jpeg`",
    f"growtas, packed raw, {CROPS}": "packed, raw",
}
"""Ways of a loading process whose run has a GPU -> how imagenet.md calls them."""

WANTED = 10_000  # images per second


def table(data: dict[str, Any], markdown: bool = False) -> str:
    """Every way: images per second of one core, and the baseline's time over its own.

    Args:
        data: of the result file.
        markdown: for the documentation.
    """
    rows = [
        [r["way"], number(r["median"]), f"{number(r['low'])} to {number(r['high'])}", number(r["times"])]
        for r in data["records"]
    ]
    return render(["way", "images/s of a core", "quartiles", "times"], rows, markdown=markdown)


def setting(data: dict[str, Any]) -> str:
    """One line: the machine, its load, the images and the rounds."""
    machine, settings = data["machine"], data["settings"]
    sizes = ", ".join(f"{name} {size / 1e3:.0f} kB" for name, size in data["bytes_per_image"].items())
    return (
        f"{machine['device']} with a load of {machine['load_average']} when it began, {data['date'][:10]}, "
        f"{settings['size']} pixels ({sizes}), batches of {settings['batch']}, {settings['rounds']} rounds"
    )


def _each(folder: Path) -> list[dict[str, Any]]:
    return [results.read(path) for path in sorted(folder.glob("*/input.json"))]


def reading(folder: Path) -> str:
    """The table of every machine, with the ratios in words. Args: folder: of all results."""
    sections = []
    for data in _each(folder):
        times = {record["way"]: record["times"] for record in data["records"]}
        files, jpeg, raw = (times[way] for way in STORES)
        own, on_cpu = times["timm, as for its PrefetchLoader"], times[f"growtas, packed raw, {RESIZED}"]
        sections += [
            f"{setting(data)}:",
            table(data, markdown=True),
            f"So a GPU run, in which the GPU resizes the crops, reads {files:.1f} times as many images per "
            f"core from JPEG files as timm's transforms do with everything on the CPU, {jpeg:.1f} times as "
            f"many from packed JPEGs and {raw:.1f} times as many from raw packed images ({on_cpu:.1f} times "
            f"if the CPU resized them); timm's own form for a GPU, resized by the CPU, reads {own:.1f} times "
            "as many.",
        ]
    return "\n\n".join(sections)


def cores(folder: Path) -> str:
    """Cores that a run with a GPU needs for a rate of images. Args: folder: of all results."""
    sections = []
    for data in _each(folder):
        rates = {record["way"]: record["median"] for record in data["records"]}
        rows = [
            [name, number(rates[way]), str(math.ceil(WANTED / rates[way]))] for way, name in STORES.items()
        ]
        header = ["on a GPU run, one core reads", "images/s", f"cores for {WANTED:,} images/s"]
        sections += [render(header, rows, markdown=True), f"{setting(data)}."]
    return "\n\n".join(sections)
