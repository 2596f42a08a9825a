"""``growtas.report``: every figure and table of the paper, for one space and one data set, on one page."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from growtas import atomic, bounds
from growtas.analysis import parts
from growtas.analysis.base import Analysis
from growtas.analysis.plan import PLAN_NAME, WORK, workspace_for, write_plan
from growtas.analysis.workspace import SEEDS, SUBNETS, Workspace
from growtas.errors import UsageError
from growtas.jobs import Job, Placement, Runner
from growtas.jobs.folder import finished, written
from growtas.locks import locked
from growtas.space import preset_names
from growtas.training.config import RUNTIME, TrainConfig
from growtas.training.run import Run

if TYPE_CHECKING:
    from growtas.analysis.page import Section
    from growtas.space import Space

PAGE_NAME, FIGURES = "report.html", "figures"


@dataclass(frozen=True, repr=False)
class Report:
    """The result of :func:`growtas.report`.

    Args:
        path: of the page.
        parts: on it, by name.
        missing: parts that are not on it, with the reason.
        failed: networks and parts that failed in this call, with the reason.
    """

    path: Path
    parts: Mapping[str, Analysis] = field(hash=False)
    missing: Mapping[str, str] = field(hash=False)
    failed: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        return f"Report({str(self)})"

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.parts)} of {len(parts.part_names())} figures and tables"]
        for name, made in self.parts.items():
            lines.append(f"  {name:<12} {made.findings()[0]}")
        lines += [f"  {name:<12} left out: {reason}" for name, reason in self.missing.items()]
        return "\n".join(lines)


@bounds.bounded(
    epochs=bounds.EPOCHS,
    seeds=bounds.RUNS,
    subnets=bounds.SUBNETS,
    jobs=bounds.SOME_PROCESSES,
    ranks=bounds.SOME_PROCESSES,
)
def report(
    run: str | Path | Run | None = None,
    *,
    out: str | os.PathLike | None = None,
    space: str | Path | Space | None = None,
    data: str | None = None,
    only: Sequence[str] | None = None,
    epochs: int | None = None,
    seeds: int | None = None,
    subnets: int | None = None,
    settings: Sequence[str] | None = None,
    jobs: int | None = None,
    device: str = "auto",
    ranks: int = 1,
    slurm: Sequence[str] | None = None,
) -> Report:
    """Make the paper's figures and tables for a space and a data set, and one page of them.

    Networks that a figure needs are trained first: the smallest subnet alone, the largest alone, uniform and
    GrowTAS along which interference is measured, every method for the table. Each is kept, as is every
    figure's data: a call with the same folder goes on where one was stopped, and trains nothing twice.

    Args:
        run: the folder of a finished run whose space, data and recipe are used, and whose sampling is shown;
            the page lies in it. Without one, give out.
        out: the folder of the report; report.html, figures/ and report/ (what they are made from) are written
            there (the run's).
        space: a preset or the path of a YAML file (the preset that is called like the data).
        data: as in growtas.train (digits where no space is given either).
        only: make these parts alone, such as figure-1 or table-a (all).
        epochs: of every network (the run's, or the recipe's).
        seeds: of the networks that interference is measured along, and of the comparison of methods (3).
        subnets: drawn for figures 1, C and E (100).
        settings: of training, the same for every network, such as batch_size=64.
        jobs: networks or parts at once (as many as GPUs; on a CPU as many as cores for small nets, else 1;
            with Slurm all of them).
        device: cpu, cuda for all visible GPUs, each job on one of its own, or one GPU such as cuda:1; auto is
            cuda where there are GPUs.
        ranks: processes that each network trains with, as torchrun starts them, each on a GPU of its own.
        slurm: submit every network and part to Slurm with these options of sbatch, such as time=240
            partition=gpu; time is needed.

    Returns:
        The page, and what is on it. What failed does not keep the rest from being made.

    Raises:
        UsageError: the folder holds something else or a report with other settings, the run is not finished,
            or a part is unknown. Nothing was trained.
        GrowtasError: a file is damaged, or the disk is full.
        growtas.training.guards.Interrupted: Ctrl-C or SIGTERM; call it again to continue.

    Source:
        GrowTAS (arXiv 2512.12296), figure 1, and figures A to G and table A of its supplement; interference
        is measured beyond it.

    Example:
        >>> report(data="digits", out="runs/evidence")  # doctest: +SKIP
    """
    opened = None if run is None else Run.open(run)
    if opened is None and out is None:
        raise UsageError("Give the folder of a run, or out=FOLDER for a report about a space and data alone.")
    placement = Placement.of(jobs, device, ranks, slurm)
    base = opened.path if out is None else Path(out)
    wanted = _wanted(only)
    given = (base, opened, space, data, epochs, seeds, subnets, settings, placement.device)
    before = written(base / WORK / PLAN_NAME)
    workspace = workspace_for(*given)
    again = f"Continue with: {command(workspace)}{placement.words()}"
    runner = Runner(placement.launcher(workspace.space, workspace.folder / "slurm"), again)
    with locked(workspace.folder / ".lock", f"Another process is making the report in {base}; wait."):
        if written(base / WORK / PLAN_NAME) != before:
            workspace = workspace_for(*given)
        write_plan(workspace)
        possible = [name for name in wanted if parts.part(name).reason(workspace) is None]
        return _page(workspace, _make(workspace, possible, runner, placement))


def _wanted(only: Sequence[str] | None) -> list[str]:
    """The parts to be made, in the order of the page."""
    if only is None:
        return list(parts.part_names())
    given = [only] if isinstance(only, str) else list(only)
    for name in given:
        parts.part(name)  # an unknown one is an error
    return [name for name in parts.part_names() if name in given]


# -- the work --------------------------------------------------------------------------------------------


def _make(
    workspace: Workspace, wanted: Sequence[str], runner: Runner, placement: Placement
) -> dict[str, str]:
    """Train what is not trained and make the parts that are not kept; what failed, with its reason."""
    kept = {name for name in wanted if parts.read(workspace, name) is not None}
    needed = {name: parts.part(name) for name in wanted if name not in kept}
    needed = dict(sorted(needed.items(), key=lambda item: not item[1].long))

    def run(kind: str, title: str, done: Mapping[str, bool]) -> dict[str, str]:
        jobs = []
        for name, is_done in done.items():
            arguments = {"base": str(workspace.base), "name": name, "device": workspace.device}
            arguments["ranks"] = placement.ranks
            output = workspace.folder / "output" / f"{kind}-{name}.txt"
            work = f"growtas.analysis.parts:make_{kind}"
            jobs.append(Job(f"{kind} {name}", work, arguments, output, done=is_done))
        return runner.run(jobs, title, kind)

    trained = {n: finished(workspace.network(n)) for p in needed.values() for n in p.networks(workspace)}
    failed = {} if all(trained.values()) else run("network", "train", trained)
    if any(part.compares for part in needed.values()):
        from growtas.analysis.methods_comparison import compare_for

        failed |= compare_for(workspace, placement).failed
    made = {
        name: False
        for name, part in needed.items()
        if not any(f"network {network}" in failed for network in part.networks(workspace))
    }
    return failed | run("part", "analyse", dict.fromkeys(kept, True) | made)


# -- the page --------------------------------------------------------------------------------------------


def _page(workspace: Workspace, failed: Mapping[str, str]) -> Report:
    """Draw what is kept, and write the page."""
    from growtas.analysis.page import Page, page_text

    base = workspace.base
    made: dict[str, Analysis] = {}
    missing: dict[str, str] = {}
    for name in parts.part_names():
        reason = parts.part(name).reason(workspace)
        kept = None if reason else parts.read(workspace, name)
        if kept is not None:
            made[name] = kept
        else:
            missing[name] = reason or _failure(workspace, name, failed)
    page = Page(
        title=f"GrowTAS on {workspace.config.data}: the evidence",
        intro=_intro(workspace),
        sections=[_section(base, name, each) for name, each in made.items()],
        missing=list(missing.items()),
        command=command(workspace, whole=True),
        foot=_foot(),
    )
    path = base / PAGE_NAME
    atomic.write_text(path, page_text(page))
    return Report(path, made, missing, dict(failed))


def _failure(workspace: Workspace, name: str, failed: Mapping[str, str]) -> str:
    """Why a part that could be made is not there."""
    needed = [f"network {network}" for network in parts.part(name).networks(workspace)]
    for piece in (*needed, f"part {name}"):
        if piece in failed:
            return f"{piece} failed: {failed[piece]}"
    return f"not made yet; {command(workspace)} --only {name}"


def _section(base: Path, name: str, analysis: Analysis) -> Section:
    """Draw an analysis, write its files, and give what the page shows of it."""
    from growtas.analysis.charts import save
    from growtas.analysis.page import Picture, Section

    folder = base / FIGURES
    atomic.make_folder(folder)
    pictures = []
    for suffix, drawing in analysis.drawings().items():
        file = folder / f"{'-'.join(filter(None, (name, suffix)))}.svg"
        text = save(drawing.figure, file, drawing.alt)
        pictures.append(Picture(text, drawing.caption, f"{FIGURES}/{file.name}"))
    numbers = []
    for table_name, table in analysis.tables.items():
        file = folder / f"{name}-{table_name.replace(' ', '-')}.csv"
        atomic.write_text(file, table.csv())
        numbers.append(f"{FIGURES}/{file.name}")
    return Section(
        name,
        analysis.title,
        analysis.question,
        pictures,
        list(analysis.shown().items()),
        analysis.findings(),
        analysis.published,
        numbers,
    )


def command(workspace: Workspace, whole: bool = False) -> str:
    """The command that continues a report; ``whole``: with everything that another folder would need."""
    base = workspace.base
    words = ["growtas", "report"]
    if workspace.source is not None:
        words.append(str(workspace.source.path))
        if workspace.source.path.resolve() != base.resolve():
            words += ["--out", str(base)]
    else:
        if whole:
            name = workspace.space.name
            words += ["--space", name if name in preset_names() else f"{name}.yaml"]
            words += ["--data", workspace.config.data]
        words += ["--out", str(base)]
    if whole:
        words += _given_settings(workspace)
        if workspace.seeds != SEEDS:
            words += ["--seeds", str(workspace.seeds)]
        if workspace.subnets != SUBNETS:
            words += ["--subnets", str(workspace.subnets)]
    return shlex.join(words)


def _given_settings(workspace: Workspace) -> list[str]:
    """The options that make a recipe, or a run's settings, into those of the report."""
    config, epochs = workspace.config, None
    if workspace.source is not None:
        plain = workspace.source.config
        if config.epochs != plain.epochs:
            epochs = config.epochs
            plain = dataclasses.replace(plain, epochs=epochs)
    else:
        own = {name: getattr(config, name) for name in ("space", "data", "method")}
        recipe = TrainConfig.from_dict(own).resolved(convolutional=workspace.convolutional)
        if config.epochs != recipe.epochs:
            epochs = config.epochs
        plain = TrainConfig.from_dict({**own, "epochs": config.epochs})  # a short run warms up for less
        plain = plain.resolved(convolutional=workspace.convolutional)
    apart = ("out", "initial", "resolutions", *RUNTIME)
    now, before = config.to_dict(), plain.to_dict()
    differing = {name: now[name] for name in now if now[name] != before[name] and name not in apart}
    words = [] if epochs is None else ["--epochs", str(epochs)]
    pairs = [f"{name}={value}" for name, value in differing.items()]
    return words + (["--settings", *pairs] if pairs else [])


def _intro(workspace: Workspace) -> list[str]:
    config, images = workspace.config, workspace.images
    axis = workspace.space.group_axis
    groups = ", ".join(str(value) for value in workspace.space.groups)
    return [
        "GrowTAS trains a supernet of vision transformers progressively: small subnets first, larger ones "
        "let in stage by stage. Its case rests on an asymmetry: a network that was trained small can be "
        "extended and keeps its accuracy, one that was trained large cannot be cropped. This page makes "
        "every figure and table of the paper that argues so again, on the data below, and measures what the "
        "paper argues without a figure: how much small and large subnets disagree about the weights they "
        "share.",
        f"Space: {workspace.space.name}, {workspace.space.count():,} subnets in "
        f"{len(workspace.space.groups)} groups ({axis} {groups}). Data: {config.data}, "
        f"{workspace.num_classes} classes, {images['train']:,} images to train on, {images['search']:,} held "
        f"out for searches, {images['test']:,} to test on. Networks of this space: {config.epochs} epochs, "
        f"batches of {config.batch_size}, {config.opt}, learning rate {config.lr:g}.",
        "The paper's numbers are from ImageNet and AutoFormer's spaces. On other data, what can be compared "
        "with them is the direction of an effect, not its size.",
    ]


def _foot() -> list[str]:
    import platform

    import torch

    from growtas.version import __version__

    return [
        f"growtas {__version__}, torch {torch.__version__}, Python {platform.python_version()}. Accuracies "
        "may differ in their last digits on another processor; times are those of the machine it ran on."
    ]
