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
    rows: dict[tuple[str, int], list[str]] = {}
    for record in data["records"]:
        cells = [record["net"], f"{record['params']:,}", str(record["batch"]), str(record["busy"])]
        row = rows.setdefault((record["net"], record["busy"]), cells)
        times = "{times:.2f} times ({times_low:.2f} to {times_high:.2f})".format(**record)
        row.append(number(record["rate"]) + ("" if record["way"] == SPINNING else f", {times}"))
    header = ["net", "parameters", "batch", "busy processes", SPINNING, SLEEPING, ONE]
    return render(header, list(rows.values()), left=1, markdown=markdown)


def shared_machine(folder: Path) -> str:
    """The table of every machine. Args: folder: of all results."""
    sections = []
    for path in sorted(folder.glob("*/threads.json")):
        data = results.read(path)
        machine, torch, note = data["machine"], data["versions"]["torch"], data["settings"]["note"]
        sections += [
            f"Steps per second on {machine['processors']} cores, {machine['device']}, {data['date'][:10]}, "
            f"torch {torch}{note and f', {note}'}; in brackets the quartiles:",
            table(data, markdown=True),
        ]
    return "\n\n".join(sections)
