"""The speed of reading images as tables, from input.py's result file, for the terminal and the documents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from common import results
from common.table import number, render

BASELINE = "timm, everything"
STORES = {
    "growtas, JPEG files, cropped bytes": "JPEG files",
    "growtas, packed jpeg, cropped bytes": "packed, `--format jpeg`",
    "growtas, packed raw, cropped bytes": "packed, raw",
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
        own = times["timm, as for its PrefetchLoader"]
        sections += [
            f"{setting(data)}:",
            table(data, markdown=True),
            f"So a GPU run reads {files:.1f} times as many images per core from JPEG files as timm's "
            f"transforms do with everything on the CPU, {jpeg:.1f} times as many from packed JPEGs and "
            f"{raw:.1f} times as many from raw packed images; timm's own form for a GPU reads {own:.1f} "
            "times as many.",
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
