"""What a training method is: which subnets a step trains, and what happens when a stage begins.

A method is one file in this folder that holds one registered class; the training loop asks nothing else:

    @register("mine")
    class Mine(Method):
        def subnets(self, step):
            return (self.space.sample(self.rng(step)),)
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from growtas.errors import GrowtasError, UsageError, nearest
from growtas.methods.schedule import MAX_PARAMS, Stage, stage_at
from growtas.space import SearchSpace, Subnet, seeded_rng

if TYPE_CHECKING:
    import torch

    from growtas.supernet.vit import VisionTransformer

NEW_REGIONS = ("keep", "standard", "near_zero", "pretrained")


@dataclass(frozen=True)
class MethodSettings:
    """Everything that a method may depend on.

    Args:
        space: what subnets are drawn from.
        num_classes: outputs of the head.
        epochs: epochs of the run.
        steps_per_epoch: optimizer updates per epoch.
        seed: of the run; with the step it determines every draw.
        stages: number of stages, or the groups of each; see :func:`growtas.methods.schedule.stage_groups`.
        transition: rule or epochs; see :func:`growtas.methods.schedule.transition_epochs`.
        transition_params, transition_max_params, transition_beta: C, C_max and beta of the size-aware rule.
        new_region: ``keep``, ``standard``, ``near_zero`` or ``pretrained``; see
            :func:`growtas.methods.regions.initialise`.

    Raises:
        UsageError: ``new_region`` is unknown.
    """

    space: SearchSpace
    num_classes: int
    epochs: int
    steps_per_epoch: int
    seed: int = 0
    stages: int | str = 2
    transition: str = "size-aware"
    transition_params: float | None = None
    transition_max_params: float = MAX_PARAMS
    transition_beta: float | None = None
    new_region: str = "keep"

    def __post_init__(self) -> None:
        if self.new_region not in NEW_REGIONS:
            raise UsageError(
                f"new_region={self.new_region!r} is unknown.{nearest(str(self.new_region), NEW_REGIONS)}"
            )


class Method(ABC):
    """A way of training a supernet. A new one overrides :meth:`subnets`, and what else it needs.

    Args:
        settings: of the run.

    Attributes:
        stages: the stages of the run, the first at epoch 0; one stage of every group unless overridden.
    """

    name: ClassVar[str]
    stages: tuple[Stage, ...]

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings
        self.space = settings.space
        self.stages = (Stage(tuple(range(len(self.space.groups))), 0),)

    @abstractmethod
    def subnets(self, step: int) -> tuple[Subnet, ...]:
        """The subnets that optimizer step ``step`` trains, their gradients averaged.

        A pure function of the settings, the step and whatever :meth:`load_state_dict` restored: the same on
        every rank, and the same after a resume. Draw from ``self.rng(step)`` only.
        """

    def begin_stage(
        self, stage: int, net: VisionTransformer, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """Called once before the first step of each stage, the first included.

        Args:
            stage: its number, from 0.
            net: may be changed, as a function of the settings and the stage alone.
            optimizer: may be changed likewise; one optimizer and one schedule serve the whole run.

        Returns:
            What was done, for the log: plain values.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for the method: tensors and plain values; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            GrowtasError: the method keeps no state, but some was given.
        """
        if state:
            raise GrowtasError(
                f"The checkpoint holds state ({', '.join(map(str, state))}) that method {self.name!r} does "
                "not keep; it was written by another version or another method."
            )

    def rng(self, step: int) -> random.Random:
        """The private generator of a step; depends on the seed and the step alone."""
        return seeded_rng("subnet", self.settings.seed, step)

    def stage_of(self, step: int) -> int:
        """The number, from 0, of the stage that a step belongs to."""
        return stage_at(self.stages, step // self.settings.steps_per_epoch)

    def begins_at(self, step: int) -> int | None:
        """The stage whose first step this is, or None."""
        for number, stage in enumerate(self.stages):
            if stage.first_epoch * self.settings.steps_per_epoch == step:
                return number
        return None


_REGISTRY: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: make a method known as ``growtas.train(method=name)``.

    Raises:
        ValueError: the name is taken.
    """

    def add(cls: type[Method]) -> type[Method]:
        if name in _REGISTRY:
            raise ValueError(f"The method name {name!r} is taken by {_REGISTRY[name].__qualname__}.")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def registered() -> dict[str, type[Method]]:
    """The methods known so far, by name."""
    return dict(_REGISTRY)
