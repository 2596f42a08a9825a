"""Figure F: which subnets each method draws, and when, counted in the logs of its runs."""

from __future__ import annotations

import bisect
import functools
import inspect
import itertools
import math
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from growtas import cost
from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import new_figure
from growtas.comparing.plan import comparison_in
from growtas.comparing.summary import read_cells
from growtas.errors import UsageError
from growtas.plotting import method_colour
from growtas.subnet import parse_subnet
from growtas.training.log import check_whole, read_log
from growtas.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from growtas.analysis.workspace import Workspace

COLUMNS, ROWS = 12, 12  # of the map, about: spans of epochs, and of parameters
_MOST_STAGES = 3  # that a sentence tells one by one
FEW = 12  # subnets; a method that draws no more is drawn subnet by subnet

BOUNDS = (0, 2, 5, 10, 20, 40, 100)  # per cent of the draws of a span of epochs
_MAP = matplotlib.colormaps["YlGnBu"]
COLOURS = [_MAP(0.12 + 0.88 * level / (len(BOUNDS) - 2)) for level in range(len(BOUNDS) - 1)]
_ACROSS = 3  # panels
_WRAP = 38  # letters of a line above a panel
_LEFT_OUT = "0.93"  # grey of a group that is not drawn

# What a method means to sample; of another one, the first line of its documentation.
INTENDED = {
    "uniform": "every subnet alike, from first to last",
    "growtas": "groups let in from small to large, uniform among those let in",
    "growtas+": "briefly, after growtas: the groups above the frozen one, uniform",
    "prenas": "a few subnets that a score of the untrained weights picks",
    "focusformer": "uniform at first, then what a learned sampler prefers for a budget",
    "shrinking": "the largest first, then ever smaller choices as well",
    "single": "one subnet only",
}


class SamplingStrategies(Analysis):
    """Figure F. Its tables:

    - ``draws``: of every method, per span of epochs and of parameters, the subnets drawn and their share of
      the span of epochs in per cent; spans without a draw are left out;
    - ``intended``: per method and span of epochs the groups that may be drawn, and how: ``uniform``,
      ``chosen`` (some of the group's subnets) or ``learned``;
    - ``groups``: per method and stage the share of every group among the draws, in per cent;
    - ``methods``: draws, different subnets, mean parameters, and the share of subnets in the lower half of
      the space's range of parameters, in the first and in the second half of the run;
    - ``candidates``: the subnets of methods that draw few.
    """

    name = "figure-f"
    title = "How each method samples"
    question = (
        "Methods of training a supernet differ in which subnet a step trains. What does each of them draw "
        "over a run?"
    )
    published = (
        "The paper's figure is a sketch: AutoFormer trains all subnets uniformly and optimises none of them "
        "well; PreNAS picks a small set of candidates and trains these alone; FocusFormer shifts towards "
        "subnets of high quality while it trains; GrowTAS widens the range of sizes step by step and serves "
        "all subnets, the small ones above all."
    )

    compares = True

    @classmethod
    def make(cls, workspace: Workspace) -> SamplingStrategies:
        """Of the comparison's cells of the first seed."""
        recorded = comparison_in(workspace.comparison)
        cells = [(spec, seed) for spec, seed in read_cells(recorded) if seed == 0]
        return sampling_strategies({str(spec): recorded.plan.cell_path(spec, seed) for spec, seed in cells})

    def findings(self) -> list[str]:
        facts, table = self.facts, self.tables["methods"]
        low, high = facts["params"]
        halves = []
        for row in table.records():
            shares = (row["small_first_half"], row["small_second_half"])
            told = " and ".join(f"{share:.0f} %" for share in shares if share is not None)
            halves.append(f"{row['method']} {told}")
        sentences = [
            f"Share of the draws with at most {(low + high) / 2:,.0f} parameters, the middle of the range "
            f"from {low:,} to {high:,}, in the first and in the second half of the run: {', '.join(halves)}."
        ]
        sentences += [
            _of_method(self, row["method"], row["draws"], row["different"]) for row in table.records()
        ]
        thinned = [f"{name} (one in {every})" for name, every in facts["log_every"].items() if every > 1]
        if thinned:
            sentences.append(f"Not every step is in the log of {', '.join(thinned)}.")
        return sentences

    def draw(self) -> dict[str, Drawing]:
        names = list(self.facts["methods"])
        across = min(_ACROSS, len(names))
        down = math.ceil(len(names) / across)
        shape = {"squeeze": False, "height_ratios": (1, 4.5) * down}
        figure, axes = new_figure(3.35 * down + 0.3, 2 * down, across, **shape)
        for place in range(down * across):
            row, column = divmod(place, across)
            strip, chart = axes[2 * row, column], axes[2 * row + 1, column]
            if place < len(names):
                _panel(self, names[place], strip, chart, first=column == 0)
            else:
                strip.set_axis_off(), chart.set_axis_off()
        _legend(figure, axes[-1, -1] if down * across > len(names) else None)
        seeds = ", ".join(map(str, sorted(set(self.facts["seeds"].values()))))
        caption = (
            f"What one run of every method (seed {seeds}) drew, counted in its log: colour is the share of a "
            "cell's subnets among all draws of its epochs. The strips above say which groups the method may "
            "draw from; dashed lines are where that changes."
        )
        if self.tables["candidates"].rows:
            caption += (
                " Of methods that draw a few subnets alone, each is one bar, with its share of all draws."
            )
        alt = (
            f"Maps of the parameters of drawn subnets over epochs for {', '.join(names)}; each below a strip "
            "of the groups that the method may draw from."
        )
        return {"": Drawing(figure, caption, alt)}


