"""The picture of a run and its search: what was evaluated, what was trained when. Imports matplotlib."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from growtas import atomic

# Okabe and Ito's palette, told apart by colour-blind readers; markers tell the groups apart in grey as well.
GROUP_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
GROUP_MARKERS = ("o", "s", "^", "D", "v", "P")
ACCENT = "#D55E00"
# One colour per method in every figure, of the same palette; and one marker, for who sees no colours.
METHOD_COLOURS = {
    "uniform": "#000000",
    "growtas": "#0072B2",
    "growtas+": "#56B4E9",
    "prenas": "#009E73",
    "focusformer": "#CC79A7",
    "shrinking": "#E69F00",
    "single": "#999999",
}
_OTHER_METHODS = ("#D55E00", "#882255", "#999933", "#332288")  # what is left, and three of Paul Tol's
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "svg.hashsalt": "growtas",  # the same picture gives the same file
    "svg.fonttype": "path",
}


def method_colour(name: str) -> str:
    """The colour of a method: its own in :data:`METHOD_COLOURS`, else one that follows from its name."""
    return METHOD_COLOURS.get(name) or _OTHER_METHODS[zlib.crc32(name.encode()) % len(_OTHER_METHODS)]


def method_marker(name: str, variant: int = 0) -> dict[str, str]:
    """How the points of a method are drawn, as arguments of matplotlib's ``plot``.

    Args:
        name: of the method.
        variant: 0 for the method as it is; 1, 2, ... for the same with settings of its own: those are hollow,
            each with another marker.

    Returns:
        ``color``, ``marker`` and ``markerfacecolor``.
    """
    known = list(METHOD_COLOURS)
    first = known.index(name) if name in known else len(known)
    colour = method_colour(name)
    return {
        "color": colour,
        "marker": GROUP_MARKERS[(first + variant) % len(GROUP_MARKERS)],
        "markerfacecolor": "white" if variant else colour,
    }


@dataclass(frozen=True)
class EvaluatedSubnet:
    """A point of the scatter plot: parameters, top-1 in per cent, and the group (0 is the smallest)."""

    params: int
    top1: float
    group: int


@dataclass(frozen=True)
class Step:
    """A training step: when, in epochs; the training loss (None where it was skipped); the sampled group."""

    epoch: float
    loss: float | None
    group: int


def picture(
    path: str | os.PathLike,
    evaluated: Sequence[EvaluatedSubnet],
    chosen: int,
    max_params: int | None,
    images: int,
    steps: Sequence[Step],
    transitions: Sequence[int],
    embed_dims: Sequence[int],
    title: str,
) -> Path:
    """Draw accuracy against parameters beside the training's loss and sampled groups, and save it.

    Args:
        path: of a ``.png``, ``.svg`` or ``.pdf`` file; written atomically.
        evaluated: every subnet that the search evaluated.
        chosen: index of the one it chose.
        max_params: the limit, drawn as a line.
        images: size of the search split, for the caption.
        steps: of training, in order.
        transitions: epochs at which a stage began, the first stage left out.
        embed_dims: of the groups.
        title: of the whole picture.

    Returns:
        The path.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subfigures(1, 2, width_ratios=(1.12, 1), wspace=0.03)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        _scatter(left.subplots(), evaluated, chosen, max_params, images, embed_dims)
        loss, groups = right.subplots(2, 1, sharex=True, height_ratios=(1.2, 1))
        _loss(loss, steps, transitions, embed_dims)
        _groups(groups, steps, transitions, embed_dims)
        _save(figure, Path(path))
    return Path(path)


@dataclass(frozen=True)
class FrontPoint:
    """An evaluated subnet of a Pareto search: its cost, top-1 and standard error in per cent, and its name,
    where it has one."""

    cost: float
    top1: float
    error: float
    name: str | None = None


def front(path: str | os.PathLike, points: Sequence[FrontPoint], chosen: Sequence[int], label: str) -> Path:
    """Draw a Pareto front among the dominated subnets, and save it.

    Args:
        path: of a ``.png``, ``.svg`` or ``.pdf`` file; written atomically.
        points: every evaluated subnet.
        chosen: indices of those on the front, by rising cost.
        label: of the costs.

    Returns:
        The path.
    """
    best = [points[index] for index in chosen]
    dominated = [point for index, point in enumerate(points) if index not in set(chosen)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.scatter(
            [p.cost for p in dominated], [p.top1 for p in dominated], s=14, color="0.6", alpha=0.7,
            linewidths=0, label=f"dominated (n = {len(dominated)})",
        )  # fmt: skip
        costs, accuracies = [p.cost for p in best], [p.top1 for p in best]
        axes.step(costs, accuracies, where="post", color=GROUP_COLOURS[0], linewidth=1.3)
        axes.errorbar(
            costs, accuracies, [p.error for p in best], fmt="o", markersize=5, color=GROUP_COLOURS[0],
            elinewidth=0.8, label=f"front, ± one standard error (n = {len(best)})",
        )  # fmt: skip
        for number, point in enumerate(best, start=1):
            at = (point.cost, point.top1)
            axes.annotate(str(number), at, (-4, 4), textcoords="offset points", ha="right", fontsize=8)
        for marker, point in zip("<>", (p for p in points if p.name), strict=False):
            axes.scatter(
                [point.cost], [point.top1], s=70, marker=marker, color=ACCENT, edgecolors="black", zorder=4,
                label=f"{point.name}: {point.top1:.2f} %",
            )  # fmt: skip
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_xlabel(label)
        axes.set_ylabel("top-1 on the search split (%)")
        axes.set_title(f"Pareto front of {len(points)} evaluated subnets")
        axes.legend(loc="lower right", frameon=False, fontsize=9)
        axes.grid(alpha=0.25)
        _save(figure, Path(path))
    return Path(path)


def _save(figure: Figure, path: Path) -> None:
    with atomic.replace(path) as temporary:
        if path.suffix == ".png":
            _save_png(figure, temporary)
        else:
            figure.savefig(temporary, format=path.suffix[1:], metadata=_undated(path))


def _save_png(figure: Figure, path: Path) -> None:
    """256 colours are enough for a chart, at half the size."""
    figure.set_dpi(120)
    figure.canvas.draw()
    pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        path, format="png", optimize=True
    )


