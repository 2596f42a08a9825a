"""Once-for-all's progressive shrinking: the largest network first, then ever smaller ones taught by it."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from growtas.bounds import EPOCHS, Bound
from growtas.errors import GrowtasError, UsageError
from growtas.methods.base import Method, MethodSettings, TrainingContext, register
from growtas.methods.schedule import Stage
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.spaces.mobilenet_subnet import MobileNetSubnet

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Phase:
    """One row of the stage table.

    Args:
        name: for the log.
        kernels, expands, depths: how many of the space's largest choices may be drawn.
        subnets: drawn in every step; their gradients are added up.
        epochs: of the published run; phases share a run's epochs in this proportion.
        rate: highest learning rate over that of the first phase.
        warmup: epochs, of ``epochs``, of linear warm-up.
    """

    name: str
    kernels: int
    expands: int
    depths: int
    subnets: int
    epochs: float
    rate: float
    warmup: float


LARGEST_RATE = 2.6 / 32  # the published rate of the first phase, per GPU of 64 images
FULL = {"epochs": 120, "warmup": 5}  # the last phase of a dimension
SHORT = {"epochs": 25, "warmup": 0}  # an earlier one


@dataclass(frozen=True)
class ShrinkingOptions:
    """Options of progressive shrinking.

    Args:
        largest_epochs: published epochs of the largest network alone, before it teaches; 0 leaves them out,
            for a run that begins with a trained network.
        sort: order channels by importance when an expand phase begins.
    """

    largest_epochs: float = 180.0
    sort: bool = True

    def __post_init__(self) -> None:
        Bound(0, EPOCHS.most, whole=False)("largest_epochs", self.largest_epochs, "shrinking")


def phases(space: MobileNetSpace, largest_epochs: float = 180.0) -> tuple[Phase, ...]:
    """The stage table of a space: kernel, then depth by depth, then expand ratio by expand ratio.

    For once-for-all's own space it is the published one; other numbers of choices get phases alike: the last
    of a dimension is long, those before it short.

    Args:
        space: gives the numbers of choices.
        largest_epochs: of the phase that trains the largest network alone.

    Source: Cai et al., "Once-for-All" (ICLR 2020) and its code's ``train_ofa_net.py``.
    """
    table = []
    if largest_epochs:
        table.append(Phase("largest", 1, 1, 1, 1, largest_epochs, 1.0, min(5.0, largest_epochs)))
    kernels = len(space.kernel)
    if kernels > 1:
        table.append(Phase("kernel", kernels, 1, 1, 1, rate=3e-2 / LARGEST_RATE, **FULL))
    for name, count, subnets in (("depth", len(space.depth), 2), ("expand", len(space.expand), 4)):
        for number in range(2, count + 1):
            last = number == count
            expands = number if name == "expand" else 1
            depths = number if name == "depth" else len(space.depth)
            rate = (7.5e-3 if last else 2.5e-3) / LARGEST_RATE
            length = FULL if last else SHORT
            table.append(
                Phase(f"{name} {number - 1}", kernels, expands, depths, subnets, rate=rate, **length)
            )
    return tuple(table)


@register("shrinking")
class Shrinking(Method):
    """Progressive shrinking with its teacher, its channel sorting and its learning rates per phase.

    Every phase begins with a fresh optimizer, a warm-up and a cosine of its own, as the published runs do;
    the run's ``lr`` is the rate of the largest network's phase, and the published ratios give the others.

    Source: Cai et al., "Once-for-All" (ICLR 2020).

    Raises:
        UsageError: the space is not convolutional, or the run has fewer epochs than phases.
    """

    Options = ShrinkingOptions
    gradients = "sum"

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        if not isinstance(self.space, MobileNetSpace):
            raise UsageError(
                f"Method 'shrinking' needs a convolutional space such as 'ofa-mobilenetv3', not "
                f"{self.space.name!r}; choose 'growtas' or 'uniform' for a vision transformer."
            )
        self.phases = phases(self.space, self.options.largest_epochs)
        if settings.epochs < len(self.phases):
            raise UsageError(
                f"epochs={settings.epochs} is too few: progressive shrinking of {self.space.name!r} has "
                f"{len(self.phases)} phases, of an epoch or more each."
            )
        self.stages = tuple(
            Stage(self._groups(phase), start)
            for phase, start in zip(self.phases, phase_starts(self.phases, settings.epochs), strict=True)
        )
        self._teacher_weights: dict[str, Tensor] | None = None
        self._teacher: torch.nn.Module | None = None

    def _groups(self, phase: Phase) -> tuple[int, ...]:
        count = len(self.space.expand)
        return tuple(range(count - phase.expands, count))

    def subnets(self, step: int) -> tuple[MobileNetSubnet, ...]:
        """As many draws as the phase trains at once, for each that the run asks for."""
        rng = self.rng(step)
        if self.settings.sandwich or self.settings.distill == "inplace":
            return super().subnets(step)
        count = self.phases[self.stage_of(step)].subnets * self.settings.subnets_per_step
        return tuple(self.sample(step, rng) for _ in range(count))

    def sample(self, step: int, rng: random.Random) -> MobileNetSubnet:
        """Every block and stage uniform over the choices of the phase."""
        kernels, expands, depths = self._choices(step)
        places = range(self.space.stages * self.space.slots)
        return self.space.subnet(
            kernel=[rng.choice(kernels) for _ in places],
            expand=[rng.choice(expands) for _ in places],
            depth=[rng.choice(depths) for _ in range(self.space.stages)],
        )

    def extremes(self, step: int) -> tuple[MobileNetSubnet, MobileNetSubnet]:
        """Everything at the smallest, and at the largest choice of the phase."""
        kernels, expands, depths = self._choices(step)
        return self.space.subnet(kernels[0], expands[0], depths[0]), self.space.largest()

    def _choices(self, step: int) -> tuple[tuple[int, ...], ...]:
        phase, space = self.phases[self.stage_of(step)], self.space
        return space.kernel[-phase.kernels :], space.expand[-phase.expands :], space.depth[-phase.depths :]

    def learning_rate(self, step: int) -> float:
        """A warm-up and a cosine to zero within the phase."""
        number = self.stage_of(step)
        phase = self.phases[number]
        starts = [stage.first_epoch * self.settings.steps_per_epoch for stage in self.stages]
        first, end = (*starts, self.settings.epochs * self.settings.steps_per_epoch)[number : number + 2]
        warmup = round((end - first) * phase.warmup / phase.epochs)
        done = step - first
        highest = self.settings.lr * phase.rate
        if done < warmup:
            return highest * (done + 1) / warmup
        return highest * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (end - first - warmup)))

    def begin_stage(self, stage: int, training: TrainingContext) -> dict[str, Any]:
        """Keep the teacher once the largest network is done, sort channels, start the optimizer afresh."""
        phase = self.phases[stage]
        done: dict[str, Any] = {"phase": phase.name}
        if self._teacher_weights is None and phase.name != "largest":
            if stage == 0 and training.calibrate is not None:  # the statistics are those of another run's end
                training.calibrate(self.space.largest())
            weights = training.net.state_dict()
            self._teacher_weights = {name: value.detach().clone() for name, value in weights.items()}
            if dist.is_available() and dist.is_initialized():
                for value in self._teacher_weights.values():  # BatchNorm's statistics are each rank's own
                    dist.broadcast(value, 0)
            self.prepare(training)
            done["teacher"] = str(self.space.largest())
        if phase.name.startswith("expand") and self.options.sort:
            from growtas.supernet.channel_sort import sort_channels

            sort_channels(training.net, int(phase.name.split()[1]) - 1)
            training.restart_average()
            done["sorted"] = True
        if stage:
            training.optimizer.state.clear()
        return done

    def prepare(self, training: TrainingContext) -> None:
        """Build the teacher anew from its weights, where the run has one."""
        if self._teacher_weights is not None:
            self._teacher = copy.deepcopy(training.net).eval().requires_grad_(False)
            self._teacher.load_state_dict(self._teacher_weights)

    def teacher_logits(self, images: Tensor, training: TrainingContext) -> Tensor | None:
        """The logits of the largest network as it was when the first phase ended."""
        if self._teacher is None:
            return None
        with torch.no_grad(), training.autocast():
            return self._teacher(images, self.space.largest())

    def state_dict(self) -> dict[str, Any]:
        """The teacher's weights, once there is a teacher."""
        return {} if self._teacher_weights is None else {"teacher": self._teacher_weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the teacher's weights. Raises: GrowtasError: the state is another method's."""
        if set(state) - {"teacher"}:
            raise GrowtasError(
                f"The checkpoint holds state ({', '.join(map(str, state))}) that progressive shrinking does "
                "not keep; it was written by another version or another method."
            )
        self._teacher_weights = state.get("teacher")


def phase_starts(table: tuple[Phase, ...], epochs: int) -> list[int]:
    """The first epoch of each phase: shares of the run as published, each an epoch or longer.

    Args:
        table: at least one phase.
        epochs: of the run, at least as many as phases.
    """
    total = sum(phase.epochs for phase in table)
    starts, passed = [], 0.0
    for number, phase in enumerate(table):
        earliest = starts[-1] + 1 if starts else 0
        latest = epochs - (len(table) - number)
        starts.append(min(max(round(epochs * passed / total), earliest), latest))
        passed += phase.epochs
    return starts
