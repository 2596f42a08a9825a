"""AutoFormer's training: every subnet of the space from the first step, one drawn uniformly per step."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from growtas.errors import UsageError, quoted
from growtas.methods.base import Method, MethodSettings, TrainingContext, register
from growtas.methods.schedule import Stage
from growtas.space import Space, Subnet


@dataclass(frozen=True)
class UniformOptions:
    """Options of uniform sampling.

    Args:
        group_weights: one number per group of the space, such as ``5,5,2``: a group is drawn in proportion to
            its weight, then a subnet of it uniformly; groups of weight 0 are not trained. Equal where None.
    """

    group_weights: str | None = None


@register("uniform")
class Uniform(Method):
    """Every choice uniform, always; with ``group_weights`` a control for methods that favour some groups.

    Source: AutoFormer (Chen et al., ICCV 2021); the weights are ours.

    Raises:
        UsageError: the weights are not possible.
    """

    Options = UniformOptions
    options: UniformOptions

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        self.weights: tuple[float, ...] = ()  # of the groups of the one stage; none where they are alike
        if self.options.group_weights is not None:
            weights = read_weights(self.options.group_weights, self.space)
            drawn = tuple(group for group, weight in enumerate(weights) if weight)
            self.stages = (Stage(drawn, 0),)
            self.weights = tuple(weights[group] / max(weights) for group in drawn)  # their sum is finite

    def sample(self, step: int, rng: random.Random) -> Subnet:
        """Any subnet of the space, or of a group that is drawn by the weights."""
        if not self.weights:
            return self.space.sample(rng)
        return self.space.sample(rng, rng.choices(self.stages[0].groups, self.weights))

    def begin_stage(self, stage: int, training: TrainingContext) -> dict[str, Any]:
        """Nothing but a word in the log: the weights of the groups that it names, the largest 1."""
        return {"group_weights": list(self.weights)} if self.weights else {}


def read_weights(text: str, space: Space) -> tuple[float, ...]:
    """One weight per group of a space, from text such as ``5,5,2``.

    Raises:
        UsageError: one is no finite number of 0 or more, all are 0, or they are not as many as the groups.
    """
    count, listed = len(space.groups), ", ".join(map(str, space.groups))
    remedy = f"Give one per group, such as group_weights={','.join(['2'] * (count - 1) + ['1'])}."
    begin = f"group_weights={quoted(text)} of method 'uniform'"
    parts = text.split(",")
    if len(parts) != count:
        raise UsageError(
            f"{begin} gives {len(parts)} of the {count} weights that space {space.name!r} needs, whose "
            f"groups have {space.group_axis} {listed}. {remedy}"
        )
    weights = []
    for part in parts:
        try:
            weights.append(float(part))
        except ValueError:
            weights.append(math.nan)
        if not 0 <= weights[-1] < math.inf:
            raise UsageError(
                f"{begin} holds {part!r}; a weight must be a finite number of 0 or more. {remedy}"
            )
    if not any(weights):
        raise UsageError(f"{begin} leaves no group to train: all weights are 0. {remedy}")
    return tuple(weights)
