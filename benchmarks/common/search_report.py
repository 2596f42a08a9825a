"""The speed of a search as a table, from search.py's result file, for the terminal and the documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import results
from common.table import number, render

BASELINE = "one subnet after the other, images decoded for each"
KEPT = "images kept, ten subnets together"
ALL = "whole search, each subnet on all images"
RACED = "whole search, those behind leave"


def table(data: dict[str, Any], markdown: bool = False) -> str:
    """Subnets per second of every way, and times the baseline's. Args: data: of the result file."""
    rows = []
    for record in data["records"]:
        times = [f"{record[name]:.1f}" for name in ("times", "times_low", "times_high") if name in record]
        rows.append(
            [
                record["way"],
                number(record["rate"]),
                f"{times[0]} ({times[1]} to {times[2]})" if times else "1",
                f"{record['images']:,}" if "images" in record else "",
            ]
        )
    header = ["way", "subnets/s", "times (quartiles)", "images evaluated"]
    return render(header, rows, markdown=markdown)


def setting(data: dict[str, Any]) -> str:
    """One line: the machine, its load, the space, the images and the clock."""
    machine, settings = data["machine"], data["settings"]
    return (
        f"{machine['device']} with a load of {machine['load_average']} when it began, {data['date'][:10]}, "
        f"space {settings['space']}, {settings['images']:,} JPEGs of {settings['size']} pixels, "
        f"{settings['clock']}"
    )


def cost(folder: Path) -> str:
    """The table of every machine, with the ratio in words. Args: folder: of all results."""
    sections = []
    for path in sorted(folder.glob("*/search.json")):
        data = results.read(path)
        whole, raced = (
            next(record for record in data["records"] if record["way"] == way) for way in (ALL, RACED)
        )
        sections += [
            f"{setting(data)}:",
            table(data, markdown=True),
            f"Both searches evaluated {raced['subnets']:,} subnets and ended with the same one "
            f"({raced['top1']:.2f} %); with those leaving that are behind, "
            f"{100 * raced['images'] / whole['images']:.0f} % of the images were evaluated.",
        ]
    return "\n\n".join(sections)