def _undated(path: Path) -> dict[str, None]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})


def _thousands(value: float, _position: int) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _spread(number: int) -> float:
    """Between 0 and 1, far from the values of neighbouring numbers (the golden ratio's multiples)."""
    return number * 0.6180339887 % 1


def _scatter(axes, evaluated, chosen, max_params, images, embed_dims) -> None:
    one_image = 100 / images  # per cent; scores are whole multiples, so equal ones would hide each other
    for group, embed_dim in enumerate(embed_dims):
        points = [(i, e) for i, e in enumerate(evaluated) if e.group == group]
        if points:
            axes.scatter(
                [e.params for _, e in points],
                [e.top1 - 0.7 * one_image * _spread(i) for i, e in points],
                s=20,
                color=GROUP_COLOURS[group % len(GROUP_COLOURS)],
                marker=GROUP_MARKERS[group % len(GROUP_MARKERS)],
                alpha=0.65,
                linewidths=0,
                label=f"embed_dim {embed_dim} (n = {len(points)})",
            )
    best = evaluated[chosen]
    axes.scatter(
        [best.params], [best.top1], s=230, marker="*", color=ACCENT, edgecolors="black", zorder=4,
        label=f"chosen: {best.params:,} parameters, {best.top1:.2f} %",
    )  # fmt: skip
    low, high = axes.get_xlim()
    if max_params is not None:
        high = max(high, max_params + 0.06 * (max_params - low))
        axes.axvline(max_params, color="black", linestyle="--", linewidth=1.2, label=f"limit: {max_params:,}")
        axes.axvspan(max_params, high, color="0.92", zorder=0)
    axes.set_xlim(low, high)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom - 0.42 * (top - bottom), top)  # room for the legend under the points
    axes.legend(loc="lower left", frameon=False, fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_xlabel("parameters of the extracted subnet")
    axes.set_ylabel("top-1 on the search split (%)")
    axes.set_title(
        f"{len(evaluated)} subnets on {images} held-out images\n"
        f"equal scores drawn apart, by less than one image ({one_image:.2g} %)",
        fontsize=10,
    )
    axes.grid(alpha=0.25)


def _per_epoch(steps: Sequence[Step], group: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and mean loss of a group's steps, of the epochs that have any."""
    sums: dict[int, list[float]] = {}
    for step in steps:
        if step.group == group and step.loss is not None:
            sums.setdefault(int(step.epoch), []).append(step.loss)
    epochs = np.array(sorted(sums), dtype=float)
    return epochs + 0.5, np.array([np.mean(sums[int(epoch)]) for epoch in epochs])


def _mark(axes, transitions: Sequence[int], label: bool = False) -> None:
    for stage, epoch in enumerate(transitions, start=2):
        axes.axvline(epoch, color="0.35", linestyle=":", linewidth=1.4)
        if label:
            at = (epoch, 0.97)
            axes.annotate(f" stage {stage}", at, xycoords=("data", "axes fraction"), va="top", fontsize=9)


def _loss(axes, steps, transitions, embed_dims) -> None:
    for group, embed_dim in enumerate(embed_dims):
        epochs, losses = _per_epoch(steps, group)
        if len(epochs):
            colour = GROUP_COLOURS[group % len(GROUP_COLOURS)]
            axes.plot(epochs, losses, color=colour, linewidth=1.3, label=f"embed_dim {embed_dim}")
    _mark(axes, transitions, label=True)
    axes.set_ylabel("training loss")
    axes.set_title(f"mean loss per epoch and group ({len(steps):,} steps)")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)


def _groups(axes, steps, transitions, embed_dims) -> None:
    epochs = int(max(step.epoch for step in steps)) + 1
    width = max(1, round(epochs / 40))  # about forty bars, whole epochs each
    bars = -(-epochs // width)
    counts = np.zeros((len(embed_dims), bars))
    for step in steps:
        counts[step.group, int(step.epoch) // width] += 1
    shares = 100 * counts / np.maximum(counts.sum(0), 1)
    bottom = np.zeros(bars)
    for group in range(len(embed_dims)):
        colour = GROUP_COLOURS[group % len(GROUP_COLOURS)]
        axes.bar(
            np.arange(bars) * width, shares[group], width, bottom, color=colour, align="edge",
            edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        bottom += shares[group]
    _mark(axes, transitions)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, epochs)
    axes.set_xlabel("epoch")
    axes.set_ylabel("steps (%)")
    axes.set_title("sampled groups")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
