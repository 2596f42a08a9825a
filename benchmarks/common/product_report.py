"""Shows what slice_matmul.py measured: tables, means and the plot, from the records of its JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.race import PASSES
from common.table import geometric_mean, number, render
from common.ways import short

LIMITS = ("published", "views", "dense")
MARKERS = "os^Dv"
Record = dict[str, Any]


def label(record: Record) -> str:
    """The product of a record: ``T fc1 216→756``."""
    return f"{record['space']} {record['op']} {record['inner']}→{record['columns']}"


def in_order(records: Sequence[Record]) -> list[Record]:
    """By space, operation and width, whatever the order of measuring."""
    place = {name: index for index, name in enumerate(("T", "S", "B", "qkv", "fc1", "fc2"))}

    def key(record: Record) -> tuple:
        widths = record["inner"], record["columns"]
        return place[record["space"]], place[record["op"]], *widths, PASSES.index(record["pass"])

    return sorted(records, key=key)


def by_case(records: Sequence[Record]) -> dict[tuple[str, str], dict[str, Record]]:
    """The records of each product and pass, by way."""
    cases: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        cases.setdefault((label(record), record["pass"]), {})[record["way"]] = record
    return cases


def growtas_ways(records: Sequence[Record]) -> list[str]:
    """growtas' backends among the records."""
    return list(dict.fromkeys(record["way"] for record in records if record["way"].startswith("growtas ")))


def table(records: Sequence[Record], markdown: bool = False) -> str:
    """One line per product, pass and backend of growtas, beside the times of its rivals."""
    header = ["GEMM", "pass", "growtas", "ms", "± %", *LIMITS, "× published", "× dense"]
    header += ["TFLOP/s", "GB/s", "bound ms", "share", "error"]
    rows = []
    for (product, direction), found in by_case(records).items():
        for name in growtas_ways(list(found.values())):
            own = found[name]
            median, low, high = own["seconds"]
            cells = [
                product,
                direction,
                short(name),
                number(median * 1e3),
                f"{50 * (high - low) / median:.0f}",
            ]
            cells += [number(found[way]["seconds"][0] * 1e3) if way in found else "-" for way in LIMITS]
            cells += [f"{own[key][0]:.2f}" if key in own else "-" for key in ("vs_published", "vs_dense")]
            cells += [number(own.get("tflops")), number(own.get("gbs"))]
            bound = 1e3 * own["roofline"] * median if "roofline" in own else None  # by the measured ceilings
            cells += [number(bound), f"{own['roofline']:.0%}" if "roofline" in own else "-"]
            cells.append(f"{own['error'][0]:.0e}")
            rows.append(cells)
    return render(header, rows, left=3, markdown=markdown)


def summary(records: Sequence[Record], markdown: bool = False) -> str:
    """Geometric means of the speed ratios per operation and pass."""
    rows = []
    for name in growtas_ways(records):
        own = [record for record in records if record["way"] == name]
        for op in [*dict.fromkeys(record["op"] for record in own), "all"]:
            for direction in PASSES:
                picked = [r for r in own if op in (r["op"], "all") and r["pass"] == direction]
                rows.append([short(name), op, direction, str(len(picked))])
                for key in ("vs_published", "vs_dense"):
                    rows[-1].append(number(geometric_mean(r[key][0] for r in picked if key in r)))
    header = ["growtas", "GEMM", "pass", "widths", "× published", "× dense"]
    return render(header, rows, left=3, markdown=markdown)


def describe(head: Record) -> str:
    """The measurements and their machine, in a few lines."""
    machine, versions, settings, ceiling = (head[k] for k in ("machine", "versions", "settings", "roofline"))
    lines = [
        f"{machine['device']}, CPU threads: {machine['threads']}, torch {versions['torch']}, "
        f"triton {versions['triton']}, growtas {versions['growtas']} at {head['commit']}",
        f"activations {settings['dtype']}, shared weights {settings['weights']}, batch {settings['batch']}, "
        f"timed by {settings['method']}",
    ]
    if ceiling:
        lines.append(
            f"roofline measured here: {ceiling['bandwidth'] / 1e9:.0f} GB/s (copy), "
            f"{number(ceiling['flops'] / 1e12)} TFLOP/s (dense GEMM)"
        )
    return "\n".join(lines)


def plot(head: Record, records: Sequence[Record], path: Path) -> None:
    """Speed relative to dense weights of the same size: a line per product, a panel per pass.

    Args:
        head: of the result file.
        records: of the result file.
        path: .png or .svg.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = by_case(records)
    products = list(dict.fromkeys(product for product, _ in cases))
    shown = ["published", "views", *growtas_ways(records)]
    size = (10, 1.8 + 0.24 * len(products))
    figure, axes = pyplot.subplots(1, 2, figsize=size, sharey=True, squeeze=False)
    for axis, direction in zip(axes[0], PASSES, strict=True):
        for index, name in enumerate(shown):
            found = [
                (line, *cases[product, direction][name]["vs_dense"])
                for line, product in enumerate(products)
                if "vs_dense" in cases.get((product, direction), {}).get(name, {})
            ]
            lines, middle, low, high = zip(*found, strict=True) if found else ((), (), (), ())
            shift = 0.15 * (index - (len(shown) - 1) / 2)
            whiskers = [
                [m - v for m, v in zip(middle, low, strict=True)],
                [v - m for m, v in zip(middle, high, strict=True)],
            ]
            marker = MARKERS[index % len(MARKERS)]
            places = [line + shift for line in lines]
            axis.errorbar(middle, places, xerr=whiskers, fmt=marker, markersize=4, label=name, lw=1)
        axis.axvline(1, color="black", lw=0.8)
        axis.set_title(direction)
        axis.set_xlabel("speed relative to dense weights of the slice's size")
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(products)), products, fontsize=8)
    axes[0, 0].invert_yaxis()
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    settings = head["settings"]
    title = f"{head['machine']['device']}, {settings['dtype']}, batch {settings['batch']}"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
