"""Interference: do small and large subnets pull the weights they share in one direction?"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from statistics import fmean
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import new_figure
from growtas.comparing.statistics import Interval, mean_interval, paired_interval
from growtas.errors import UsageError
from growtas.plotting import method_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from growtas.analysis.workspace import Workspace
    from growtas.training.run import Run

METHODS = ("uniform", "growtas")
WHOLE = "all"  # in the column of layers: over all shared weights together
_MOST_TICKS = 14  # names of layers beside a heat map


class GradientInterference(Analysis):
    """The figure "Interference". Its tables:

    - ``cosines``: for each run and epoch the cosine between gradients of small and large subnets on the
      weights they share, and that of pairs of two small ones (control), for each layer and ``all`` together;
    - ``pairs``: for each run and epoch the share of pairs with a negative cosine and the ratio of the norms,
      large over small;
    - ``transitions``: the epochs at which stages after the first began.
    """

    name = "interference"
    title = "Interference on shared weights"
    question = (
        "A small and a large subnet are trained on the same weights. Do their gradients on these weights "
        "pull in one direction, and does it change along training, with uniform sampling and with stages?"
    )
    published = (
        "The paper argues with weight interference: trained together, subnets of different sizes disturb "
        "each other's weights, small ones more than large ones. It shows what this does to accuracy and "
        "does not measure the interference itself, so there are no published numbers to compare with; this "
        "measurement is our own."
    )

    @classmethod
    def networks(cls, workspace: Workspace) -> tuple[str, ...]:
        return tuple(f"{method}-{seed}" for method in METHODS for seed in range(workspace.seeds))

    @classmethod
    def reason(cls, workspace: Workspace) -> str | None:
        if len(workspace.space.groups) < 2:
            return f"{workspace.space.name!r} has one group of subnets: there are no small and large ones."
        return None

    @classmethod
    def make(cls, workspace: Workspace) -> GradientInterference:
        return interference(workspace.run(name) for name in cls.networks(workspace))

    @property
    def methods(self) -> list[str]:
        """The methods that were measured, in order."""
        return self.tables["cosines"].values("method")

    def seeds(self, method: str) -> list[int]:
        """The seeds of a method."""
        return sorted(self.tables["cosines"].where(method=method).values("seed"))

    def course(self, method: str, layer: str = WHOLE) -> dict[int, list[tuple[float, float | None]]]:
        """For each epoch the cosine and its control of every seed that has the layer there."""
        table = self.tables["cosines"].where(method=method, layer=layer)
        found: dict[int, list[tuple[float, float | None]]] = {}
        for epoch, cosine, control in zip(*map(table.column, ("epoch", "cosine", "control")), strict=True):
            found.setdefault(epoch, []).append((cosine, control))
        return dict(sorted(found.items()))

    def begins(self, method: str) -> list[float]:
        """The epochs of the transitions of a method, each the mean over the seeds."""
        table = self.tables["transitions"].where(method=method)
        stages = sorted(table.values("stage"))
        return [fmean(table.where(stage=k).column("epoch")) for k in stages]

    def findings(self) -> list[str]:
        sentences = [_level(self, method) for method in self.methods]
        if len(self.methods) > 1:
            sentences.append(_difference(self, *self.methods[:2]))
        sentences += [text for method in self.methods if (text := _at_transition(self, method))]
        sentences.append(_signs_and_norms(self))
        sentences += [_of_layers(self, method) for method in self.methods]
        return sentences

    def draw(self) -> dict[str, Drawing]:
        return {"": _draw_course(self), "layers": _draw_layers(self)}


def interference(runs: Iterable[str | os.PathLike | Run]) -> GradientInterference:
    """How far the gradients of small and large subnets agree along some runs.

    Args:
        runs: folders of runs of one space that were trained with ``interference_every``: any methods, any
            seeds.

    Returns:
        The figure "Interference" of these runs.

    Raises:
        UsageError: there is none, one has no measurements, or they are not of one space and length.

    Example:
        >>> interference(["runs/uniform", "runs/growtas"]).findings()  # doctest: +SKIP
    """
    from growtas.training.log import check_whole, read_log
    from growtas.training.run import Run

    opened = [Run.open(run) for run in runs]
    if not opened:
        raise UsageError("Give the folder of at least one run.")
    first, space = opened[0], opened[0].space
    cosines, pairs, transitions = [], [], []
    for run in opened:
        if (run.space.to_dict(), run.config.epochs) != (space.to_dict(), first.config.epochs):
            raise UsageError(
                f"{run.path} has {run.config.epochs} epochs on the space {run.space.name!r}, and "
                f"{first.path} {first.config.epochs} on {space.name!r}; give runs of one space and length."
            )
        key = (run.config.method, run.config.seed)
        check_whole(run.path)
        records = [record for record in read_log(run.path, "interference") if record["cosine"] is not None]
        if not records:
            raise UsageError(
                f"Interference was not measured along the run {run.path}; train with interference_every=1."
            )
        for record in records:
            control, at = record["control"], (*key, record["epoch"])
            cosines.append((*at, WHOLE, record["cosine"], control["cosine"]))
            pairs.append((*at, record["negative"], control["negative"], record["norm_ratio"]))
            for layer, cosine in record["layers"].items():
                if cosine is not None:
                    cosines.append((*at, layer, cosine, control["layers"][layer]))
        transitions += [
            (*key, record["stage"], record["epoch"], record.get("opened_by"))
            for record in read_log(run.path, "stage")
            if record["stage"] > 0
        ]
    last = records[-1]
    facts = {
        "space": space.name,
        "data": first.config.data,
        "epochs": first.config.epochs,
        "axis": space.group_axis,
        "small": space.groups[last["small"]],
        "large": space.groups[last["large"]],
        "pairs": last["pairs"],
        "control_pairs": last["control"]["pairs"],
        "images": last["images"],
        "layers": list(last["layers"]),
    }
    columns = ("method", "seed", "epoch")
    tables = {
        "cosines": Table.of((*columns, "layer", "cosine", "control"), cosines),
        "pairs": Table.of((*columns, "negative", "control_negative", "norm_ratio"), pairs),
        "transitions": Table.of(("method", "seed", "stage", "epoch", "opened_by"), transitions),
    }
    return GradientInterference(tables, facts)


# -- sentences -------------------------------------------------------------------------------------------


def _by_seed(found: GradientInterference, method: str) -> dict[int, tuple[float, float | None]]:
    """For each seed the mean cosine and the mean of control - cosine, of the measurements along training.

    The one before the first step is left out: it tells how the weights begin.
    """
    means = {}
    for seed in found.seeds(method):
        table = found.tables["cosines"].where(method=method, seed=seed, layer=WHOLE)
        columns = (table.column(name) for name in ("epoch", "cosine", "control"))
        rows = [(cosine, control) for epoch, cosine, control in zip(*columns, strict=True) if epoch]
        gaps = [control - cosine for cosine, control in rows if control is not None]
        if rows:
            means[seed] = (fmean([cosine for cosine, _ in rows]), fmean(gaps) if gaps else None)
    return means


def _level(found: GradientInterference, method: str) -> str:
    """Where the cosine of a method lies, beside its control."""
    facts, course = found.facts, found.course(method)
    first, last = (fmean([cosine for cosine, _ in course[epoch]]) for epoch in (min(course), max(course)))
    text = (
        f"{method}: on the weights they share, the gradients of subnets of {facts['axis']} {facts['small']} "
        f"and {facts['large']} have a cosine of {first:.2f} at epoch {min(course)} and of {last:.2f} at "
        f"epoch {max(course)} (means; seeds: {len(found.seeds(method))}, pairs: {facts['pairs']}, images: "
        f"{facts['images']})"
    )
    means = _by_seed(found, method)
    gaps = [gap for _, gap in means.values() if gap is not None]
    if not gaps:
        return f"{text}."
    gap, level = mean_interval(gaps), fmean([cosine for cosine, _ in means.values()])
    return (
        f"{text}. Along training it is {level:.2f} on average, {abs(gap.mean):.3f} "
        f"{'below' if gap.mean >= 0 else 'above'} that of two subnets of {facts['small']} "
        f"({facts['control_pairs']} pairs{_interval(gap)})."
    )


def _difference(found: GradientInterference, first: str, second: str) -> str:
    """The change of the cosine that stages make, paired by seed."""
    one, other = _by_seed(found, first), _by_seed(found, second)
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return f"{first} and {second} were not measured with a common seed: nothing is paired."
    difference = paired_interval([other[seed][0] for seed in shared], [one[seed][0] for seed in shared])
    decided = "; one pair says nothing about chance"
    if difference.low is not None:
        shown = "without zero" if difference.excludes(0) else "with zero in it: no difference is shown"
        decided = f"{_interval(difference)}, {shown}"
    side = "above" if difference.mean >= 0 else "below"
    return (
        f"Over all measurements along training the cosine of {second} is {abs(difference.mean):.3f} {side} "
        f"that of {first}, paired by seed (pairs: {len(shared)}){decided}."
    )


def _at_transition(found: GradientInterference, method: str) -> str | None:
    """The last measurement before each transition and the first one after it."""
    changes = []
    for _, seed, _, epoch, _ in found.tables["transitions"].where(method=method).rows:
        table = found.tables["cosines"].where(method=method, seed=seed, layer=WHOLE)
        course = dict(zip(table.column("epoch"), table.column("cosine"), strict=True))
        before, after = ([e for e in course if (e <= epoch) == side] for side in (True, False))
        if before and after:
            changes.append((course[max(before)], course[min(after)]))
    if not changes:
        return None
    before, after = (fmean(values) for values in zip(*changes, strict=True))
    return (
        f"{method}: from the last measurement before a transition to the first one after it the cosine goes "
        f"from {before:.2f} to {after:.2f} (means; transitions: {len(changes)}); before it no step trains "
        "large subnets."
    )


def _signs_and_norms(found: GradientInterference) -> str:
    """How many pairs point apart, and which side's gradient is larger."""
    parts = []
    for method in found.methods:
        table = found.tables["pairs"].where(method=method)
        negative, control, ratio = (
            [value for value in table.column(name) if value is not None]
            for name in ("negative", "control_negative", "norm_ratio")
        )
        ratio = math.exp(fmean([math.log(value) for value in ratio if value > 0]))
        beside = f" ({100 * fmean(control):.1f} % of the control's)" if control else ""
        parts.append(
            f"{method} {100 * fmean(negative):.1f} % of the pairs{beside}; the large subnet's gradient is "
            f"{ratio:.2f} times as long as the small one's"
        )
    return "Gradients that point apart, with a cosine below zero: " + ". ".join(parts) + "."