class _Draw(NamedTuple):
    """A subnet that a step trained, and its parameters."""

    epoch: int
    stage: int
    group: int
    subnet: str
    size: int


def sampling_strategies(runs: Mapping[str, Run | str | os.PathLike]) -> SamplingStrategies:
    """Figure F, from what runs have drawn.

    Args:
        runs: finished runs in one space, or their folders, by the names that the figure calls them. Every
            subnet that a step trained counts; of a run with ``log_every`` over 1, every subnet in its log.

    Raises:
        UsageError: none is given, a folder holds no run or no step, or the spaces differ.

    Source:
        GrowTAS (arXiv 2512.12296), supplement, Figure F, which is a sketch; counting is our own.
    """
    opened = {name: Run.open(run) for name, run in runs.items()}
    if not opened:
        raise UsageError("Give at least one run, such as {'uniform': 'runs/uniform'}.")
    first = next(iter(opened.values()))
    for name, run in opened.items():
        if (run.space, run.num_classes) != (first.space, first.num_classes):
            raise UsageError(
                f"The run {name!r} is of another space or data than {next(iter(opened))!r}: their subnets "
                "cannot be drawn in one figure."
            )
    space = first.space
    low, high = cost.parameter_range(space, first.num_classes)
    edges = [low + (high - low) * i / ROWS for i in range(ROWS + 1)]
    tables: dict[str, list[tuple]] = {name: [] for name in _COLUMNS}
    for name, run in opened.items():
        draws = _read(run)
        found = {
            "draws": _map(draws, _spans(run), edges),
            "intended": _intended(run),
            "groups": _shares(draws, space.groups),
            "methods": [_overview(run, draws, (low + high) / 2)],
            "candidates": _candidates(draws),
        }
        for key, rows in found.items():
            tables[key] += ((name, *row) for row in rows)
    facts = {
        "space": space.name,
        "axis": space.group_axis,
        "groups": list(space.groups),
        "params": [low, high],
        "methods": {name: run.config.method for name, run in opened.items()},
        "intended": {name: _meant(run) for name, run in opened.items()},
        "log_every": {name: run.config.log_every for name, run in opened.items()},
        "seeds": {name: run.config.seed for name, run in opened.items()},
    }
    return SamplingStrategies({name: Table.of(_COLUMNS[name], rows) for name, rows in tables.items()}, facts)


_COLUMNS = {
    "draws": ("method", "epoch_from", "epoch_to", "params_from", "params_to", "draws", "share"),
    "intended": ("method", "epoch_from", "epoch_to", "group", "how"),
    "groups": ("method", "stage", "epoch_from", "epoch_to", "group", "draws", "share"),
    "methods": (
        *("method", "epochs", "draws", "different", "mean_params_first_half", "mean_params_second_half"),
        *("small_first_half", "small_second_half"),
    ),
    "candidates": ("method", "subnet", "params", "draws", "share"),
}


def _read(run: Run) -> list[_Draw]:
    sizes = functools.cache(lambda text: cost.parameters(parse_subnet(text), run.space, run.num_classes))
    check_whole(run.path)
    draws = [
        _Draw(record["epoch"], record["stage"], group, subnet, sizes(subnet))
        for record in read_log(run.path, "draw")
        for group, subnet in zip(record["group"], record["subnets"], strict=True)
    ]
    if not draws:
        raise UsageError(f"The log of {run.path} holds no step: nothing was drawn there.")
    return draws


def _map(draws: Sequence[_Draw], starts: Sequence[int], edges: Sequence[float]) -> list[tuple[float, ...]]:
    """Draws per span of epochs and of parameters, and their share of the span of epochs in per cent.

    Args:
        draws: of a run.
        starts: first epochs of the spans, and the end of the last one.
        edges: of the spans of parameters.
    """
    columns = [bisect.bisect_right(starts, draw.epoch) - 1 for draw in draws]
    rows = [min(bisect.bisect_right(edges, draw.size), len(edges) - 1) - 1 for draw in draws]
    counts, totals = Counter(zip(columns, rows, strict=True)), Counter(columns)
    return [
        (*starts[column : column + 2], *edges[row : row + 2], count, 100 * count / totals[column])
        for (column, row), count in sorted(counts.items())
    ]


