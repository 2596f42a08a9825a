"""The folder of a report: settings, trained networks, kept evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from growtas.errors import GrowtasError
from growtas.jobs.folder import finished
from growtas.space import MobileNetSpace, Space
from growtas.training.config import TrainConfig

if TYPE_CHECKING:
    from growtas.training.run import Run

SUBNETS = 100  # of the paper's figure 1
SEEDS = 3


@dataclass(frozen=True)
class Workspace:
    """The settings that the parts of a report share, and its folder.

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
    def base(self) -> Path:
        """The folder that the page lies in."""
        return self.folder.parent

    @property
    def seed(self) -> int:
        """Of everything that is drawn for the report."""
        return self.config.seed

    @property
    def convolutional(self) -> bool:
        """Return whether the report is about a space of convolutional networks."""
        return isinstance(self.space, MobileNetSpace)

    @property
    def evaluations(self) -> Path:
        """The log of what was evaluated."""
        return self.folder / "evaluations.jsonl"

    @property
    def comparison(self) -> Path:
        """The folder of the comparison of methods."""
        return self.folder / "compare"

    def network(self, name: str) -> Path:
        """The folder of a network; see :func:`growtas.analysis.networks.settings`."""
        return self.folder / "networks" / name

    def run(self, name: str) -> Run:
        """A network that is trained. Raises: GrowtasError: it is not."""
        from growtas.training.run import Run

        if not finished(self.network(name)):
            raise GrowtasError(f"The network {name!r} of the report is not trained: {self.network(name)}.")
        return Run.open(self.network(name))
