"""What the parts of a report share: settings, trained networks, kept evaluations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from growtas.analysis.networks import Networks
from growtas.space import Space
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.training.config import TrainConfig

if TYPE_CHECKING:
    from growtas.analysis.base import Analysis
    from growtas.training.run import Run

SUBNETS = 100  # of the paper's figure 1
SEEDS = 3


@dataclass(frozen=True)
class Workspace:
    """The folder of a report and what it is about.

    Args:
        folder: ``networks/``, ``parts/``, ``compare/`` and the log of evaluations lie in it.
        config: of an ordinary run on the report's data, every default filled in.
        space: whose subnets are looked at.
        ofa_space: convolutional, for figure E.
        num_classes: of the data.
        images: sizes of its splits.
        seeds: of the networks that interference is measured along, and of the comparison of methods.
        subnets: that are drawn for figures 1, C and E.
        device: to compute on, such as ``cpu``.
        source: the finished run that the report is about; None where it is about a space and data alone.
    """

    folder: Path
    config: TrainConfig
    space: Space
    ofa_space: MobileNetSpace
    num_classes: int
    images: Mapping[str, int] = field(default_factory=dict, hash=False)
    seeds: int = SEEDS
    subnets: int = SUBNETS
    device: str = "cpu"
    source: Run | None = None

    @property
    def seed(self) -> int:
        """Of everything that is drawn for the report."""
        return self.config.seed

    @property
    def convolutional(self) -> bool:
        """Whether the report is about a space of convolutional networks."""
        return isinstance(self.space, MobileNetSpace)

    @functools.cached_property
    def networks(self) -> Networks:
        """The networks that can be trained for the report."""
        folder = self.folder / "networks"
        return Networks(folder, self.config, self.space, self.ofa_space, self.device)

    @property
    def evaluations(self) -> Path:
        """The log of what was evaluated."""
        return self.folder / "evaluations.jsonl"

    @property
    def comparison(self) -> Path:
        """The folder of the comparison of methods."""
        return self.folder / "compare"

    def run(self, name: str) -> Run:
        """A network by its name in :meth:`Networks.settings`. Raises: GrowtasError: it is not trained."""
        return self.networks.run(name)


@dataclass(frozen=True)
class Part:
    """One figure or table of a report.

    Args:
        kind: the analysis that it makes.
        make: makes it; the networks are trained then.
        networks: names of the networks that it needs.
        compares: whether it needs the comparison of methods.
        reason: why it cannot be made for a report, as a sentence; None where it can.
        long: whether it takes longer than the others: such a part, and its networks, are begun first, so that
            the last process does not work alone.
    """

    kind: type[Analysis]
    make: Callable[[Workspace], Analysis]
    networks: Callable[[Workspace], tuple[str, ...]] = lambda workspace: ()
    compares: bool = False
    reason: Callable[[Workspace], str | None] = lambda workspace: None
    long: bool = False
