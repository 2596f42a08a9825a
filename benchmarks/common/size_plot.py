"""Accuracy against parameters of one trained supernet on glyphs, from the committed comparison."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import growtas
from growtas.plotting import METHOD_COLOURS

SPACE, CLASSES = "glyphs", 62
METHODS = {"growtas": "GrowTAS", "uniform": "uniform sampling"}


def sizes(space: growtas.SearchSpace) -> dict[str, int]:
    """Parameters of the measured subnets: the smallest and the largest of each embed_dim."""
    found = {}
    for group, embed_dim in enumerate(space.groups):
        for end, subnet in (("smallest", space.smallest([group])), ("largest", space.largest([group]))):
            found[f"{end} {embed_dim}"] = growtas.cost.parameters(subnet, space, CLASSES)
    return found


def points(folder: Path) -> dict[str, dict[str, list[tuple[float, list[float]]]]]:
    """The points to draw: per method, ``fixed`` and ``found`` subnets as parameters and top-1 of each seed.

    Args:
        folder: of all results.
    """
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    with (folder / "compare" / "glyphs" / "cells.csv").open() as file:
        for row in csv.DictReader(file):
            values[row["method"], row["measure"]].append(float(row["value"]))
    fixed = sizes(growtas.load_space(SPACE))
    drawn = {}
    for method in METHODS:
        limits = [m for own, m in values if own == method and m.startswith("params=")]
        mean = {m: sum(p := values[method, f"parameters of {m}"]) / len(p) for m in limits}
        drawn[method] = {
            "fixed": sorted((size, values[method, name]) for name, size in fixed.items()),
            "found": sorted((mean[m], values[method, m]) for m in limits),
        }
    return drawn


def caption(folder: Path) -> str:
    """The sentences below the picture.

    Args:
        folder: of all results.
    """
    own = points(folder)["growtas"]
    (size, found), (largest, all_of_it) = own["found"][1], own["fixed"][-1]
    mean, most = (sum(seeds) / len(seeds) for seeds in (found, all_of_it))
    return (
        f"Subnets of one supernet on 62 classes of rendered characters: means and ranges of {len(found)} "
        f"seeds. With GrowTAS the largest subnet has {largest:,} parameters and reaches {most:.1f} %; those "
        f"that the search finds under a limit of 74,000 have {size:,.0f} on average and reach {mean:.1f} %."
    )


def plot(folder: Path, path: Path) -> None:
    """Draw the picture.

    Args:
        folder: of all results.
        path: .svg.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "growtas", "font.size": 10}):
        figure, axis = pyplot.subplots(figsize=(7.4, 4.2), layout="constrained")
        for method, own in points(folder).items():
            _method(axis, METHODS[method], METHOD_COLOURS[method] if method == "growtas" else "#777777", own)
        axis.set_xlabel("parameters of the subnet (thousands)")
        axis.set_ylabel("top-1 on the test split (%)")
        axis.set_title("One training, every size: glyphs, 62 classes", loc="left", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(loc="lower right", frameon=False, fontsize=9)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _method(axis: Any, label: str, colour: str, own: dict[str, list[tuple[float, list[float]]]]) -> None:
    for kind, marker, line, text in (
        ("fixed", "o", "-", f"{label}: smallest and largest of each width"),
        ("found", "*", "none", f"{label}: found by search under a limit"),
    ):
        across = [size / 1000 for size, _ in own[kind]]
        means = [sum(seeds) / len(seeds) for _, seeds in own[kind]]
        axis.plot(
            across, means, marker=marker, linestyle=line, color=colour, label=text, lw=1.2,
            markersize=11 if marker == "*" else 5, markeredgecolor="white", markeredgewidth=0.6,
        )  # fmt: skip
        if kind == "fixed":
            low, high = zip(*((min(seeds), max(seeds)) for _, seeds in own[kind]), strict=True)
            axis.fill_between(across, low, high, color=colour, alpha=0.12, lw=0)
