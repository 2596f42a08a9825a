"""Figure F: which subnets each method draws, and when, counted in the logs of its runs."""

from __future__ import annotations

import bisect
import inspect
import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from growtas import cost
from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.workspace import Part, Workspace
from growtas.comparing.plan import read_plan
from growtas.comparing.summary import read_cells
from growtas.errors import UsageError
from growtas.subnet import parse_subnet
from growtas.training.log import read_log
from growtas.training.run import Run

COLUMNS, ROWS = 12, 12  # of the map, about: spans of epochs, and of parameters
_MOST_STAGES = 3  # that a sentence tells one by one
FEW = 12  # subnets; a method that draws no more is drawn subnet by subnet

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

    def drawings(self) -> dict[str, Drawing]:
        from growtas.analysis import sampling_charts

        return sampling_charts.strategies(self)

    def findings(self) -> list[str]:
        return _findings(self)


@dataclass(frozen=True)
class _Draws:
    """What a run drew: per draw its epoch, stage, group and subnet, at equal places."""

    epochs: Sequence[int]
    stages: Sequence[int]
    groups: Sequence[int]
    subnets: Sequence[str]


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
    params: dict[str, int] = {}
    tables: dict[str, list[tuple]] = {
        name: [] for name in ("draws", "intended", "groups", "methods", "candidates")
    }
    for name, run in opened.items():
        draws = _read(run)
        for text in draws.subnets:
            if text not in params:
                params[text] = cost.parameters(parse_subnet(text), space, run.num_classes)
        sizes = [params[text] for text in draws.subnets]
        tables["draws"] += ((name, *row) for row in _map(draws.epochs, sizes, _spans(run), edges))
        tables["intended"] += ((name, *row) for row in _intended(run))
        tables["groups"] += ((name, *row) for row in _shares(draws, space.groups))
        tables["methods"].append((name, *_overview(run, draws, sizes, (low + high) / 2)))
        counts = Counter(draws.subnets)
        if len(counts) <= FEW:
            found = sorted(counts.items(), key=lambda item: params[item[0]])
            total = len(draws.subnets)
            tables["candidates"] += ((name, s, params[s], n, 100 * n / total) for s, n in found)
    facts = {
        "space": space.name,
        "axis": space.group_axis,
        "groups": list(space.groups),
        "params": [low, high],
        "methods": {name: run.config.method for name, run in opened.items()},
        "intended": {name: _meant(run.config.method) for name, run in opened.items()},
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


def _read(run: Run) -> _Draws:
    epochs, stages, groups, subnets = [], [], [], []
    for record in read_log(run.path, "step"):
        count = len(record["subnets"])
        epochs += [record["epoch"]] * count
        stages += [record["stage"]] * count
        groups += record["group"]
        subnets += record["subnets"]
    if not subnets:
        raise UsageError(f"The log of {run.path} holds no step: nothing was drawn there.")
    return _Draws(epochs, stages, groups, subnets)


def _map(
    epochs: Sequence[int], sizes: Sequence[int], starts: Sequence[int], edges: Sequence[float]
) -> list[tuple[float, ...]]:
    """Draws per span of epochs and of parameters, and their share of the span of epochs in per cent.

    Args:
        epochs, sizes: of the draws.
        starts: first epochs of the spans, and the end of the last one.
        edges: of the spans of parameters.
    """
    columns = [bisect.bisect_right(starts, epoch) - 1 for epoch in epochs]
    rows = [min(bisect.bisect_right(edges, size), len(edges) - 1) - 1 for size in sizes]
    counts, totals = Counter(zip(columns, rows, strict=True)), Counter(columns)
    return [
        (*starts[column : column + 2], *edges[row : row + 2], count, 100 * count / totals[column])
        for (column, row), count in sorted(counts.items())
    ]


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


def _shares(draws: _Draws, values: Sequence[int]) -> list[tuple]:
    """Share of every group among the draws of every stage, in per cent."""
    found = []
    counts = Counter(zip(draws.stages, draws.groups, strict=True))
    for stage in sorted(set(draws.stages)):
        epochs = [e for e, s in zip(draws.epochs, draws.stages, strict=True) if s == stage]
        for group, value in enumerate(values):
            count = counts[stage, group]
            found.append((stage + 1, epochs[0], epochs[-1] + 1, value, count, 100 * count / len(epochs)))
    return found


def _overview(run: Run, draws: _Draws, sizes: Sequence[int], middle: float) -> tuple:
    halves = [[], []]
    for epoch, size in zip(draws.epochs, sizes, strict=True):
        halves[2 * epoch >= run.config.epochs].append(size)
    means = [sum(half) / len(half) if half else None for half in halves]
    small = [100 * sum(size <= middle for size in half) / len(half) if half else None for half in halves]
    return (run.config.epochs, len(sizes), len(set(draws.subnets)), *means, *small)


def _meant(method: str) -> str:
    """What a method means to sample, in few words."""
    if method in INTENDED:
        return INTENDED[method]
    from growtas.methods import method_names
    from growtas.methods.base import registered

    method_names()  # so that every method is registered
    described = inspect.getdoc(registered().get(method)) or ""
    return described.partition("\n")[0].rstrip(".")


# -- words -----------------------------------------------------------------------------------------------


def _findings(found: SamplingStrategies) -> list[str]:
    facts, table = found.facts, found.tables["methods"]
    low, high = facts["params"]
    halves = []
    for row in table.rows:
        name, first, second = row[0], row[-2], row[-1]
        shares = " and ".join(f"{share:.0f} %" for share in (first, second) if share is not None)
        halves.append(f"{name} {shares}")
    sentences = [
        f"Share of the draws with at most {(low + high) / 2:,.0f} parameters, the middle of the range from "
        f"{low:,} to {high:,}, in the first and in the second half of the run: {', '.join(halves)}."
    ]
    sentences += [_of_method(found, row[0], row[2], row[3]) for row in table.rows]
    thinned = [f"{name} (one in {every})" for name, every in facts["log_every"].items() if every > 1]
    if thinned:
        sentences.append(f"Not every step is in the log of {', '.join(thinned)}.")
    return sentences


def _of_method(found: SamplingStrategies, name: str, draws: int, different: int) -> str:
    """What one method drew: how many, of which groups and when, and which if they are few."""
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
        parts.append(f"{shares} in epoch{'' if first == last else 's'} {_to(first, last)}")
    values = ", ".join(str(value) for value in facts["groups"])
    text += f"; of {facts['axis']} {values}: {'; '.join(parts)}"
    few = found.tables["candidates"].where(method=name)
    if few.rows:
        sizes = ", ".join(f"{params:,}" for params in few.column("params"))
        text += f". The few have {sizes} parameters"
    return f"{text}."


def _to(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _make(workspace: Workspace) -> SamplingStrategies:
    """Of the comparison's cells of the first seed."""
    recorded = read_plan(workspace.comparison)
    if recorded is None:
        raise UsageError(f"{workspace.comparison} holds no comparison.")
    cells = [(spec, seed) for spec, seed in read_cells(recorded) if seed == 0]
    return sampling_strategies({str(spec): recorded.plan.cell_path(spec, seed) for spec, seed in cells})


PART = Part(SamplingStrategies, _make, compares=True)
