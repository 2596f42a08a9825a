"""The measurement of interference along a run, as ``interference_every`` asks for it."""

from __future__ import annotations

from typing import Any

from growtas.errors import UsageError
from growtas.methods import TrainingContext
from growtas.methods.interference import between_groups
from growtas.training.run import Run


class InterferenceMonitor:
    """Measures the smallest group of subnets against the largest one. It changes nothing in the run.

    Args:
        run: gives the groups, and the epochs between measurements.
        training: what is measured.

    Raises:
        UsageError: the space has only one group.
    """

    def __init__(self, run: Run, training: TrainingContext) -> None:
        self.run, self.training = run, training
        self.every = run.config.interference_every
        self.large = len(run.space.groups) - 1
        if self.every and not self.large:
            raise UsageError(
                f"interference_every={self.every} compares the groups of a space, but {run.space.name!r} has "
                "only one; leave it out."
            )

    def due(self, step: int) -> bool:
        """Return whether to measure before a step: the first, each ``interference_every`` epochs, the end."""
        if not self.every:
            return False
        return step % (self.every * self.run.steps_per_epoch) == 0 or step == self.run.steps

    def measure(self, step: int) -> dict[str, Any]:
        """The record of a measurement before a step. Every rank must take part."""
        found = between_groups(self.training, (0,), (self.large,), self.run.config.seed, step)
        control = found["control"].to_dict()
        return {"small": 0, "large": self.large, **found["between"].to_dict(), "control": control}
