"""Which figures and tables a report has, in the order of the page."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from growtas import atomic
from growtas.analysis.base import Analysis
from growtas.analysis.workspace import Part, Workspace
from growtas.errors import GrowtasError, UsageError, nearest
from growtas.version import __version__

_MODULES = {
    "figure-1": "extension",
    "figure-a": "weight_regions",
    "figure-b": "weight_statistics",
    "figure-c": "extension",
    "figure-d": "similarity",
    "figure-e": "extension",
    "figure-f": "sampling",
    "figure-g": "sampling_schedule",
    "table-a": "methods_table",
    "interference": "interference",
}
"""The module of this package that holds the part of each."""

FORMAT = 1


def part_names() -> tuple[str, ...]:
    """The names of all parts, in the order of the page."""
    return tuple(_MODULES)


def part(name: str) -> Part:
    """A part by its name.

    Raises:
        UsageError: there is none; the nearest is named.
    """
    if name not in _MODULES:
        raise UsageError(f"A report has no part {name!r}.{nearest(name, _MODULES)}")
    module = importlib.import_module(f"growtas.analysis.{_MODULES[name]}")
    (found,) = (each for each in vars(module).values() if isinstance(each, Part) and each.kind.name == name)
    return found


def path_of(workspace: Workspace, name: str) -> Path:
    """The file that keeps a part."""
    return workspace.folder / "parts" / f"{name}.json"


def make(workspace: Workspace, name: str) -> Analysis:
    """Make a part and keep it; one that is kept already is given back."""
    kept = read(workspace, name)
    if kept is not None:
        return kept
    made = part(name).make(workspace)
    path = path_of(workspace, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"format": FORMAT, "growtas": __version__, "analysis": json.loads(made.to_json())}
    atomic.write_text(path, json.dumps(data, indent=None, allow_nan=False) + "\n")
    return made


def read(workspace: Workspace, name: str) -> Analysis | None:
    """A part that was kept by this version; None where there is none.

    Raises:
        GrowtasError: its file is damaged.
    """
    path = path_of(workspace, name)
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
        if (data["format"], data["growtas"]) != (FORMAT, __version__):
            return None
        return part(name).kind.from_json(json.dumps(data["analysis"]))
    except (ValueError, KeyError, TypeError, GrowtasError) as error:
        raise GrowtasError(f"{path} is damaged ({error}); remove it, and the part is made again.") from error
