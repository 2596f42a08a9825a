"""GrowTAS+: a short second phase that trains the larger subnets around frozen small ones."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from growtas.errors import UsageError, nearest
from growtas.methods.base import Method, MethodSettings, TrainingContext, register
from growtas.methods.regions import used
from growtas.methods.schedule import Stage, stage_groups
from growtas.space import Subnet

FROZEN = ("first", "literal")


@dataclass(frozen=True)
class PlusOptions:
    """Options of GrowTAS+.

    Args:
        frozen: ``first`` freezes what the subnets of the first group use and draws the other groups;
            ``literal`` freezes what the groups of the run's first stage A_1 use (two of three groups, with
            two stages) and draws the groups outside A_1.

    Raises:
        UsageError: the choice is unknown.
    """

    frozen: str = "first"

    def __post_init__(self) -> None:
        if self.frozen not in FROZEN:
            raise UsageError(f"frozen={self.frozen!r} is unknown.{nearest(self.frozen, FROZEN)}")


@register("growtas+")
class GrowthPlus(Method):
    """Uniform over the groups that are not frozen; what the frozen ones use stays as it is, to the bit.

    The region is the union over the frozen subnets, tensor by tensor (:func:`growtas.methods.regions.used`).
    Its gradients are set to zero before a step, so that norm, clipping and moments know only what is
    trained; and since weight decay and momentum move weights without gradients, it is written back after.
    So every frozen subnet computes the same logits after the phase as before it.

    It continues trained weights: :func:`growtas.finetune`. The process that trains keeps a copy of the
    weights, to write the frozen ones back.

    Raises:
        UsageError: nothing is left to train.

    Source:
        GrowTAS (arXiv 2512.12296), which defines the phase as training A_K minus A_1 outside A_1's weights
        (``literal``). That ``first`` is the default is our reading of the authors' launch settings.
    """

    Options: ClassVar[type] = PlusOptions
    continues: ClassVar[bool] = True

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        count = len(self.space.groups)
        literal = self.options.frozen == "literal"
        self.frozen_groups = stage_groups(settings.stages, count)[0] if literal else (0,)
        trained = tuple(group for group in range(count) if group not in self.frozen_groups)
        if not trained:
            raise UsageError(
                f"method 'growtas+' with frozen={self.options.frozen!r} has nothing to train: it freezes all "
                f"{count} groups of the space. "
                + ("Give stages whose first one leaves a group out." if literal else "Choose another space.")
            )
        self.stages = (Stage(trained, 0),)
        self._frozen: list[tuple[Tensor, Tensor, Tensor]] = []

    def sample(self, step: int, rng: random.Random) -> Subnet:
        """A subnet of the groups that are trained."""
        return self.space.sample(rng, self.stages[0].groups)

    def prepare(self, training: TrainingContext) -> None:
        """Remember the frozen region and its weights, which a resume finds as the phase found them."""
        masks = used(training.net, self.frozen_groups)
        self._frozen = [
            (parameter, masks[name].to(parameter.device), parameter.detach().clone())
            for name, parameter in training.net.named_parameters()
            if masks[name].any()
        ]

    def begin_stage(self, stage: int, training: TrainingContext) -> dict[str, Any]:
        """Nothing is changed; the log is told what is frozen."""
        entries = sum(int(mask.sum()) for _, mask, _ in self._frozen)
        return {"frozen_groups": list(self.frozen_groups), "frozen_entries": entries}

    def before_update(self, step: int, training: TrainingContext) -> None:
        """Take the frozen region out of the gradients."""
        for parameter, mask, _ in self._frozen:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def after_step(self, step: int, training: TrainingContext) -> dict[str, Any]:
        """Write the frozen weights back."""
        for parameter, mask, weights in self._frozen:
            torch.where(mask, weights, parameter, out=parameter)
        return {}
