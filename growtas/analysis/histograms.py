"""Histograms of the accuracies of many subnets, and those that the paper prints. Imports matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from growtas.analysis.base import Table, Value
from growtas.analysis.charts import ROLE_COLOURS, group_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BIN = 5  # points of top-1, the paper's
BINS = 100 // BIN
LOWER, UPPER = "top1 from (%)", "top1 to (%)"
HERE, PUBLISHED = "here", "published"
CHANCE = "0.35"  # a grey

PUBLISHED_COUNTS = {
    "extended": (0, 9, 13, 6, 1, 1, 7, 7, 5, 3, 4, 3, 9, 12, 17, 3, 0, 0, 0, 0),
    "cropped": (89, 6, 1, 3, 0, 0, 0, 0, 1, *(0,) * 11),
}
"""Subnets per bin in the paper's figure 1, from 0 to 5 per cent on: 100 on each side."""
PUBLISHED_BASES = {"extended": 77.0, "cropped": 79.6}
"""Top-1 of the subnet that was trained, about, as its red dashed lines say."""


def bin_counts(values: Iterable[float]) -> list[int]:
    """How many values lie in each bin; a bin holds its lower edge, and the last one 100 too.

    Example:
        >>> bin_counts([0.0, 5.0, 99.0, 100.0])[:2], bin_counts([100.0])[-1]
        ([1, 1], 1)
    """
    counts = [0] * BINS
    for value in values:
        counts[min(int(value // BIN), BINS - 1)] += 1
    return counts


def mean_of_counts(counts: Sequence[int]) -> float:
    """The mean of values known by their bins, each counted at the middle of its bin."""
    return sum((at + 0.5) * BIN * count for at, count in enumerate(counts)) / sum(counts)


def group_column(axis: str, choice: Value) -> str:
    """The column of counts of one group, such as ``embed_dim 24``."""
    return f"{axis} {choice}"


def count_table(
    keys: Sequence[str],
    samples: Mapping[tuple[Value, ...], Iterable[tuple[Value, float]]],
    axis: str,
    groups: Sequence[Value],
    published: Mapping[tuple[Value, ...], Sequence[int]],
) -> Table:
    """The histograms of some samples, a row for each bin.

    Args:
        keys: columns that tell the samples apart.
        samples: by their values of those columns: the group and the top-1 in per cent of each subnet.
        axis, groups: by which subnets are grouped, and its choices, each a column of its own.
        published: counts of the paper, of the samples that it has.
    """
    rows = []
    for key, sample in samples.items():
        pairs = list(sample)
        columns = [bin_counts(top1 for group, top1 in pairs if group == own) for own in groups]
        columns.append(bin_counts(top1 for _, top1 in pairs))
        columns.append(list(published[key]) if key in published else [None] * BINS)
        rows += [
            (*key, at * BIN, (at + 1) * BIN, *counts) for at, counts in enumerate(zip(*columns, strict=True))
        ]
    names = (group_column(axis, choice) for choice in groups)
    return Table.of((*keys, LOWER, UPPER, *names, HERE, PUBLISHED), rows)


def panel(axes: Axes, counts: Table, facts: Mapping[str, Any], base: float, title: str) -> None:
    """The histogram of one sample: bars of the groups on top of each other, lines of the base and of chance.

    Args:
        axes: to draw on.
        counts: the sample's rows.
        facts: of the analysis.
        base: top-1 of the subnet that was trained, in per cent.
        title: to which the size and the mean of the sample are added.
    """
    bottom = [0] * BINS
    for number, choice in enumerate(facts["groups"]):
        heights = counts.column(group_column(facts["axis"], choice))
        _bars(axes, heights, bottom, group_colour(number))
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.axvline(100 / facts["num_classes"], color=CHANCE, linestyle=":", linewidth=1.4)
    base_line(axes, base)
    axes.set_title(title)


def plain(axes: Axes, counts: Table, column: str, colour: str) -> None:
    """Bars of one colour. Args: counts: one sample's rows; column: what to draw."""
    _bars(axes, counts.column(column), [0] * BINS, colour)


def _bars(axes: Axes, heights: Sequence[int], bottom: Sequence[int], colour: str) -> None:
    shown = [at for at, height in enumerate(heights) if height]  # no empty paths in the file
    left, tops, below = (
        [at * BIN for at in shown],
        [heights[at] for at in shown],
        [bottom[at] for at in shown],
    )
    axes.bar(left, tops, BIN, below, align="edge", color=colour, edgecolor="white", linewidth=0.6)


def scale(row: Iterable[Axes], highest: int) -> None:
    """The scales of a row of histograms, with room above the bars for what a line is called."""
    for axes in row:
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 20))
        axes.set_ylim(0, 1.24 * highest)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y")
        axes.set_axisbelow(True)


def base_line(axes: Axes, base: float, about: bool = False) -> None:
    """The red dashed line of the subnet that was trained. Args: base: per cent; about: it is rounded."""
    axes.axvline(base, color=ROLE_COLOURS["base"], linestyle="--", linewidth=1.6)
    text = f"about {base:g} % " if about else f"{base:.1f} % "
    at = (base, 0.985)
    colour = ROLE_COLOURS["base"]
    axes.annotate(
        text, at, xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=9, color=colour
    )


def legend(figure: Figure, facts: Mapping[str, Any], published: bool = False) -> None:
    """One legend for all panels, above them. Args: published: there are grey bars too."""
    handles: list = [
        Patch(color=group_colour(number), label=group_column(facts["axis"], choice))
        for number, choice in enumerate(facts["groups"])
    ]
    if published:
        handles.append(Patch(color=ROLE_COLOURS["published"], label="published"))
    handles += [
        Line2D([], [], color=ROLE_COLOURS["base"], linestyle="--", linewidth=1.6, label="trained subnet"),
        Line2D([], [], color=CHANCE, linestyle=":", linewidth=1.4, label="chance"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


# -- sentences -------------------------------------------------------------------------------------------


def by_group(facts: Mapping[str, Any], subnets: Table, column: str = "top1 (%)") -> str:
    """Means of the groups that have any subnets, such as ``24: 95.5 % (n = 33), 36: 89.4 % (n = 35)``."""
    samples = {group: subnets.where(group=group).column(column) for group in facts["groups"]}
    return ", ".join(f"{g}: {statistics.mean(v):.1f} % (n = {len(v)})" for g, v in samples.items() if v)


def setting(facts: Mapping[str, Any]) -> str:
    """The space and the data of the numbers."""
    return (
        f"Here: space {facts['space']} ({facts['subnets_in_space']:,} subnets) on {facts['data']}, "
        f"{facts['test_images']} test images of {facts['num_classes']} classes, where chance is "
        f"{100 / facts['num_classes']:.2g} %; one training each, so nothing is said about other seeds."
    )


def epochs_text(epochs: Mapping[str, int]) -> str:
    """Epochs of one or two runs: ``60 epochs``, or ``24 (smallest) and 12 (largest) epochs``."""
    if len(set(epochs.values())) == 1:
        return f"{next(iter(epochs.values()))} epochs"
    return " and ".join(f"{count} ({name})" for name, count in epochs.items()) + " epochs"
