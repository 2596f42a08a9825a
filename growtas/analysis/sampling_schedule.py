"""Figure G: the probability with which GrowTAS draws each group in each stage, counted and as it is meant."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import group_colour, new_figure
from growtas.comparing.statistics import CONFIDENCE
from growtas.errors import UsageError
from growtas.methods import Method, Stage
from growtas.methods.schedule import FIXED
from growtas.progress import track
from growtas.training.log import check_whole, read_log
from growtas.training.run import Run
from growtas.training.run_method import create_run_method

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from growtas.analysis.workspace import Workspace

STAGES = (1, 2, 3)
METHOD = "growtas"
_NETWORK = "growtas-0"
_SPREAD = 0.8  # of the room of a stage that the groups share
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

    @classmethod
    def networks(cls, workspace: Workspace) -> tuple[str, ...]:
        return (_NETWORK,) if _own_run(workspace) is None else ()

    @classmethod
    def make(cls, workspace: Workspace) -> SamplingSchedule:
        return sampling_schedule(_own_run(workspace) or workspace.run(_NETWORK))

    def panels(self) -> list[str]:
        """The schedules that are drawn: where the run has K stages, its counts stand for those of that K."""
        names, same = self.tables["schedules"].values("schedule"), self.facts["same_as"]
        return names if same is None else ["run" if name == same else name for name in names if name != "run"]

    def findings(self) -> list[str]:
        facts, table = self.facts, self.tables["schedules"]
        sentences = [_of_run(self)]
        if not facts["differing"]:
            sentences.append("Drawn again by the method's code, every step of the log has the same subnets.")
        else:
            sentences.append(
                "The run was made by another version: drawn again by the method's code, not every step of "
                f"the log has the same subnets (others: {facts['differing']:,})."
            )
        for test in self.tables["tests"].records():
            name = test["schedule"]
            if name not in ("run", facts["same_as"]):
                said = _of_test(table.where(schedule=name), test)
                sentences.append(f"{name}, drawn for every step of such a run. {said}")
        return sentences + [f"{name} was left out: {reason}" for name, reason in facts["left_out"].items()]

    def draw(self) -> dict[str, Drawing]:
        facts, schedules, names = self.facts, self.tables["schedules"], self.panels()
        tables = [schedules.where(schedule=name) for name in names]
        widths = [1 + len(table.values("stage")) for table in tables]
        figure, (row,) = new_figure(3.3, columns=len(names), squeeze=False, width_ratios=widths, sharey=True)
        for axes, name, table in zip(row, names, tables, strict=True):
            _panel(axes, table, facts["groups"])
            title = f"{facts['same_as'] or 'stages of its own'}: the run" if name == "run" else name
            axes.set_title(title, fontweight="bold" if name == "run" else "normal")
        ticks = sorted({0.0, 1.0, *schedules.column("meant")})
        row[0].set(ylabel="share of draws", ylim=(0, 1.12))
        row[0].set_yticks(ticks, [_fraction(tick) for tick in ticks])
        handles = [
            Patch(facecolor=group_colour(group), label=f"{facts['axis']} {value}")
            for group, value in enumerate(facts["groups"])
        ]
        handles += [
            Line2D([], [], color="black", linewidth=2, label="meant"),
            Line2D([], [], color="0.25", linewidth=1, marker="_", label="95 % interval"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
        drawn = dict(zip(*map(self.tables["tests"].column, ("schedule", "draws")), strict=True))
        others = [name for name in names if name != "run"]
        caption = (
            "Share of every group among the draws of each stage, in per cent above the bars. The run: "
            f"{drawn['run']:,} draws counted in its log ({facts['data']}, {facts['epochs']} epochs, seed "
            f"{facts['seed']})."
        )
        if others:
            caption += (
                f" {', '.join(others)}: {drawn[others[0]]:,} draws each of the method's own code, one for "
                "every step of such a run."
            )
        caption += " Whiskers are Wilson's 95 % intervals; black lines are the probabilities that are meant."
        alt = (
            "Bars of sampling probability per stage and group: counted in a run of GrowTAS, and for "
            f"{', '.join(others)}; each beside the probability that is meant."
        )
        return {"": Drawing(figure, caption, alt)}


def _own_run(workspace: Workspace) -> Run | None:
    """The run that the report is about, where it is one of GrowTAS."""
    source = workspace.source
    return source if source is not None and source.config.method == METHOD else None


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
    check_whole(run.path)
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
    for record in track(read_log(run.path, "draw"), "count draws", "step", run.steps):
        counts.update((record["stage"], group) for group in record["group"][-count:])
        differing += record["subnets"] != [str(subnet) for subnet in method.subnets(record["step"])]
    return counts, differing


def _method_of(run: Run, stages: int) -> Method:
    """GrowTAS with so many stages in a run of the same length; its rule of transitions needs no run."""
    rule = run.config.transition if run.config.transition in FIXED else FIXED[0]
    settings = {"stages": stages, "transition": rule, "method_options": ""}
    return create_run_method(dataclasses.replace(run, config=dataclasses.replace(run.config, **settings)))


def _drawn(run: Run, method: Method, name: str) -> Counter:
    """The draws of a method at every step of a run, by stage and group."""
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


# -- sentences and the picture ---------------------------------------------------------------------------


def _of_run(found: SamplingSchedule) -> str:
    """The draws of the run, stage by stage, and how far they are from what is meant."""
    own, parts = found.tables["schedules"].where(schedule="run"), []
    for stage in own.values("stage"):
        rows = own.where(stage=stage).records()
        shares = ", ".join("-" if r["share"] is None else f"{100 * r['share']:.1f} %" for r in rows)
        span = f"from epoch {rows[0]['epoch_from']} to {rows[0]['epoch_to'] - 1}"
        parts.append(f"{shares} in stage {stage} ({span}, {rows[0]['of']:,} draws)")
    values = ", ".join(str(value) for value in found.facts["groups"])
    (test,) = found.tables["tests"].where(schedule="run").records()
    return (
        f"The run (seed {found.facts['seed']}) drew {found.facts['axis']} {values}: {'; '.join(parts)}. "
        f"{_of_test(own, test)}"
    )


def _of_test(own: Table, test: dict[str, Any]) -> str:
    """The largest deviation and the test, in words."""
    row = max(
        (row for row in own.records() if row["share"] is not None),
        key=lambda row: abs(row["share"] - row["meant"]),
    )
    text = (
        f"The largest deviation from what is meant is {100 * (row['share'] - row['meant']):+.1f} points "
        f"(group {row['group']} in stage {row['stage']}, {row['of']:,} draws); draws of a group that its "
        f"stage leaves out: {test['outside']:,} of {test['draws']:,}."
    )
    if test["p"] is not None:
        text += (
            f" By chance alone, equal probabilities give counts this uneven with p = {test['p']:.2f} "
            f"(chi-square {test['statistic']:.2f}, {test['degrees']} degrees of freedom)."
        )
    return text


def _panel(axes: Axes, table: Table, groups: list[int]) -> None:
    stages = table.values("stage")
    width = _SPREAD / len(groups)
    for row in table.records():
        share, meant = row["share"], row["meant"]
        if share is None:
            continue
        group = groups.index(row["group"])
        x = stages.index(row["stage"]) + width * (group + 0.5) - _SPREAD / 2
        axes.bar(x, share, 0.88 * width, color=group_colour(group))
        axes.hlines(meant, x - 0.47 * width, x + 0.47 * width, color="black", linewidth=2, zorder=3)
        ends = [[share - row["low"]], [row["high"] - share]]
        axes.errorbar(x, share, ends, color="0.25", linewidth=1, capsize=2, zorder=4)
        axes.annotate(
            f"{100 * share:.1f}", (x, max(row["high"], meant)), xytext=(0, 3), textcoords="offset points",
            ha="center", fontsize=8,
        )  # fmt: skip
    begins = [table.where(stage=stage).column("epoch_from")[0] for stage in stages]
    labels = [f"stage {stage}\nfrom epoch {begin}" for stage, begin in zip(stages, begins, strict=True)]
    axes.set_xticks(range(len(stages)), labels, fontsize=8)
    axes.set_xlim(-0.55, len(stages) - 0.45)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _fraction(probability: float) -> str:
    """Such as ``1/3``: a group is drawn with one over the number of active groups, or not at all."""
    return f"{probability:g}" if probability in (0, 1) else f"1/{round(1 / probability)}"
