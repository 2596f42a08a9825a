"""The picture of Figure F: one map of draws per method, with a strip of what the method means to draw."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from growtas.analysis.base import Analysis, Drawing
from growtas.analysis.charts import new_figure
from growtas.plotting import method_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure


BOUNDS = (0, 2, 5, 10, 20, 40, 100)  # per cent of the draws of a span of epochs
_MAP = matplotlib.colormaps["YlGnBu"]
COLOURS = [_MAP(0.12 + 0.88 * level / (len(BOUNDS) - 2)) for level in range(len(BOUNDS) - 1)]
_ACROSS = 3  # panels
_WRAP = 38  # letters of a line above a panel
_LEFT_OUT = "0.93"  # grey of a group that is not drawn


def strategies(found: Analysis) -> dict[str, Drawing]:
    """The picture of how methods sample; see :meth:`.Analysis.drawings`."""
    names = list(found.facts["methods"])
    across = min(_ACROSS, len(names))
    down = math.ceil(len(names) / across)
    figure, axes = new_figure(
        3.35 * down + 0.3, 2 * down, across, squeeze=False, height_ratios=(1, 4.5) * down
    )
    for place in range(down * across):
        row, column = divmod(place, across)
        strip, chart = axes[2 * row, column], axes[2 * row + 1, column]
        if place < len(names):
            _panel(found, names[place], strip, chart, first=column == 0)
        else:
            strip.set_axis_off(), chart.set_axis_off()
    free = axes[-1, -1] if down * across > len(names) else None
    _legend(figure, free)
    return {"": Drawing(figure, _caption(found), _alt(found))}


def _panel(found: Analysis, name: str, strip: Axes, chart: Axes, first: bool) -> None:
    facts, tables = found.facts, found.tables
    _, epochs, draws, different, *_ = tables["methods"].where(method=name).rows[0]
    _strip(found, name, strip, epochs)
    meant = textwrap.wrap(f"Meant: {facts['intended'][name]}", _WRAP)
    strip.set_title(name, color=method_colour(facts["methods"][name]), fontweight="bold", pad=28)
    strip.annotate(
        "\n".join(meant), (0, 1), xytext=(0, 25), xycoords="axes fraction", textcoords="offset points",
        va="top", fontsize=8, color="0.25",
    )  # fmt: skip
    candidates = tables["candidates"].where(method=name)
    low, high = facts["params"]
    if candidates.rows:
        _lines(chart, candidates.rows, epochs, high - low)
    else:
        _cells(chart, tables["draws"].where(method=name).rows)
    for start in sorted(set(tables["intended"].where(method=name).column("epoch_from")) - {0}):
        chart.axvline(start, color="black", linestyle="--", linewidth=1)
    chart.set_xlim(0, epochs)
    chart.set_ylim(low, high + 0.02 * (high - low))
    chart.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    chart.yaxis.set_major_formatter(FuncFormatter(_thousands))
    chart.set_xlabel(f"epoch ({draws:,} draws, {different:,} different)", fontsize=9)
    if first:
        chart.set_ylabel("parameters")
        strip.set_ylabel(facts["axis"].replace("_", "\n"), fontsize=8)
    else:
        chart.tick_params(labelleft=False)
        strip.tick_params(labelleft=False)


def _strip(found: Analysis, name: str, axes: Axes, epochs: int) -> None:
    """Which groups may be drawn when: filled where uniform, hatched where learned, thin where some."""
    facts = found.facts
    values, colour = facts["groups"], method_colour(facts["methods"][name])
    looks = {
        "uniform": {"height": 0.8, "facecolor": colour},
        "chosen": {"height": 0.3, "facecolor": colour},
        "learned": {"height": 0.8, "facecolor": "white", "edgecolor": colour, "hatch": "/////"},
    }
    for at in range(len(values)):
        axes.add_patch(Rectangle((0, at - 0.4), epochs, 0.8, facecolor=_LEFT_OUT, linewidth=0))
    for _, start, end, group, how in found.tables["intended"].where(method=name).rows:
        look = {"linewidth": 0, **looks[how]}
        at = values.index(group) - look["height"] / 2
        axes.add_patch(Rectangle((start, at), end - start, **look))
    axes.set_xlim(0, epochs)
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.set_yticks(range(len(values)), [str(value) for value in values], fontsize=8)
    axes.tick_params(labelbottom=False, length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _level(share: float) -> int:
    """The place of a share among the bounds."""
    return max(level for level, bound in enumerate(BOUNDS[:-1]) if share > bound)


def _cells(axes: Axes, rows: Iterable[tuple]) -> None:
    """Cells of the map; those of one colour are one path, which keeps the file small."""
    boxes: dict[int, list[tuple[float, float, float, float]]] = {}
    for _, left, right, bottom, top, _, share in rows:
        boxes.setdefault(_level(share), []).append((left, bottom, right, top))
    for level, own in boxes.items():
        corners = [(x, y) for a, b, c, d in own for x, y in ((a, b), (c, b), (c, d), (a, d), (a, b))]
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(own)
        axes.add_patch(
            PathPatch(Path(corners, codes), facecolor=COLOURS[level], edgecolor="white", linewidth=0.3)
        )


def _lines(axes: Axes, rows: Iterable[tuple], epochs: int, reach: float) -> None:
    """One bar per subnet, with its share of all draws."""
    for _, _, params, _, share in rows:
        height = 0.018 * reach
        colour = COLOURS[_level(share)]
        axes.add_patch(Rectangle((0, params - height / 2), epochs, height, facecolor=colour, linewidth=0))
        axes.annotate(
            f"{share:.0f} %", (epochs, params), xytext=(-2, -3), textcoords="offset points",
            ha="right", va="top", fontsize=8,
        )  # fmt: skip


def _legend(figure: Figure, free: Axes | None) -> None:
    handles = [
        Patch(facecolor=colour, label=f"{low}–{high} %")
        for low, high, colour in zip(BOUNDS, BOUNDS[1:], COLOURS, strict=False)
    ]
    title = "share of an epoch span's draws"
    strips = [
        Patch(facecolor="0.35", label="group drawn uniformly"),
        Patch(facecolor="white", edgecolor="0.35", hatch="/////", linewidth=0, label="as a sampler learns"),
        Line2D([], [], color="0.35", linewidth=3, label="some of its subnets"),
        Patch(facecolor=_LEFT_OUT, label="group left out"),
    ]
    if free is None:
        figure.legend(handles=handles + strips, loc="outside lower center", ncols=5, title=title)
        return
    upper = free.legend(handles=strips, loc="upper left", title="strips: what is meant", alignment="left")
    free.add_artist(upper)
    free.legend(
        handles=handles, loc="lower left", title=f"maps: {title}", alignment="left", ncols=2,
        bbox_to_anchor=(0, 0),
    )  # fmt: skip


def _thousands(value: float, _position: int) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k"


def _caption(found: Analysis) -> str:
    seeds = sorted(set(found.facts["seeds"].values()))
    of = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    text = (
        f"What one run of every method ({of}) drew, counted in its log: colour is the share of a cell's "
        "subnets among all draws of its epochs. The strips above say which groups the method may draw from; "
        "dashed lines are where that changes."
    )
    if found.tables["candidates"].rows:
        text += " Of methods that draw a few subnets alone, each is one bar, with its share of all draws."
    return text


def _alt(found: Analysis) -> str:
    return (
        f"Maps of the parameters of drawn subnets over epochs for {', '.join(found.facts['methods'])}; each "
        "below a strip of the groups that the method may draw from."
    )
