"""The settings of a report, kept in its folder: what is given later must agree with them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas import atomic
from growtas.analysis.networks import ofa_space_for
from growtas.analysis.workspace import SEEDS, SUBNETS, Workspace
from growtas.comparing.specs import common_settings
from growtas.errors import UsageError, command
from growtas.jobs import folder
from growtas.jobs.folder import FORMAT, check_counts, space_and_data, write_json
from growtas.space import MobileNetSpace, Space, load_space, space_from_dict
from growtas.training.config import RUNTIME, TrainConfig
from growtas.training.data import splits_of
from growtas.training.run import CONFIG_NAME, Run

PLAN_NAME = "report.json"
WORK = "report"  # the folder, beside the page, of what the page is made from


def workspace_for(
    base: Path,
    run: Run | None,
    space: str | Path | Space | None,
    data: str | None,
    epochs: int | None,
    seeds: int | None,
    subnets: int | None,
    settings: Sequence[str] | Mapping[str, Any] | None,
    device: str,
) -> Workspace:
    """The report of a folder, begun or continued.

    Args:
        base: the folder that the page lies in.
        run: finished, that the report is about.
        space, data, epochs, seeds, subnets, settings: as :func:`growtas.report` takes them.
        device: to compute on.

    Raises:
        UsageError: the folder holds something else or a report with other settings, or a setting is not
            possible. Nothing was written.
        GrowtasError: the folder's plan is damaged.
    """
    check_counts({"seeds": seeds, "subnets": subnets}, {"seeds": 1, "subnets": 1})
    held = read_plan(base, device)
    given = {"epochs": epochs, **common_settings(settings or ())}
    given = {name: value for name, value in given.items() if value is not None}
    if held is not None:
        wanted = {"data": (held.config.data, data), "seeds": (held.seeds, seeds)}
        wanted |= {"subnets": (held.subnets, subnets)}
        wanted |= {n: (getattr(held.config, n), value) for n, value in given.items() if n not in RUNTIME}
        if space is not None:
            wanted["space"] = (held.space.to_dict(), load_space(space).to_dict())
        if run is not None:
            wanted["run"] = (held.source and held.source.path.resolve(), run.path.resolve())
        _check_same(base, wanted)
        return held
    _check_free(base, run)
    if run is not None:
        _check_of_run(run, space, data)
        found, config = run.space, dataclasses.replace(run.config, **given)
    else:
        found, data = space_and_data(space, data)
        config = TrainConfig.from_dict({"method": "growtas", **given, "space": found.name, "data": data})
        config = config.resolved(convolutional=isinstance(found, MobileNetSpace))
    splits = splits_of(config, found)
    return Workspace(
        folder=base / WORK,
        config=dataclasses.replace(config, out=None, initial=None, resolutions=None),
        space=found,
        ofa_space=found if isinstance(found, MobileNetSpace) else ofa_space_for(found),
        num_classes=splits.num_classes,
        images=splits.summary(),
        seeds=seeds or SEEDS,
        subnets=subnets or SUBNETS,
        device=device,
        source=run,
    )


def _check_of_run(run: Run, space: object, data: str | None) -> None:
    if not run.finished:
        raise UsageError(
            f"The run {run.path} is not finished; go on with: {run.resume_command} - and then "
            "make its report."
        )
    if run.config.initial is not None:
        raise UsageError(
            f"The run {run.path} goes on from the weights of another one, {run.config.initial}: its few "
            "epochs are no recipe for networks of their own. Make the report of that run."
        )
    another = space is not None and load_space(space).to_dict() != run.space.to_dict()
    if another or data not in (None, run.config.data):
        raise UsageError(
            f"A report of the run {run.path} is about its own space and data ({run.space.name}, "
            f"{run.config.data}); leave space and data out."
        )


def _check_free(base: Path, run: Run | None) -> None:
    """Raises: UsageError: the folder holds something else."""
    if base.exists() and not base.is_dir():
        raise UsageError(f"{base} is a file; choose a folder for the report with out.")
    if not base.is_dir() or run is not None and base == run.path:
        return
    held = sorted(entry.name for entry in base.iterdir() if not entry.name.startswith("."))
    if CONFIG_NAME in held:
        raise UsageError(f"{base} holds a run; its own report is made with: {command('report', base)}")
    if set(held) - {WORK}:
        raise UsageError(f"{base} holds something else ({', '.join(held[:3])}); choose another folder.")


def _check_same(base: Path, wanted: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises: UsageError: of some setting the folder's report has one value, and another one was given."""
    for name, (has, asked) in wanted.items():
        if asked is not None and has != asked:
            values = "another one" if name == "space" else f"{name}={has}, not {asked}"
            raise UsageError(
                f"The report in {base} was begun with {values}; leave it out, or choose another folder with "
                "out. Nothing was changed."
            )


# -- in the folder ---------------------------------------------------------------------------------------


def write_plan(workspace: Workspace) -> None:
    """Write the settings of a report. Raises: GrowtasError: the disk is full."""
    atomic.make_folder(workspace.folder)
    source = None
    if workspace.source is not None:  # relative, so that the folders may move together
        source = os.path.relpath(workspace.source.path, workspace.folder)
    data = {
        "format": FORMAT,
        "train": workspace.config.to_dict(),
        "space": workspace.space.to_dict(),
        "ofa_space": workspace.ofa_space.to_dict(),
        "num_classes": workspace.num_classes,
        "images": dict(workspace.images),
        "seeds": workspace.seeds,
        "subnets": workspace.subnets,
        "source": source,
    }
    write_json(workspace.folder / PLAN_NAME, data)


def read_plan(base: Path, device: str) -> Workspace | None:
    """The report that a folder holds; None where it holds none.

    Args:
        base: the folder of the page.
        device: to compute on.

    Raises:
        GrowtasError: its plan is damaged, or the run that it is about is gone.
    """
    work = base / WORK
    if not (work / PLAN_NAME).is_file():
        return None

    def build(data: dict[str, Any]) -> Workspace:
        source = data["source"]
        return Workspace(
            folder=work,
            config=TrainConfig.from_dict(data["train"]),
            space=space_from_dict(data["space"]),
            ofa_space=space_from_dict(data["ofa_space"]),
            num_classes=data["num_classes"],
            images=data["images"],
            seeds=data["seeds"],
            subnets=data["subnets"],
            device=device,
            source=None if source is None else Run.open(Path(os.path.normpath(work / source))),
        )

    return folder.read_plan(work / PLAN_NAME, "report", build)
