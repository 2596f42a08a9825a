"""Interference: whether small and large subnets pull the weights they share in one direction."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from growtas.analysis.base import Drawing, Table
from growtas.analysis.interference_tables import WHOLE, InterferenceTables
from growtas.analysis.workspace import Part, Workspace
from growtas.comparing.statistics import Interval, mean_interval, paired_interval
from growtas.errors import UsageError

if TYPE_CHECKING:
    from growtas.training.run import Run

METHODS = ("uniform", "growtas")


class GradientInterference(InterferenceTables):
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

    def drawings(self) -> dict[str, Drawing]:
        from growtas.analysis import interference_charts

        return interference_charts.drawings(self)

    def findings(self) -> list[str]:
        sentences = [_level(self, method) for method in self.methods]
        if len(self.methods) > 1:
            sentences.append(_difference(self, *self.methods[:2]))
        sentences += [text for method in self.methods if (text := _at_transition(self, method))]
        sentences.append(_signs_and_norms(self))
        sentences += [_layers(self, method) for method in self.methods]
        return sentences


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
    from growtas.training.log import read_log
    from growtas.training.run import Run

    opened = [Run.open(run) for run in runs]
    if not opened:
        raise UsageError("Give the folder of at least one run.")
    cosines, pairs, transitions = [], [], []
    for run in opened:
        _check_alike(opened[0], run)
        key = (run.config.method, run.config.seed)
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
    last, space = records[-1], opened[0].space
    facts = {
        "space": space.name,
        "data": opened[0].config.data,
        "epochs": opened[0].config.epochs,
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


def _check_alike(first: Run, run: Run) -> None:
    """Raises: UsageError: the runs cannot stand in one figure."""
    if (run.space.to_dict(), run.config.epochs) != (first.space.to_dict(), first.config.epochs):
        raise UsageError(
            f"{run.path} has {run.config.epochs} epochs on the space {run.space.name!r}, and {first.path} "
            f"{first.config.epochs} on {first.space.name!r}; give runs of one space and length."
        )


# -- findings --------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


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
            means[seed] = (_mean([cosine for cosine, _ in rows]), _mean(gaps) if gaps else None)
    return means


def _level(found: GradientInterference, method: str) -> str:
    """Where the cosine of a method lies, beside its control."""
    facts, course = found.facts, found.course(method)
    first, last = (_mean([cosine for cosine, _ in course[epoch]]) for epoch in (min(course), max(course)))
    text = (
        f"{method}: on the weights they share, the gradients of subnets of {facts['axis']} {facts['small']} "
        f"and {facts['large']} have a cosine of {first:.2f} at epoch {min(course)} and of {last:.2f} at "
        f"epoch {max(course)} (means of {_seeds(found.seeds(method))}, {facts['pairs']} pairs and "
        f"{facts['images']} images each)"
    )
    means = _by_seed(found, method)
    gaps = [gap for _, gap in means.values() if gap is not None]
    if not gaps:
        return f"{text}."
    gap, level = mean_interval(gaps), _mean([cosine for cosine, _ in means.values()])
    return (
        f"{text}. Along training it is {level:.2f} on average, {abs(gap.mean):.3f} "
        f"{'below' if gap.mean >= 0 else 'above'} that of two subnets of {facts['small']} "
        f"({facts['control_pairs']} pairs{_interval(gap)})."
    )


def _difference(found: GradientInterference, first: str, second: str) -> str:
    """Whether stages change the cosine, paired by seed."""
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
        f"that of {first}, paired over {_seeds(shared)}{decided}."
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
    before, after = (_mean(values) for values in zip(*changes, strict=True))
    return (
        f"{method}: from the last measurement before a transition to the first one after it the cosine goes "
        f"from {before:.2f} to {after:.2f} (means of {len(changes)} "
        f"{'transition' if len(changes) == 1 else 'transitions'}); before it no step trains large subnets."
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
        ratio = math.exp(_mean([math.log(value) for value in ratio if value > 0]))
        beside = f" ({100 * _mean(control):.1f} % of the control's)" if control else ""
        parts.append(
            f"{method} {100 * _mean(negative):.1f} % of the pairs{beside}; the large subnet's gradient is "
            f"{ratio:.2f} times as long as the small one's"
        )
    return "Gradients that point apart, with a cosine below zero: " + ". ".join(parts) + "."


def _layers(found: GradientInterference, method: str) -> str:
    """The layers that agree least and most, along training."""
    means = {}
    for layer in found.facts["layers"]:
        values = [c for epoch, each in found.course(method, layer).items() if epoch for c, _ in each]
        if values:
            means[layer] = _mean(values)
    if not means:
        return f"{method}: no layer was measured after training began."
    low, high = min(means, key=means.get), max(means, key=means.get)
    return (
        f"{method}, by layer: the gradients agree least in {low} ({means[low]:.2f}) and most in {high} "
        f"({means[high]:.2f}), means over training and {_seeds(found.seeds(method))}."
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}"


def _interval(value: Interval) -> str:
    """The interval of a mean as it stands behind it; nothing where there is none."""
    return "" if value.low is None else f"; 95 % interval {value.low:+.3f} to {value.high:+.3f}"


# -- the part of a report --------------------------------------------------------------------------------


def _networks(workspace: Workspace) -> tuple[str, ...]:
    return tuple(f"{method}-{seed}" for method in METHODS for seed in range(workspace.seeds))


def _make(workspace: Workspace) -> GradientInterference:
    return interference(workspace.run(name) for name in _networks(workspace))


def _reason(workspace: Workspace) -> str | None:
    if len(workspace.space.groups) < 2:
        return f"{workspace.space.name!r} has one group of subnets: there are no small and large ones."
    return None


PART = Part(GradientInterference, _make, _networks, reason=_reason)