def _of_layers(found: GradientInterference, method: str) -> str:
    """The layers that agree least and most, along training."""
    means = {}
    for layer in found.facts["layers"]:
        values = [c for epoch, each in found.course(method, layer).items() if epoch for c, _ in each]
        if values:
            means[layer] = fmean(values)
    if not means:
        return f"{method}: no layer was measured after training began."
    low, high = min(means, key=means.get), max(means, key=means.get)
    return (
        f"{method}, by layer: the gradients agree least in {low} ({means[low]:.2f}) and most in {high} "
        f"({means[high]:.2f}), means over training (seeds: {len(found.seeds(method))})."
    )


def _interval(value: Interval) -> str:
    """The interval of a mean as it stands behind it; nothing where there is none."""
    return "" if value.low is None else f"; 95 % interval {value.low:+.3f} to {value.high:+.3f}"


# -- pictures --------------------------------------------------------------------------------------------


def _sample(found: GradientInterference) -> str:
    """The runs and pairs that a point is the mean of."""
    facts, counts = found.facts, {len(found.seeds(method)) for method in found.methods}
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return (
        f"seeds per method: {seeds}; each measurement is the mean of {facts['pairs']} pairs of random "
        f"subnets (control: {facts['control_pairs']}) on {facts['images']} training images"
    )


def _draw_course(found: GradientInterference) -> Drawing:
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
    stages = any(found.begins(method) for method in found.methods)
    transitions = "; dashed verticals are transitions" if stages else ""
    caption = (
        f"Cosine between the gradients of subnets of {facts['axis']} {facts['small']} and {facts['large']} "
        f"on the weights that both use, along training on {facts['data']} ({_sample(found)}). (a) Lines are "
        "means over the seeds, bands reach from the lowest to the highest; dotted the control, pairs of two "
        f"subnets of {facts['small']}{transitions}. (b) The control minus the cosine, seed by seed: what is "
        "above zero is disagreement that two subnets of one size do not have."
    )
    last = {method: list(found.course(method).values())[-1] for method in found.methods}
    ends = (f"{method} ends at {fmean([c for c, _ in each]):.2f}" for method, each in last.items())
    alt = (
        f"Two panels of lines over {facts['epochs']} epochs, the cosine and its gap to the control; "
        f"{', '.join(ends)}."
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


def _draw_layers(found: GradientInterference) -> Drawing:
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


def _map(found: GradientInterference, method: str, names: list[str], epochs: list[int]) -> np.ndarray:
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
