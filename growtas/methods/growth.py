"""GrowTAS: small subnets first, larger groups let in stage by stage."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from growtas.methods import schedule
from growtas.methods.base import Method, MethodSettings, TrainingContext, register
from growtas.methods.regions import initialise, new_region, reset_moments, used
from growtas.methods.transition import AdaptiveStages, TransitionOptions, check_options
from growtas.space import Subnet


@register("growtas")
class Growth(Method):
    """Uniform over the groups of the active stage; optionally initialises what a stage newly uses.

    With one stage it is :class:`~growtas.methods.uniform.Uniform`, draw for draw. On the embedded data
    growing helps small subnets in long training, by about a point, and seems to help by many points where
    training would stay long on its initial plateau, in short runs at a high learning rate and with many wrong
    labels. In long training the same draws in no order are not shown to do worse, two stages show no gain at
    the best learning rate, and three cost the widest group about 2 points (docs/results.md).

    Source: GrowTAS (arXiv 2512.12296), supplement; the transition ``plateau`` is ours.

    Raises:
        UsageError: stages, transition or the options of ``plateau`` are not possible.
    """

    Options = TransitionOptions
    options: TransitionOptions

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
        check_options(self.options, settings.transition)
        self.adaptive: AdaptiveStages | None = None
        if settings.transition == schedule.PLATEAU:
            self.adaptive = AdaptiveStages(self.stages, settings.epochs, self.options, settings.warmup_epochs)

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
        done: dict[str, Any] = {"new_region": how, "new_entries": count}
        if self.adaptive is not None:
            done["opened_by"] = self.adaptive.opened_by[stage - 1]
        if self.settings.new_region_moments == "reset":
            done["reset_moments"] = reset_moments(net, training.optimizer, new)
        return done

    # -- transitions that are decided during the run -----------------------------------------------------

    def after_step(self, step: int, training: TrainingContext) -> dict[str, Any]:
        """Under the plateau rule: count the loss, and at the end of an epoch see whether a stage opens.

        Returns:
            At the end of an epoch what was seen, see :meth:`.AdaptiveStages.end_epoch`, while a stage waits.
        """
        if self.adaptive is None or self.adaptive.waiting is None:
            return {}
        self.adaptive.add_loss(training.loss)
        epoch, place = divmod(step, self.settings.steps_per_epoch)
        if place + 1 < self.settings.steps_per_epoch:
            return {}
        seen = self.adaptive.end_epoch(epoch)
        self.stages = self.adaptive.stages
        return seen

    def state_dict(self) -> dict[str, Any]:
        """The state of the rule: what it has seen and opened; nothing where the epochs are fixed."""
        return {} if self.adaptive is None else self.adaptive.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            GrowtasError: it is not the state of these stages.
        """
        if self.adaptive is None:
            super().load_state_dict(state)
            return
        self.adaptive.load_state_dict(state)
        self.stages = self.adaptive.stages
