"""The figures and tables of a report in the order of the page, and the jobs that make them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from growtas import atomic, files
from growtas.analysis import networks
from growtas.analysis.base import Analysis
from growtas.analysis.plan import read_plan
from growtas.analysis.workspace import Workspace
from growtas.errors import UsageError, nearest
from growtas.jobs.folder import train_once
from growtas.jobs.ranks import call_on_ranks
from growtas.version import __version__

_CLASSES = {
    "figure-1": "extend_and_crop.ExtendAndCrop",
    "figure-a": "weight_regions.WeightRegions",
    "figure-b": "weight_statistics.WeightStatistics",
    "figure-c": "initialisation.Initialisation",
    "figure-d": "similarity.Similarity",
    "figure-e": "extend_and_crop.ExtendAndCropConvolutional",
    "figure-f": "sampling_strategies.SamplingStrategies",
    "figure-g": "sampling_schedule.SamplingSchedule",
    "table-a": "methods_table.MethodsTable",
    "interference": "interference.GradientInterference",
}
FORMAT = 1


def part_names() -> tuple[str, ...]:
    """The names of all parts, in the order of the page."""
    return tuple(_CLASSES)


def part(name: str) -> type[Analysis]:
    """The class of a part. Raises: UsageError: there is none of that name; the nearest is named."""
    if name not in _CLASSES:
        raise UsageError(f"A report has no part {name!r}.{nearest(name, _CLASSES)}")
    module, _, cls = _CLASSES[name].partition(".")
    return getattr(importlib.import_module(f"growtas.analysis.{module}"), cls)


def _file(workspace: Workspace, name: str) -> Path:
    return workspace.folder / "parts" / f"{name}.json"


def read(workspace: Workspace, name: str) -> Analysis | None:
    """A part that was kept by this version; None where there is none.

    Raises:
        GrowtasError: its file is damaged.
    """
    path = _file(workspace, name)
    if not path.is_file():
        return None
    return read_file(path)


def read_file(path: Path) -> Analysis | None:
    """The part in a file, named after it; None, Raises: as :func:`read`."""
    with files.reading(path, "a part of a report", "Remove it, and the part is made again."):
        data = files.read_json(path)
        if (data["format"], data["growtas"]) != (FORMAT, __version__):
            return None
        return part(path.stem).from_json(json.dumps(data["analysis"]))


# -- jobs ------------------------------------------------------------------------------------------------


def _workspace(base: str, device: str) -> Workspace:
    workspace = read_plan(Path(base), device)
    if workspace is None:
        raise UsageError(f"{base} holds no report.")
    return workspace


def make_part(base: str, name: str, device: str, ranks: int = 1) -> None:
    """Make a part that is not kept yet, and keep it.

    Args:
        base: the folder of the page.
        name: of the part.
        device: to compute on.
        ranks: that networks are trained with; a part is made by one process.
    """
    workspace = _workspace(base, device)
    if read(workspace, name) is not None:
        return
    path, made = _file(workspace, name), part(name).make(workspace)
    atomic.make_folder(path.parent)
    data = {"format": FORMAT, "growtas": __version__, "analysis": json.loads(made.to_json())}
    atomic.write_text(path, json.dumps(files.signed(data), allow_nan=False) + "\n")


def make_network(base: str, name: str, device: str, ranks: int = 1) -> None:
    """Train a network, or go on where it was stopped.

    Args:
        base: the folder of the page.
        name: of the network.
        device: to compute on.
        ranks: processes that train it.
    """
    call_on_ranks(f"{__name__}:train_network", {"base": base, "name": name, "device": device}, ranks)


def train_network(base: str, name: str, device: str) -> None:
    """Train a network: on one of several ranks, or alone."""
    workspace = _workspace(base, device)
    space = networks.space_of(workspace, name)
    train_once(networks.settings(workspace, name), space, workspace.network(name))
