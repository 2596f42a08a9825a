"""GrowTAS: small subnets first, larger groups let in stage by stage."""

from __future__ import annotations

import random
from typing import Any

from growtas.methods import schedule
from growtas.methods.base import Method, MethodSettings, TrainingContext, register
from growtas.methods.regions import initialise, new_region, reset_moments, used
from growtas.space import Subnet


@register("growtas")
class Growth(Method):
    """Uniform over the groups of the active stage; optionally initialises what a stage newly uses.

    With one stage it is :class:`~growtas.methods.uniform.Uniform`, draw for draw.

    Source: GrowTAS (arXiv 2512.12296), supplement.
    """

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        self.stages = schedule.plan(
            self.space,
            settings.epochs,
            settings.stages,
            settings.transition,
            settings.num_classes,
            settings.transition_params,
            settings.transition_max_params,
            settings.transition_beta,
        )

    def sample(self, step: int, rng: random.Random) -> Subnet:
        """A subnet of the groups of the stage that the step belongs to."""
        return self.space.sample(rng, self.stages[self.stage_of(step)].groups)

    def begin_stage(self, stage: int, training: TrainingContext) -> dict[str, Any]:
        """Initialise the new region as ``new_region`` says, and reset its moments where they are to be."""
        net = training.net
        if stage == 0:
            return {}
        earlier = sorted({group for past in self.stages[:stage] for group in past.groups})
        new = new_region(net, earlier, self.stages[stage].groups)
        how = self.settings.new_region
        count = initialise(net, new, used(net, earlier), how, self.settings.seed, stage)
        done = {"new_region": how, "new_entries": count}
        if self.settings.new_region_moments == "reset":
            done["reset_moments"] = reset_moments(net, training.optimizer, new)
        return done
