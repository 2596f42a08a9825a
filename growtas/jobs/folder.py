"""The files of a folder of jobs: its plan, its lock, what it is given and trains."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from growtas import atomic, files
from growtas.errors import GrowtasError, UsageError
from growtas.space import Space, load_space, preset_names
from growtas.training.config import RUNTIME, TrainConfig
from growtas.training.embedded import EMBEDDED, data_for

if TYPE_CHECKING:
    from growtas.training.run import Run

T = TypeVar("T")
FORMAT = 1
# Of no use in a job: they take time from training, and the networks are evaluated afterwards.
QUIET = {"eval_every": 0, "eval_subnets": 0, "tensorboard": False}


def read_json(path: Path, use: Callable[[dict[str, Any]], T]) -> T:
    """Return what ``use`` makes of a file. Raises: GrowtasError: the file cannot be understood."""
    with files.reading(path, "a result of this folder", "Remove it to have it made again."):
        return use(files.read_json(path))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a file, atomically."""
    atomic.write_text(path, json.dumps(files.signed(data), indent=1, allow_nan=False) + "\n")


def read_plan(file: Path, kind: str, build: Callable[[dict[str, Any]], T]) -> T:
    """The plan that a file holds.

    Args:
        file: of JSON.
        kind: for the error sentence, such as ``comparison``.
        build: makes the plan of the file's values.

    Raises:
        GrowtasError: the file is damaged, or of a later format.
    """
    with files.reading(file, f"the plan of a {kind}", "Put a good copy back, or choose another folder."):
        data = files.read_json(file)
        if data["format"] != FORMAT:
            raise GrowtasError(f"{file} has format {data['format']}; this version reads format {FORMAT}.")
        return build(data)


def written(file: Path) -> bytes | None:
    """The bytes of a plan's file; None where there is none.

    A plan is made before its folder is locked, so that a wrong call writes nothing. Under the lock, other
    bytes tell that another process began the folder or added to it in between.
    """
    return file.read_bytes() if file.is_file() else None


def check_counts(given: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Raises: UsageError: a value that is given is not a whole number of at least so many."""
    for name, low in least.items():
        value = given[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise UsageError(f"{name}={value!r} is not possible; it must be a whole number, {low} or more.")


def space_and_data(space: str | Path | Space | None, data: str | None) -> tuple[Space, str]:
    """The given one, the one named like the other, or the digits."""
    if space is None:
        data = data or "digits"
        space = data.partition(":")[0] if data.partition(":")[0] in EMBEDDED else data
        if space not in preset_names():
            raise UsageError(f"Give space=NAME for the data {data!r}: no space is called like it.")
    space = load_space(space)
    return space, data_for(space.name, data)


def train_once(config: TrainConfig, space: Space, path: Path) -> Run:
    """Begin a run, go on where it was stopped, or give back the finished one.

    Raises:
        GrowtasError: the folder holds a run of other settings.
    """
    from growtas.training.run import CONFIG_NAME, Run
    from growtas.training.start import begin, train

    config = dataclasses.replace(config, out=str(path))
    if not (path / CONFIG_NAME).exists():
        atomic.make_folder(path.parent)
        return begin(config, space)
    run = Run.open(path)
    held = run.config.to_dict()
    for name, value in config.to_dict().items():
        if name not in ("out", *RUNTIME) and held[name] != value and value != "auto":
            raise GrowtasError(
                f"The run in {path} was begun with {name}={held[name]}, not {value}; remove that folder to "
                "train it anew, or choose another one."
            )
    return run if run.finished else train(resume=path, device=config.device)


def finished(path: Path) -> bool:
    """Return whether a folder holds a finished run."""
    from growtas.training.run import CONFIG_NAME, Run

    return (path / CONFIG_NAME).exists() and Run.open(path).finished


def check_method(config: TrainConfig, space: Space, images: Mapping[str, int], path: Path) -> None:
    """Raises: UsageError: the method of these settings is not possible in the space. Nothing is begun."""
    from growtas.training.run import Run
    from growtas.training.run_method import create_run_method

    steps = max(1, images["train"] // config.batch_size)
    create_run_method(Run(path, config, space, images["num_classes"], steps, images, {}))
