"""Shows what each_kernel.py measured: every size, and the geometric means beside the bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.table import geometric_mean, number, render, shown

Record = dict[str, Any]
#: What the geometric mean of a part has to reach, relative to its baseline.
BARS = {"products": 1.0, "fused": 1.5, "layer_norm": 0.9, "attention": 0.7, "ends": 1.0}


def table(records: Sequence[Record], markdown: bool = False) -> str:
    """One line per size and way, by part, operation and size."""
    header = ["job", "way", "µs", "± %", "× baseline", "TFLOP/s", "GB/s", "bound µs", "share", "error"]
    rows = []
    for record in sorted(records, key=lambda r: (list(BARS).index(r["part"]), r["op"], r["size"])):
        median, low, high = record["seconds"]
        cells = [record["size"], record["way"], number(1e6 * median), f"{50 * (high - low) / median:.0f}"]
        cells += [f"{record['speed'][0]:.2f}" if "speed" in record else "-"]
        bound = record["roofline"] * median  # the least time by the measured ceilings
        cells += [number(record["tflops"]), number(record["gbs"]), number(1e6 * bound)]
        cells += [f"{record['roofline']:.0%}"]
        error = record["error"]
        rows.append([*cells, f"{error:.0e}" if isinstance(error, float) and error == error else "-"])
    return render(header, rows, left=2, markdown=markdown)


def means(records: Sequence[Record]) -> list[Record]:
    """Geometric means over sizes of growtas' ways, by part, operation and way; "all" adds operations up."""
    found = []
    own = [r for r in records if r["way"].startswith("growtas ") and "speed" in r]
    for part in BARS:
        of_part = [r for r in own if r["part"] == part]
        for way in dict.fromkeys(r["way"] for r in of_part):
            of_way = [r for r in of_part if r["way"] == way]
            ops = list(dict.fromkeys(r["op"] for r in of_way))
            for op in [*sorted(ops), *(["all"] if len(ops) > 1 else [])]:
                picked = [r for r in of_way if op in ("all", r["op"])]
                found.append(
                    {
                        "part": part,
                        "op": op,
                        "way": way,
                        "sizes": len(picked),
                        "speed": geometric_mean(r["speed"][0] for r in picked),
                        "lowest": min(r["speed"][0] for r in picked),
                        "roofline": geometric_mean(r["roofline"] for r in picked),
                        "bar": BARS[part],
                    }
                )
    return found


def summary(records: Sequence[Record], bars: bool = True, markdown: bool = False) -> str:
    """The means as a table.

    Args:
        records: of the result file.
        bars: judge them, which are those of a GPU.
        markdown: as a Markdown table.
    """
    rows = []
    for mean in means(records):
        verdict = "met" if mean["speed"] >= mean["bar"] else "missed"
        rows.append(
            [
                shown(mean["part"]),
                mean["op"],
                mean["way"].removeprefix("growtas "),
                str(mean["sizes"]),
                number(mean["speed"]),
                number(mean["lowest"]),
                f"{mean['roofline']:.0%}",
                *([f"{mean['bar']:.1f}, {verdict}"] if bars else []),
            ]
        )
    header = ["part", "operation", "growtas", "sizes", "× baseline", "lowest", "share of bound"]
    header += ["bar"] if bars else []
    return render(header, rows, left=3, markdown=markdown)
