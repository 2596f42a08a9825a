"""Base class of training methods: the subnets of a step, and the start of a stage.

A method is one file in this folder that holds one registered class; the training loop asks nothing else:

    @register("mine")
    class Mine(Method):
        def sample(self, step, rng):
            return self.space.sample(rng)

What every method may be combined with (several subnets per step, the sandwich rule, distillation) is done
around :meth:`Method.sample`, once for all of them.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from growtas.errors import GrowtasError, UsageError, nearest
from growtas.methods.options import NoOptions, parse_options
from growtas.methods.schedule import MAX_PARAMS, Stage, stage_at
from growtas.space import SearchSpace, Subnet, seeded_rng

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from growtas.supernet.vit import VisionTransformer

NEW_REGIONS = ("keep", "standard", "near_zero", "pretrained")
NEW_REGION_MOMENTS = ("keep", "reset")
DISTILL = ("none", "inplace", "ema", "teacher")


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
        new_region_moments: ``keep`` or ``reset``: what a transition does to the optimizer's moments there.
        subnets_per_step: random subnets of each step.
        sandwich: train the largest and the smallest subnet in every step besides (Yu et al., 2019).
        distill: ``none``; ``inplace`` (the largest subnet, trained first in every step, teaches the others);
            ``ema`` (the averaged weights' largest subnet teaches).
        options: of the method itself, ``"key=value,key=value"``.
        lr: the run's highest learning rate, for methods that have a schedule of their own.
        warmup_epochs: epochs in which the learning rate rises to it.

    Raises:
        UsageError: a value is unknown or not possible.
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
    new_region_moments: str = "keep"
    subnets_per_step: int = 1
    sandwich: bool = False
    distill: str = "none"
    options: str = ""
    lr: float = 1e-3
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        choices = {"new_region": NEW_REGIONS, "new_region_moments": NEW_REGION_MOMENTS, "distill": DISTILL}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"{name}={value!r} is unknown.{nearest(str(value), known)}")
        if self.subnets_per_step < 1:
            raise UsageError(
                f"subnets_per_step={self.subnets_per_step} is not possible; it must be 1 or more."
            )


@dataclass
class TrainingContext:
    """The context that the loop hands to a method.

    Args:
        net: the supernet, on ``device``, in training mode.
        optimizer: one for the whole run.
        device: that is computed on.
        draw_images: ``draw_images(split, count, *key)`` gives ``count`` images (n, C, S, S) and labels (n,)
            of the split ``train`` or ``search``, on the device, not augmented: a function of the run's seed
            and the key, the same on every rank.
        autocast: ``autocast()`` is the context manager of the run's precision.
        restart_average: ``restart_average()`` begins the run's average of the weights, if it keeps one, anew
            with the weights as they are: for who puts them in another order.
        calibrate: ``calibrate(subnet)`` sets the net's BatchNorm statistics to those of a subnet, from
            training images; None for a net without BatchNorm. Training itself does not look at them.
        smoothing: of the labels.
        loss: of the last step, the mean over its subnets and the ranks: the same on every rank, and not
            finite where the step was skipped for that.
    """

    net: VisionTransformer
    optimizer: torch.optim.Optimizer
    device: torch.device
    draw_images: Callable[..., tuple[Tensor, Tensor]]
    autocast: Callable[[], AbstractContextManager]
    restart_average: Callable[[], None] = lambda: None
    calibrate: Callable[[Subnet], None] | None = None
    smoothing: float = 0.0
    loss: float = math.nan


class Method(ABC):
    """A way of training a supernet. A new one overrides :meth:`sample`, and what else it needs.

    Args:
        settings: of the run.

    Attributes:
        Options: the dataclass of the method's own options.
        gradients: ``mean`` or ``sum`` of a step's subnets, where the run does not say.
        options: those of the run.
        continues: whether the method only makes sense on weights that another run has trained.
        stages: the stages of the run, the first at epoch 0; one stage of every group unless overridden.

    Raises:
        UsageError: an option is unknown or not possible.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    gradients: ClassVar[str] = "mean"
    continues: ClassVar[bool] = False
    stages: tuple[Stage, ...]

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings
        self.space = settings.space
        self.options = parse_options(self.Options, settings.options, f"method {self.name!r}")
        self.stages = (Stage(tuple(range(len(self.space.groups))), 0),)

    # -- which subnets a step trains ---------------------------------------------------------------------

    @abstractmethod
    def sample(self, step: int, rng: random.Random) -> Subnet:
        """One draw of optimizer step ``step``.

        A pure function of the settings, the step, ``rng`` and whatever :meth:`load_state_dict` restored: the
        same on every rank, and the same after a resume. Draw from ``rng`` only.
        """

    def extremes(self, step: int) -> tuple[Subnet, Subnet]:
        """The smallest and the largest subnet that a step may draw, for the sandwich rule and as teacher."""
        groups = self.stages[self.stage_of(step)].groups
        return self.space.smallest(groups), self.space.largest(groups)

    def subnets(self, step: int) -> tuple[Subnet, ...]:
        """The subnets that a step trains, the one that teaches the others first.

        Source: the sandwich rule and in-place distillation are those of universally slimmable networks (Yu
        and Huang, ICCV 2019) and BigNAS (Yu et al., ECCV 2020).
        """
        settings, rng = self.settings, self.rng(step)
        drawn = tuple(self.sample(step, rng) for _ in range(settings.subnets_per_step))
        if settings.sandwich:
            smallest, largest = self.extremes(step)
            return (largest, smallest, *drawn)
        if settings.distill == "inplace":
            return (self.extremes(step)[1], *drawn)
        return drawn

    # -- what happens besides, in the order in which it happens ------------------------------------------

    def prepare(self, training: TrainingContext) -> None:  # noqa: B027 - most methods need none of it
        """Called when a process begins or resumes training, with the weights and state of its first step."""

    def begin_stage(self, stage: int, training: TrainingContext) -> dict[str, Any]:
        """Called once before the first step of each stage, the first included; not again by a resume.

        Args:
            stage: its number, from 0.
            training: net and optimizer may be changed, as a function of the settings and the stage alone.

        Returns:
            What was done, for the log: plain values.
        """
        return {}

    def learning_rate(self, step: int) -> float | None:
        """The learning rate of a step; the run's own schedule where None."""
        return None

    def teacher_logits(self, images: Tensor, training: TrainingContext) -> Tensor | None:
        """Logits (B, classes) that subnets learn from besides the labels; None: as ``distill`` says."""
        return None

    def before_update(self, step: int, training: TrainingContext) -> None:  # noqa: B027
        """Called when the gradients of a step are complete, before their norm is taken and they are used."""

    def after_step(self, step: int, training: TrainingContext) -> dict[str, Any]:
        """Called after every step, also a skipped one. Returns: values for the log; nothing if empty."""
        return {}

    # -- state -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The method's state for a checkpoint: tensors and plain values; nothing by default."""
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