def _candidates(draws: Sequence[_Draw]) -> list[tuple]:
    """The subnets of a method that draws few, by size, and their share of all draws in per cent."""
    counts = Counter((draw.size, draw.subnet) for draw in draws)
    if len(counts) > FEW:
        return []
    found = sorted(counts.items(), key=lambda item: item[0][0])
    return [(subnet, size, count, 100 * count / len(draws)) for (size, subnet), count in found]


def _spans(run: Run) -> list[int]:
    """First epochs of about :data:`COLUMNS` spans, parted where a stage begins as well; and the end."""
    length = run.config.epochs
    width = -(-length // COLUMNS)  # whole epochs
    stages = (record["epoch"] for record in read_log(run.path, "stage"))
    return sorted({*range(0, length, width), *stages, length})


def _intended(run: Run) -> list[tuple]:
    """Epochs and groups that a run's stages allow, and how its method draws from them."""
    stages = list(read_log(run.path, "stage"))
    ends = [record["epoch"] for record in stages[1:]] + [run.config.epochs]
    values, steps = run.space.groups, run.steps_per_epoch
    found = []
    for record, end in zip(stages, ends, strict=True):
        spans = [(record["epoch"], end, "uniform")]
        groups = record["groups"]
        if "preferred" in record:
            spans = [(record["epoch"], end, "chosen")]
            subnets = (parse_subnet(each["subnet"]) for each in record["preferred"])
            groups = sorted({run.space.group_of(subnet) for subnet in subnets})
        elif "phase" in record and end < run.config.epochs:  # of progressive shrinking: not all choices yet
            spans = [(record["epoch"], end, "chosen")]
        elif "uniform_steps" in record:
            until = record["uniform_steps"] / steps
            spans = [(record["epoch"], until, "uniform"), (until, end, "learned")]
        found += [
            (*span, values[group], how) for *span, how in spans if span[0] < span[1] for group in groups
        ]
    return found


def _shares(draws: Sequence[_Draw], values: Sequence[int]) -> list[tuple]:
    """Share of every group among the draws of every stage, in per cent."""
    found = []
    for stage in sorted({draw.stage for draw in draws}):
        own = [draw for draw in draws if draw.stage == stage]
        counts = Counter(draw.group for draw in own)
        place = (stage + 1, own[0].epoch, own[-1].epoch + 1)
        found += (
            (*place, v, counts[group], 100 * counts[group] / len(own)) for group, v in enumerate(values)
        )
    return found


def _overview(run: Run, draws: Sequence[_Draw], middle: float) -> tuple:
    halves: list[list[int]] = [[], []]
    for draw in draws:
        halves[2 * draw.epoch >= run.config.epochs].append(draw.size)
    means = [sum(half) / len(half) if half else None for half in halves]
    small = [100 * sum(size <= middle for size in half) / len(half) if half else None for half in halves]
    return (run.config.epochs, len(draws), len({draw.subnet for draw in draws}), *means, *small)


def _meant(run: Run) -> str:
    """Describe the sampling that a run's method intends, in few words."""
    method = run.config.method
    if method == "uniform" and "group_weights" in run.config.method_options:
        return "groups by their weights, every subnet of one alike"
    if method in INTENDED:
        return INTENDED[method]
    from growtas.methods import method_names
    from growtas.methods.base import registered

    method_names()  # so that every method is registered
    described = inspect.getdoc(registered().get(method)) or ""
    return described.partition("\n")[0].rstrip(".")


def _of_method(found: SamplingStrategies, name: str, draws: int, different: int) -> str:
    """Summarise the draws of one method: how many, of which groups and when, and which if they are few."""
    facts, groups = found.facts, found.tables["groups"].where(method=name)
    text = f"{name} drew {draws:,} times, {different:,} different subnets"
    stages = [list(rows) for _, rows in itertools.groupby(groups.rows, key=lambda row: row[1])]
    if len(stages) > _MOST_STAGES:
        text += f", in {len(stages)} stages of which the first and the last are told"
        stages = [stages[0], stages[-1]]
    parts = []
    for stage in stages:
        shares = ", ".join(f"{row[-1]:.1f} %" for row in stage)
        first, last = stage[0][2], stage[0][3] - 1
        parts.append(f"{shares} from epoch {first} to {last}")
    values = ", ".join(str(value) for value in facts["groups"])
    text += f"; of {facts['axis']} {values}: {'; '.join(parts)}"
    few = found.tables["candidates"].where(method=name)
    if few.rows:
        sizes = ", ".join(f"{params:,}" for params in few.column("params"))
        text += f". The few have {sizes} parameters"
    return f"{text}."


# -- the picture -----------------------------------------------------------------------------------------


def _panel(found: SamplingStrategies, name: str, strip: Axes, chart: Axes, first: bool) -> None:
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


def _strip(found: SamplingStrategies, name: str, axes: Axes, epochs: int) -> None:
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
