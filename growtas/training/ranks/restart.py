"""The run that a restarted command finds in its folder: torchrun and Slurm restart by repeating it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from growtas.errors import UsageError
from growtas.space import ModelSpace, Space
from growtas.training.config import RUNTIME, TrainConfig
from growtas.training.run import CONFIG_NAME, Run

COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""The environment variables in which torchrun --max-restarts and a requeued Slurm job count restarts."""


def restarted() -> bool:
    """Return whether this command was started before, by the engine that runs it."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in COUNTS)


def own_run(path: Path, config: TrainConfig, space: Space | ModelSpace) -> Run | None:
    """The run that an earlier start of this command left.

    Args:
        path: its folder.
        config: the settings of the command, resolved; those that do not enter the result are taken over.
        space: of the command.

    Returns:
        The run, or None where the folder holds no run yet.

    Raises:
        UsageError: the folder holds a run of other settings.
    """
    if not (path / CONFIG_NAME).is_file():
        return None
    found = Run.open(path, of_model=isinstance(space, ModelSpace))
    theirs = found.config.to_dict()
    differing = [
        name
        for name, value in config.to_dict().items()
        if name not in ("out", *RUNTIME) and theirs[name] != value
    ]
    if found.space != space:
        differing.append("the search space")
    if differing:
        raise UsageError(
            f"{path} holds another run, which differs from this restarted command in {', '.join(differing)}. "
            "Choose another folder. Nothing was changed."
        )
    given = {name: getattr(config, name) for name in RUNTIME}
    return dataclasses.replace(found, config=dataclasses.replace(found.config, **given))
