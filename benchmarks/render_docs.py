"""Writes the tables of docs/benchmarks.md from the committed results; no number in it is typed by hand.

    python benchmarks/render_docs.py [--check]

Between ``<!-- generated -->`` and ``<!-- end -->`` the text is replaced: per result file the machine, the
means and the table, then the measurements behind growtas/ops/choices.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from common import environment, product_report, results
from common.table import geometric_mean, render

DOCUMENT = environment.ROOT / "docs" / "benchmarks.md"
CHOICES = environment.ROOT / "growtas" / "ops" / "choices.json"
BEGIN, END = "<!-- generated -->", "<!-- end -->"


def products_section(path: Path) -> str:
    """The results of one slice_matmul.json.

    Args:
        path: of the file.
    """
    data = results.read(path)
    records = product_report.in_order(data["records"])
    where = path.relative_to(environment.ROOT)
    described = "  \n".join(product_report.describe(data).splitlines())
    return "\n\n".join(
        [
            f"### Sliced products, {data['machine']['device']}",
            f"`{where}`, {data['date'][:10]}, load average {data['machine']['load_average']} on "
            f"{data['machine']['processors']} processors at the start.  \n{described}",
            "Geometric means over the widths:",
            product_report.summary(records, markdown=True),
            "<details><summary>Every width</summary>",
            product_report.table(records, markdown=True),
            "</details>",
        ]
    )


def choices_section(data: dict[str, Any]) -> str:
    """What `auto` follows, per class of widths: the choice, and the worst size that it was measured at.

    Args:
        data: of choices.json.
    """
    groups: dict[tuple[str, ...], list[dict]] = {}
    for record in data["measurements"]:
        key = tuple(record[field] for field in ("device", "op", "dtype", "class", "backend"))
        groups.setdefault(key, []).append(record)
    rows = []
    for (device, op, dtype, width_class, name), own in groups.items():
        timed = [record for record in own if "refused" not in record]
        chosen = data["choices"].get(device, {}).get(op, {}).get(dtype, {}).get(width_class, "torch")
        cells = [device, op, dtype, f"to {width_class}" if width_class != "1024" else "over 512", name]
        for key in ("forward", "step"):
            mean = geometric_mean(record[key][0] for record in timed)
            worst = min((record[key][1] for record in timed), default=float("nan"))
            cells.append(f"{mean:.2f} ({worst:.2f})")
        rows.append([*cells, str(len(own)), chosen])
    header = ["device", "operation", "dtype", "width", "back end", "× torch, forward", "both passes"]
    return "\n\n".join(
        [
            "### What `auto` follows",
            "Speed relative to the torch back end: the geometric mean of the medians over all sizes; in "
            "brackets the lowest lower quartile, which decides.",
            render([*header, "sizes", "auto takes"], rows, left=5, markdown=True),
        ]
    )


def generated() -> str:
    """Everything between the two marks."""
    files = sorted(environment.RESULTS.glob("*/slice_matmul.json"))
    sections = [products_section(path) for path in files]
    return "\n\n".join([*sections, choices_section(results.read(CHOICES))])


def main(argv: list[str] | None = None) -> int:
    """Write the document, or say whether it is up to date.

    Returns:
        The exit status: 1 where ``--check`` finds a difference.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the tables are old")
    options = parser.parse_args(argv)
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = f"{before}{BEGIN}\n\n{generated()}\n\n{END}{after}"
    if options.check:
        if fresh != text:
            print(
                "docs/benchmarks.md is not what the results say: run benchmarks/render_docs.py",
                file=sys.stderr,
            )
        return int(fresh != text)
    DOCUMENT.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
