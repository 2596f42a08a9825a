"""The comparison of methods that a report makes for its table of methods and its pictures of sampling."""

from __future__ import annotations

import dataclasses
from typing import Any

from growtas.analysis.workspace import Workspace
from growtas.comparing import Comparison, compare
from growtas.comparing.driver import CONVOLUTIONAL_METHODS, METHODS
from growtas.comparing.specs import SECOND_PHASES
from growtas.errors import UsageError
from growtas.jobs import Placement
from growtas.jobs.folder import QUIET, check_method
from growtas.training.config import RUNTIME, TrainConfig

# Cheap beside training: what is compared are networks, by searches that are alike.
SUBNETS, POPULATION, GENERATIONS = 5, 20, 3

# What compare is given by other names, what belongs to one method, and what has no part in a cell.
_APART = (
    *("space", "data", "epochs", "lr", "seed", "out", "initial", "resolutions", "method", "method_options"),
    *("log_every", "interference_every", *QUIET),
    *(name for name in RUNTIME if name != "data_folder"),
)


def compare_for(workspace: Workspace, placement: Placement) -> Comparison:
    """Make or finish the comparison of a report: every method that its space and length allow.

    Args:
        workspace: of the report; the comparison is written to its folder ``compare``.
        placement: of its cells.

    Returns:
        What was found; ``failed`` names the cells that failed.

    Raises:
        UsageError, GrowtasError, Interrupted: as :func:`growtas.compare` does.
    """
    config, settings = workspace.config, common_settings(workspace)
    recipe = _recipe(workspace, settings)
    left_out = unfit(workspace)
    return compare(
        workspace.comparison,
        space=workspace.space,
        data=config.data,
        methods=[name for name in _wanted(workspace) if name not in left_out],
        seeds=workspace.seeds,
        epochs=config.epochs,
        lr="recipe" if recipe.lr == config.lr else config.lr,
        subnets=SUBNETS,
        population=POPULATION,
        generations=GENERATIONS,
        settings=settings,
        jobs=placement.jobs,
        device=placement.asked,
        ranks=placement.ranks,
        slurm=placement.slurm,
    )


def common_settings(workspace: Workspace) -> dict[str, Any]:
    """The settings of training in which a report differs from the recipe of its data, for every method."""
    plain = _recipe(workspace, {}).to_dict()
    own = workspace.config.to_dict()
    return {name: value for name, value in own.items() if name not in _APART and value != plain[name]}


def unfit(workspace: Workspace) -> dict[str, str]:
    """The methods that a report would compare but cannot, each with the reason.

    Such as GrowTAS in a space of one group, or progressive shrinking in a run of few epochs.
    """
    recipe = _recipe(workspace, common_settings(workspace))
    found: dict[str, str] = {}
    for name in _wanted(workspace):
        first = SECOND_PHASES.get(name)
        if first in found:
            found[name] = f"it goes on from {first}, which is left out."
            continue
        try:
            config = dataclasses.replace(recipe, method=name)
            check_method(config, workspace.space, workspace.images, workspace.folder)
        except UsageError as error:
            found[name] = str(error)
    return found


def _wanted(workspace: Workspace) -> tuple[str, ...]:
    return CONVOLUTIONAL_METHODS if workspace.convolutional else METHODS


def _recipe(workspace: Workspace, settings: dict[str, Any]) -> TrainConfig:
    """The settings of a plain run of the report's length on its data."""
    config = workspace.config
    values = {"space": workspace.space.name, "data": config.data, "epochs": config.epochs, **settings}
    return TrainConfig.from_dict(values).resolved(convolutional=workspace.convolutional)
