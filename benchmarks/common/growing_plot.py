"""The map: growing minus uniform in every setting, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.growing_cells import POOL
from common.growing_plan import POOLS, SETTINGS, THREE, TWO
from common.growing_report import NAMES, Found
from growtas import atomic
from growtas.plotting import ACCENT, METHOD_COLOURS, STYLE

PANELS = {"small": "smallest group", "large": "widest group", "found": "found by search"}
LOOKS = {TWO: (METHOD_COLOURS[TWO], "o", -0.17), THREE: (ACCENT, "s", 0.17)}
LINEAR = 2.0  # points; what lies further from zero is drawn on a logarithmic scale
FURTHEST = 50.0  # points; longer intervals leave the picture
ROW = 0.27  # inches; with the width it leaves letters of nine pixels on a screen of 390
WIDTH = 5.4


def plot(folder: Path, path: Path) -> bool:
    """Draw the picture.

    Args:
        folder: of all results.
        path: .svg.

    Returns:
        True where there was something to draw.
    """
    found = Found.read(folder)
    every = [*(s.key for s in SETTINGS), *(POOL + pool for pool in POOLS)]
    keys = [key for key in every if any(found.difference(key, method, "small") for method in LOOKS)]
    if not keys:
        return False
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(WIDTH, 1.2 + ROW * len(keys)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(PANELS), sharex=True, sharey=True)
        for axes, (measure, title) in zip(panels, PANELS.items(), strict=True):
            _panel(axes, found, keys, measure)
            axes.set_title(title)
        panels[0].set_yticks(range(len(keys)), keys)
        panels[0].set_ylim(len(keys) - 0.4, -0.6)
        figure.supxlabel("growing − uniform (points of top-1), mean and 95 % interval", fontsize=9)
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False
        )
        with atomic.replace(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
    return True


def _panel(axes: Any, found: Found, keys: list[str], measure: str) -> None:
    axes.axvspan(-LINEAR, LINEAR, color="0.95", zorder=0)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.8)
    for method, (colour, marker, shift) in LOOKS.items():
        known = [(row + shift, found.difference(key, method, measure)) for row, key in enumerate(keys)]
        known = [(place, own) for place, own in known if own is not None]
        ends = [(place, own.low, own.high) for place, own in known if own.low is not None]
        if ends:
            axes.hlines(*zip(*ends, strict=True), color=colour, linewidth=1.2)
        for decided, face in ((True, colour), (False, "white")):
            points = [(own.mean, place) for place, own in known if own.excludes(0.0) is decided]
            across, up = zip(*points, strict=True) if points else ((), ())
            axes.plot(
                across, up, marker=marker, markersize=4, color=colour, linestyle="none", markerfacecolor=face
            )
        axes.plot([], [], marker=marker, markersize=4, color=colour, label=NAMES[method])
    axes.set_xlim(-FURTHEST, FURTHEST)
    axes.set_xticks((-30, -10, -2, 0, 2, 10, 30), ("", "−10", "", "0", "", "10", ""))
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.25)
    axes.tick_params(axis="y", length=0)
