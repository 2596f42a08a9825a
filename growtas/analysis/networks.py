"""The networks that a report trains for its figures: names and settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from growtas.analysis.workspace import Workspace
from growtas.errors import UsageError, nearest
from growtas.jobs.folder import QUIET
from growtas.space import MobileNetSpace, Space, load_space
from growtas.training.config import RUNTIME, TrainConfig

MEASUREMENTS = 20  # of interference, over a run
OFA_SPACE, OFA_IMAGE_SIZE = "ofa-mobilenetv3", 32
OFA_EPOCHS = 5  # one for so many of the report's: a step of the largest network takes twenty times as long
_SHARED = ("space", "data", "seed", "split_seed", "amp", *RUNTIME)  # with the recipe of figure E's networks


def space_of(workspace: Workspace, name: str) -> Space:
    """The space of a network."""
    return workspace.ofa_space if name.startswith("ofa-") else workspace.space


def settings(workspace: Workspace, name: str) -> TrainConfig:
    """The settings of a network.

    Args:
        workspace: of the report.
        name: ``smallest`` and ``largest`` (only that subnet is trained), ``ofa-smallest`` and ``ofa-largest``
            (the same in the convolutional space, by the recipe of its kind), ``METHOD-SEED`` such as
            ``growtas-0`` (an ordinary run along which interference is measured).

    Raises:
        UsageError: there is no such network.
    """
    config, space = workspace.config, space_of(workspace, name)
    own: dict[str, Any] = {"space": space.name, "device": workspace.device, **QUIET}
    family, _, which = name.rpartition("-")
    if which in ("smallest", "largest") and family in ("", "ofa"):
        own |= {"method": "single", "method_options": f"subnet={which}"}
    elif family in ("uniform", "growtas") and which.isdigit():
        every = max(1, config.epochs // MEASUREMENTS)
        own |= {"method": family, "seed": config.seed + int(which), "interference_every": every}
        if family != config.method:
            own |= {"method_options": ""}
    else:
        known = ("smallest", "largest", "ofa-smallest", "ofa-largest", "uniform-0", "growtas-0")
        raise UsageError(f"A report trains no network {name!r}.{nearest(name, known)}")
    if space is not workspace.space:
        kept = {key: value for key, value in config.to_dict().items() if key in _SHARED}
        kept["epochs"] = max(1, config.epochs // OFA_EPOCHS)
        config = TrainConfig.from_dict(kept).resolved(convolutional=True)
    return dataclasses.replace(config, **own)


def ofa_space_for(space: Space) -> MobileNetSpace:
    """Once-for-all's space for small images of the channels that a space takes: the choices are the same."""
    size = {"image_size": OFA_IMAGE_SIZE, "in_channels": space.in_channels}
    return dataclasses.replace(load_space(OFA_SPACE), name=f"{OFA_SPACE}-{OFA_IMAGE_SIZE}", **size)
