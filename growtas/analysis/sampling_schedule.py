"""Figure G: with which probability GrowTAS draws each group in each stage, counted and as it is meant."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.workspace import Part, Workspace
from growtas.comparing.statistics import CONFIDENCE
from growtas.errors import UsageError
from growtas.methods import Method, Stage
from growtas.methods.schedule import FIXED
from growtas.progress import track
from growtas.training.log import read_log
from growtas.training.run import Run
from growtas.training.run_method import create_run_method

STAGES = (1, 2, 3)
METHOD = "growtas"
_NETWORK = "growtas-0"
_COLUMNS = (
    *("schedule", "stage", "epoch_from", "epoch_to", "group"),
    *("draws", "of", "share", "low", "high", "meant"),
)


class SamplingSchedule(Analysis):
    """Figure G. Its tables:

    - ``schedules``: per schedule, stage and group the draws, those of the whole stage, their share with its
      interval, and the share that is meant. Schedules are ``run`` (counted in the log of the run) and
      ``K = 1``, ``K = 2``, ``K = 3`` (drawn by the method's own code for every step of such a run);
    - ``tests``: of each schedule the chi-square test of equal probabilities within the stages, and the draws
      of groups that their stage leaves out.
    """

    name = "figure-g"
    title = "GrowTAS' schedule of sampling"
    question = (
        "GrowTAS means to draw every group that a stage lets in with equal probability, and no other. Does "
        "it?"
    )
    published = (
        "The paper shows AutoFormer-T's three groups (embed_dim 192, 216 and 240) as bars per stage: each "
        "stage lets the next group in, and the active groups are drawn alike. With K = 2, the default, that "
        "is (1/2, 1/2, 0) and then (1/3, 1/3, 1/3); K = 1 is AutoFormer's own sampling, K = 3 begins with "
        "the first group alone. It shows the probabilities that are meant, not counted ones."
    )

    def drawings(self) -> dict[str, Drawing]:
        from growtas.analysis import sampling_schedule_charts

        return sampling_schedule_charts.drawings(self)

    def findings(self) -> list[str]:
        return _findings(self)


def sampling_schedule(run: Run | str | os.PathLike, stages: Sequence[int] = STAGES) -> SamplingSchedule:
    """Figure G, from a run of GrowTAS and from the method's own code.

    Of the subnets of a step, those that the method drew are counted, not the smallest and the largest that
    the sandwich rule or distillation add.

    Args:
        run: finished, of method ``growtas``, or its folder.
        stages: numbers K of stages for which the schedule of such a run is drawn besides; one that the space
            or the length of the run does not allow is left out, with the reason.

    Raises:
        UsageError: the run is of another method, or its log holds no step.

    Source:
        GrowTAS (arXiv 2512.12296), supplement, Figure G; counting, intervals (Wilson, "Probable inference",
        1927) and the chi-square test are our own.
    """
    run = Run.open(run)
    if run.config.method != METHOD:
        raise UsageError(
            f"The run {run.path} is of method {run.config.method!r}; figure G is of a run of {METHOD!r}."
        )
    own = tuple(Stage(tuple(record["groups"]), record["epoch"]) for record in read_log(run.path, "stage"))
    counts, differing = _counted(run, own)
    if not counts:
        raise UsageError(f"The log of {run.path} holds no step: nothing was drawn there.")
    schedules: dict[str, tuple[Counter, tuple[Stage, ...]]] = {"run": (counts, own)}
    left_out: dict[str, str] = {}
    same_as = None
    for number in stages:
        name = f"K = {number}"
        try:
            method = _method_of(run, number)
        except UsageError as error:
            left_out[name] = str(error)
            continue
        if [stage.groups for stage in method.stages] == [stage.groups for stage in own]:
            same_as = name
        schedules[name] = (_drawn(run, method, name), method.stages)
    facts = {
        "space": run.space.name,
        "data": run.config.data,
        "axis": run.space.group_axis,
        "groups": list(run.space.groups),
        "transition": run.config.transition,
        "epochs": run.config.epochs,
        "seed": run.config.seed,
        "log_every": run.config.log_every,
        "same_as": same_as,
        "differing": differing,
        "left_out": left_out,
    }
    tables = {
        "schedules": Table.of(
            _COLUMNS,
            ((name, *row) for name, found in schedules.items() for row in _rows(*found, run)),
        ),
        "tests": Table.of(
            ("schedule", "draws", "statistic", "degrees", "p", "outside"),
            ((name, sum(found[0].values()), *_chi_square(*found)) for name, found in schedules.items()),
        ),
    }
    return SamplingSchedule(tables, facts)


# -- counting --------------------------------------------------------------------------------------------


def _counted(run: Run, stages: tuple[Stage, ...]) -> tuple[Counter, int]:
    """Draws of every stage and group in a run's log, and the steps at which its method now draws others."""
    method = create_run_method(run)
    method.stages = stages  # as they began; a rule may have decided during the run
    count, differing, counts = run.config.subnets_per_step, 0, Counter()
    for record in track(read_log(run.path, "step"), "count draws", "step", run.steps):
        counts.update((record["stage"], group) for group in record["group"][-count:])
        differing += record["subnets"] != [str(subnet) for subnet in method.subnets(record["step"])]
    return counts, differing


def _method_of(run: Run, stages: int) -> Method:
    """GrowTAS with so many stages in a run of the same length; its rule of transitions needs no run."""
    rule = run.config.transition if run.config.transition in FIXED else FIXED[0]
    settings = {"stages": stages, "transition": rule, "method_options": ""}
    return create_run_method(dataclasses.replace(run, config=dataclasses.replace(run.config, **settings)))


def _drawn(run: Run, method: Method, name: str) -> Counter:
    """What a method draws at every step of a run, by stage and group."""
    count, counts = run.config.subnets_per_step, Counter()
    for step in track(range(run.steps), f"draw {name}", "step"):
        stage = method.stage_of(step)
        counts.update((stage, run.space.group_of(subnet)) for subnet in method.subnets(step)[-count:])
    return counts


def _rows(counts: Counter, stages: Sequence[Stage], run: Run) -> list[tuple]:
    ends = [stage.first_epoch for stage in stages[1:]] + [run.config.epochs]
    found = []
    for number, (stage, end) in enumerate(zip(stages, ends, strict=True)):
        total = sum(count for (where, _), count in counts.items() if where == number)
        for group, value in enumerate(run.space.groups):
            count = counts[number, group]
            meant = 1 / len(stage.groups) if group in stage.groups else 0.0
            place = (number + 1, stage.first_epoch, end, value)
            found.append((*place, count, total, *share_interval(count, total), meant))
    return found


def share_interval(count: int, total: int) -> tuple[float | None, float | None, float | None]:
    """A share with its 95 % confidence interval by Wilson's formula; nothing of nothing.

    Example:
        >>> [round(value, 4) for value in share_interval(5, 10)]
        [0.5, 0.2366, 0.7634]
    """
    if not total:
        return None, None, None
    share, z = count / total, NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    # at none and at all an end is exact; rounding must not put it on the wrong side of the share
    return share, max(0.0, middle - half) if count else 0.0, min(1.0, middle + half) if count < total else 1.0


def _chi_square(counts: Counter, stages: Sequence[Stage]) -> tuple[float, int, float | None, int]:
    """Pearson's test of equal probabilities within every stage: statistic, degrees of freedom, p, and the
    draws of groups that their stage leaves out."""
    statistic, degrees, outside = 0.0, 0, 0
    for number, stage in enumerate(stages):
        inside = [counts[number, group] for group in stage.groups]
        total = sum(count for (where, _), count in counts.items() if where == number)
        outside += total - sum(inside)
        if sum(inside):
            expected = sum(inside) / len(inside)
            statistic += sum((count - expected) ** 2 for count in inside) / expected
            degrees += len(inside) - 1
    return statistic, degrees, chi_square_tail(statistic, degrees) if degrees else None, outside


def chi_square_tail(statistic: float, degrees: int) -> float:
    """The probability of a chi-square variable above a value.

    Example:
        >>> round(chi_square_tail(3.841, 1), 3)
        0.05
    """
    import torch

    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


# -- words -----------------------------------------------------------------------------------------------


def _findings(found: SamplingSchedule) -> list[str]:
    facts, table = found.facts, found.tables["schedules"]
    sentences = [_of_run(found)]
    if not facts["differing"]:
        sentences.append("Drawn again by the method's code, every step of the log has the same subnets.")
    else:
        sentences.append(
            f"Drawn again by the method's code, {facts['differing']:,} steps of the log have other subnets: "
            "the run was made by another version."
        )
    for name, draws, *test in found.tables["tests"].rows:
        if name != "run" and name != facts["same_as"]:
            own = table.where(schedule=name)
            sentences.append(f"{name}, drawn for every step of such a run. {_of_test(own, draws, *test)}")
    sentences += [f"{name} was left out: {reason}" for name, reason in facts["left_out"].items()]
    return sentences


def _of_run(found: SamplingSchedule) -> str:
    """What was counted in the run, stage by stage, and how far it is from what is meant."""
    own = found.tables["schedules"].where(schedule="run")
    parts = []
    for stage in dict.fromkeys(own.column("stage")):
        rows = own.where(stage=stage)
        first, end = rows.column("epoch_from")[0], rows.column("epoch_to")[0]
        shares = ", ".join(_percent(share) for share in rows.column("share"))
        parts.append(f"{shares} in stage {stage} ({_epochs(first, end - 1)}, {rows.column('of')[0]:,} draws)")
    values = ", ".join(str(value) for value in found.facts["groups"])
    _, draws, *test = found.tables["tests"].where(schedule="run").rows[0]
    return (
        f"The run (seed {found.facts['seed']}) drew {found.facts['axis']} {values}: {'; '.join(parts)}. "
        f"{_of_test(own, draws, *test)}"
    )


def _epochs(first: int, last: int) -> str:
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _of_test(own: Table, draws: int, statistic: float, degrees: int, p: float | None, outside: int) -> str:
    """The largest deviation and the test, in words."""
    at = {name: place for place, name in enumerate(own.columns)}
    row = max(
        (row for row in own.rows if row[at["share"]] is not None),
        key=lambda row: abs(row[at["share"]] - row[at["meant"]]),
    )
    deviation = 100 * (row[at["share"]] - row[at["meant"]])
    text = (
        f"The largest deviation from what is meant is {deviation:+.1f} points (group "
        f"{row[at['group']]} in stage {row[at['stage']]}, {row[at['of']]:,} draws)"
    )
    left_out = "no draw is" if not outside else f"{outside:,} of {draws:,} draws are"
    text += f"; {left_out} of a group that its stage leaves out"
    if p is None:
        return f"{text}."
    return (
        f"{text}. By chance alone, equal probabilities give counts this uneven with p = {p:.2f} (chi-square "
        f"{statistic:.2f}, {degrees} degrees of freedom)."
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


# -- in a report -----------------------------------------------------------------------------------------


def _shown_run(workspace: Workspace) -> Run | None:
    """The run that the report is about, where it is one of GrowTAS."""
    source = workspace.source
    return source if source is not None and source.config.method == METHOD else None


def _networks(workspace: Workspace) -> tuple[str, ...]:
    return () if _shown_run(workspace) is not None else (_NETWORK,)


def _make(workspace: Workspace) -> SamplingSchedule:
    return sampling_schedule(_shown_run(workspace) or workspace.run(_NETWORK))


PART = Part(SamplingSchedule, _make, networks=_networks)
