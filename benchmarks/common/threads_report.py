"""Training steps per second by threads, from threads.py's result file, for the terminal and the documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import results
from common.table import number, render

SPINNING = "all cores, waiting threads spin"
SLEEPING = "all cores, waiting threads sleep"
ONE = "one thread"


def table(data: dict[str, Any], markdown: bool = False) -> str:
    """Steps per second of every way, and times those of spinning threads. Args: data: of the result file."""
    rows = []
    for record in data["records"]:
        times = " ({} to {})".format(*(f"{record[name]:.2f}" for name in ("times_low", "times_high")))
        rows.append(
            [
                record["net"],
                record["way"],
                f"{record['batch']} × {record['macs'] / record['batch'] / 1e6:,.0f} M",
                str(record["busy"]),
                number(record["rate"]),
                "1" if record["way"] == SPINNING else f"{record['times']:.2f}{times}",
            ]
        )
    header = ["net", "threads", "images × MACs", "busy processes beside it", "steps/s", "times (quartiles)"]
    return render(header, rows, left=2, markdown=markdown)


def shared_machine(folder: Path) -> str:
    """The table of every machine. Args: folder: of all results."""
    sections = []
    for path in sorted(folder.glob("*/threads.json")):
        data = results.read(path)
        machine = data["machine"]
        sections += [
            f"{machine['device']}, {machine['processors']} processors, {data['date'][:10]}, "
            f"torch {data['versions']['torch']}, {data['settings']['note'] or 'an idle machine'}:",
            table(data, markdown=True),
        ]
    return "\n\n".join(sections)
