"""Stages that open when the run itself says so: the rule ``plateau``. No torch.

The rule looks at the loss of the active stage and compares the mean of its last epochs with that of as many
before them. Until it fires, the next stage stands at the latest epoch at which it may begin, so that the
stages are a whole plan at any time; when it fires at the end of an epoch, the next stage begins with the next
one.

GrowTAS (arXiv 2512.12296) has fixed rules only, "midpoint" and "size-aware". This one, its bounds and its
defaults are our own. A rule that waited for gradients of small and large subnets to settle was left out
again: it was not shown to be as good as the midpoint (docs/comparisons.md, "Stage transitions").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growtas.bounds import EPOCHS, Bound
from growtas.errors import GrowtasError, UsageError
from growtas.methods.schedule import PLATEAU, Stage, least_epochs

# Chosen on curves of a few runs on digits and glyphs, for the rule to fire between its bounds on both, and
# before anything was known of the accuracy that it leads to.
WINDOW_SHARE = 1 / 16  # of the epochs of the run
LATEST = "latest epoch"
_BOUNDS = {
    "window": EPOCHS,
    "tolerance": Bound(0, 10**9, whole=False),
    "least_fall": Bound(0, 1, whole=False, below=True),
}


@dataclass(frozen=True)
class TransitionOptions:
    """Options of ``growtas`` where its transition is ``plateau``; all are our own choice.

    Args:
        window: epochs whose mean is compared with that of as many before; a sixteenth of the run where None.
        tolerance: the loss has stopped falling when the last window brought no more than this share of all
            that it fell in the stage.
        least_fall: the rule does not fire before the loss has fallen by this share of the run's first
            epoch's: what stands still before it was learned has not stopped, but not begun.

    Raises:
        UsageError: a value is not possible.
    """

    window: int | None = None
    tolerance: float = 0.05
    least_fall: float = 0.1

    def __post_init__(self) -> None:
        for name, bound in _BOUNDS.items():
            if getattr(self, name) is not None:
                bound(name, getattr(self, name), "growtas")


def share_of_fall(losses: Sequence[float], window: int) -> float | None:
    """How much of all that a loss fell it fell between the last two windows of epochs.

    Args:
        losses: one per epoch, of the stage.
        window: epochs.

    Returns:
        Below 0 where it rose; 0 where it never fell; None while there are not two windows.
    """
    if len(losses) < 2 * window:
        return None
    before, last = _mean(losses[-2 * window : -window]), _mean(losses[-window:])
    fallen = max(losses) - last
    return (before - last) / fallen if fallen > 0 else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


class AdaptiveStages:
    """The stages of a run, of which each after the first is opened by the rule, or at its latest epoch.

    Args:
        stages: the plan with every stage at its latest epoch.
        epochs: of the run.
        options: of the rule.
        warmup_epochs: no stage opens before they are over.

    Attributes:
        stages: as they stand now; those that are not open yet are at their latest epochs.

    Raises:
        UsageError: the first transition would have to come before the warm-up is over.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        epochs: int,
        options: TransitionOptions,
        warmup_epochs: float = 0.0,
    ) -> None:
        self.stages = tuple(stages)
        self.least, self.warmup = least_epochs(epochs), math.ceil(warmup_epochs)
        if len(stages) > 1 and self.warmup > stages[1].first_epoch:
            raise UsageError(
                f"warmup_epochs={warmup_epochs:g} lasts beyond epoch {stages[1].first_epoch}, the latest at "
                f"which transition={PLATEAU!r} begins stage 2 of {len(stages)} in {epochs} epochs; lower it "
                "or train longer."
            )
        self.window = options.window or math.ceil(WINDOW_SHARE * epochs)
        self.tolerance, self.least_fall = options.tolerance, options.least_fall
        self.opened_by: list[str] = []  # of stages 1, 2, ...: PLATEAU or LATEST
        self._first_loss: float | None = None  # of the run's first epoch
        self._losses: list[float] = []  # of the epochs of the active stage
        self._sum, self._steps = 0.0, 0  # of the epoch's losses so far

    @property
    def waiting(self) -> int | None:
        """The stage that opens next; None where all are open."""
        number = len(self.opened_by) + 1
        return number if number < len(self.stages) else None

    def earliest(self, stage: int) -> int:
        """The first epoch at which a stage may begin, the one before it being open."""
        return max(self.stages[stage - 1].first_epoch + self.least, self.warmup)

    def add_loss(self, loss: float) -> None:
        """Take a step's loss into the mean of its epoch; one that is not finite does not count."""
        if math.isfinite(loss):
            self._sum += loss
            self._steps += 1

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Look at an epoch that has ended, and open the next stage if it is time.

        Args:
            epoch: its number, from 0; it has been handed :meth:`add_loss` for every step.

        Returns:
            What was seen, for the log, and ``opens``, ``at_epoch`` and ``opened_by`` where a stage opens.
        """
        number = self.waiting
        if number is None:
            return {}
        seen: dict[str, Any] = {}
        if self._steps:
            seen["loss"] = self._sum / self._steps
            self._losses.append(seen["loss"])
            self._first_loss = self._losses[0] if self._first_loss is None else self._first_loss
        self._sum, self._steps = 0.0, 0
        settled = self._judge(seen)
        if epoch + 1 >= self.stages[number].first_epoch:
            by = LATEST
        elif settled and epoch + 1 >= self.earliest(number):
            by = PLATEAU
        else:
            return seen
        self._open(number, epoch + 1, by)
        return seen | {"opens": number, "at_epoch": epoch + 1, "opened_by": by}

    def _judge(self, seen: dict[str, Any]) -> bool:
        """Return whether the rule fires on what it has seen so far; what it looks at is put into ``seen``."""
        share = share_of_fall(self._losses, self.window)
        if share is None:
            return False
        seen["share_of_fall"] = share
        return share <= self.tolerance and self._has_fallen()

    def _has_fallen(self) -> bool:
        """Return whether the loss is far enough below the run's first epoch's."""
        if len(self._losses) < self.window or self._first_loss is None:
            return False
        return _mean(self._losses[-self.window :]) <= (1 - self.least_fall) * self._first_loss

    def _open(self, number: int, epoch: int, by: str) -> None:
        opened = dataclasses.replace(self.stages[number], first_epoch=epoch)
        self.stages = (*self.stages[:number], opened, *self.stages[number + 1 :])
        self.opened_by.append(by)
        self._losses.clear()

    # -- state -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs, as plain values."""
        return {
            "first_epochs": [stage.first_epoch for stage in self.stages],
            "opened_by": list(self.opened_by),
            "first_loss": self._first_loss,
            "losses": list(self._losses),
            "sum": self._sum,
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            GrowtasError: it is not the state of these stages.
        """
        try:
            stages = [
                Stage(stage.groups, int(first))
                for stage, first in zip(self.stages, state["first_epochs"], strict=True)
            ]
            opened_by, first_loss = list(state["opened_by"]), state["first_loss"]
            losses, total, steps = list(state["losses"]), float(state["sum"]), int(state["steps"])
        except (KeyError, TypeError, ValueError) as error:
            raise GrowtasError(
                f"The checkpoint does not hold the stages of transition={PLATEAU!r} ({error}); another "
                "version wrote it."
            ) from error
        self.stages, self.opened_by, self._first_loss = tuple(stages), opened_by, first_loss
        self._losses, self._sum, self._steps = losses, total, steps


def check_options(options: TransitionOptions, transition: str) -> None:
    """Raises: UsageError: options of the rule were given, but the epochs of the transitions are fixed."""
    given = [f.name for f in dataclasses.fields(options) if getattr(options, f.name) != f.default]
    if given and transition != PLATEAU:
        raise UsageError(
            f"{given[0]} of growtas has a meaning only with transition={PLATEAU!r}, not with "
            f"{transition!r}; leave it out."
        )
