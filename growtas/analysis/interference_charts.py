"""The pictures of the figure "Interference", drawn from its tables. Imports matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from growtas.analysis.base import Drawing
from growtas.analysis.charts import new_figure, styled
from growtas.analysis.interference_tables import InterferenceTables
from growtas.plotting import method_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TICKS = 14  # names of layers beside a heat map


def drawings(found: InterferenceTables) -> dict[str, Drawing]:
    """The cosine over training, and by layer."""
    with styled():
        return {"": _course(found), "layers": _layers(found)}


def _sample(found: InterferenceTables) -> str:
    """The runs and pairs that a point is the mean of."""
    facts, counts = found.facts, {len(found.seeds(method)) for method in found.methods}
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return (
        f"{seeds} {'seed' if counts == {1} else 'seeds'} per method; each measurement is the mean of "
        f"{facts['pairs']} pairs of random subnets (control: {facts['control_pairs']}) on {facts['images']} "
        "training images"
    )


def _course(found: InterferenceTables) -> Drawing:
    facts = found.facts
    figure, (left, right) = new_figure(3.6, 1, 2)
    for method in found.methods:
        course, colour = found.course(method), method_colour(method)
        cosines = {e: [c for c, _ in each] for e, each in course.items()}
        _band(left, cosines, colour, f"{method}: small, large")
        controls = {e: [k for _, k in each if k is not None] for e, each in course.items()}
        controls = {e: np.mean(values) for e, values in controls.items() if values}
        left.plot(*zip(*controls.items(), strict=True), ":", color=colour, label=f"{method}: two small")
        gaps = {e: [k - c for c, k in each if k is not None] for e, each in course.items()}
        _band(right, {e: values for e, values in gaps.items() if values}, colour, method)
        for axes in (left, right):
            for epoch in found.begins(method):
                axes.axvline(epoch, color=colour, linestyle="--", linewidth=1, zorder=0)
    right.axhline(0, color="#666666", linewidth=0.8, zorder=0)
    left.set(ylabel="cosine between gradients", title="(a) agreement on shared weights")
    right.set(ylabel="control − cosine", title="(b) disagreement that size adds")
    for axes in (left, right):
        axes.set(xlabel="epochs trained", xlim=(0, facts["epochs"]))
        axes.grid(True)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    transitions = (
        "; dashed verticals are transitions" if any(found.begins(method) for method in found.methods) else ""
    )
    caption = (
        f"Cosine between the gradients of subnets of {facts['axis']} {facts['small']} and {facts['large']} "
        f"on the weights that both use, along training on {facts['data']} ({_sample(found)}). (a) Lines are "
        "means over the seeds, bands reach from the lowest to the highest; dotted the control, pairs of two "
        f"subnets of {facts['small']}{transitions}. (b) The control minus the cosine, seed by seed: what is "
        "above zero is disagreement that two subnets of one size do not have."
    )
    ends = []
    for method in found.methods:
        course = found.course(method)
        last = np.mean([cosine for cosine, _ in course[max(course)]])
        ends.append(f"{method} ends at {last:.2f}")
    alt = f"Two panels of lines over {facts['epochs']} epochs, the cosine and its gap to the control; " + (
        ", ".join(ends) + "."
    )
    return Drawing(figure, caption, alt)


def _band(axes: Axes, course: dict[int, list[float]], colour: str, label: str) -> None:
    """The mean of the seeds as a line, their range as a band."""
    if not course:
        return
    epochs = list(course)
    axes.plot(epochs, [np.mean(values) for values in course.values()], color=colour, label=label)
    low, high = ([pick(values) for values in course.values()] for pick in (min, max))
    if low != high:
        axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)


def _layers(found: InterferenceTables) -> Drawing:
    methods, names = found.methods, found.facts["layers"]
    epochs = sorted({epoch for method in methods for epoch in found.course(method)})
    maps = {method: _map(found, method, names, epochs) for method in methods}
    known = np.concatenate([each[np.isfinite(each)] for each in maps.values()])
    low = min(0.0, float(np.floor(10 * known.min()) / 10))
    figure, panels = new_figure(1.6 + 0.27 * len(names), 1, len(methods), sharey=True, squeeze=False)
    edges = _edges(epochs)
    colours = matplotlib.colormaps["viridis"].resampled(24).with_extremes(bad="#DDDDDD")
    for axes, (method, values) in zip(panels[0], maps.items(), strict=True):
        grid = axes.pcolormesh(
            edges, np.arange(len(names) + 1), np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=1
        )
        for epoch in found.begins(method):
            axes.axvline(epoch, color="white", linestyle="--", linewidth=1.4)
        axes.set(title=method, xlabel="epochs trained")
        axes.grid(False)
    step = -(-len(names) // _MOST_TICKS)
    places = np.arange(0, len(names), step)
    panels[0, 0].set(yticks=places + 0.5, yticklabels=[names[place] for place in places])
    panels[0, 0].invert_yaxis()
    bar = figure.colorbar(grid, ax=panels[0].tolist(), label="cosine between gradients")
    bar.solids.set_rasterized(False)  # no bitmap in the SVG
    caption = (
        f"The same cosine for each layer from the input (top) to the head, mean over the seeds "
        f"({_sample(found)}). Grey: no pair shared the layer. Dashed: transitions."
    )
    rows = {name: np.concatenate([each[row] for each in maps.values()]) for row, name in enumerate(names)}
    means = {name: np.nanmean(row) for name, row in rows.items() if np.isfinite(row).any()}
    least, most = min(means, key=means.get), max(means, key=means.get)
    alt = (
        f"One heat map of {len(names)} layers by {len(epochs)} measurements per method: the cosine is lowest "
        f"in {least} and highest in {most}."
    )
    return Drawing(figure, caption, alt)


def _map(found: InterferenceTables, method: str, names: list[str], epochs: list[int]) -> np.ndarray:
    """The mean cosine of each layer (rows) at each epoch (columns); NaN where there is none."""
    values = np.full((len(names), len(epochs)), np.nan)
    for row, name in enumerate(names):
        for epoch, each in found.course(method, name).items():
            values[row, epochs.index(epoch)] = np.mean([cosine for cosine, _ in each])
    return values


def _edges(epochs: list[int]) -> np.ndarray:
    """The edges of cells around each epoch, half way to the next one."""
    if len(epochs) == 1:
        return np.array([epochs[0] - 0.5, epochs[0] + 0.5])
    middle = (np.array(epochs[1:]) + np.array(epochs[:-1])) / 2
    return np.concatenate([[epochs[0]], middle, [epochs[-1]]])
