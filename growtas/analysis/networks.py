"""The networks that a report trains for its figures: names, settings, folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.errors import GrowtasError, UsageError, nearest
from growtas.space import Space, load_space
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.training.config import RUNTIME, TrainConfig

if TYPE_CHECKING:
    from growtas.training.run import Run

_QUIET = {"eval_every": 0, "eval_subnets": 0, "tensorboard": False}
MEASUREMENTS = 20  # of interference, over a run
OFA_SPACE, OFA_IMAGE_SIZE = "ofa-mobilenetv3", 32
OFA_EPOCHS = 5  # one for so many of the report's: a step of the largest network takes twenty times as long


@dataclasses.dataclass(frozen=True)
class Networks:
    """What can be trained for a report, in folders below one folder.

    Args:
        folder: that holds one folder per network.
        config: of an ordinary run on the report's data: the recipe of all of them.
        space: of the report.
        ofa_space: convolutional, of figure E, for the same data.
        device: to compute on.
    """

    folder: Path
    config: TrainConfig
    space: Space
    ofa_space: MobileNetSpace
    device: str = "auto"

    def path(self, name: str) -> Path:
        """The folder of a network."""
        return self.folder / name

    def space_of(self, name: str) -> Space:
        """What a network's subnets are chosen from."""
        return self.ofa_space if name.startswith("ofa-") else self.space

    def settings(self, name: str) -> TrainConfig:
        """The settings of a network.

        Args:
            name: ``smallest`` and ``largest`` (only that subnet is trained), ``ofa-smallest`` and
                ``ofa-largest`` (the same in the convolutional space), ``METHOD-SEED`` such as ``growtas-0``
                (an ordinary run along which interference is measured).

        Raises:
            UsageError: there is no such network.
        """
        own: dict[str, Any] = {"device": self.device, "out": str(self.path(name)), **_QUIET}
        family, _, which = name.rpartition("-")
        if which in ("smallest", "largest") and family in ("", "ofa"):
            own |= {"method": "single", "method_options": f"subnet={which}"}
        elif family in ("uniform", "growtas") and which.isdigit():
            every = max(1, self.config.epochs // MEASUREMENTS)
            own |= {"method": family, "seed": self.config.seed + int(which), "interference_every": every}
            if family != self.config.method:
                own |= {"method_options": ""}
        else:
            known = ("smallest", "largest", "ofa-smallest", "ofa-largest", "uniform-0", "growtas-0")
            raise UsageError(f"A report trains no network {name!r}.{nearest(name, known)}")
        return dataclasses.replace(self._recipe(name), space=self.space_of(name).name, **own)

    def _recipe(self, name: str) -> TrainConfig:
        """The settings that do not belong to a method: a convolutional network has the recipe of its kind."""
        if self.space_of(name) is self.space:
            return self.config
        kept = ("space", "data", "seed", "split_seed", "amp", *RUNTIME)
        values = {key: value for key, value in self.config.to_dict().items() if key in kept}
        values["epochs"] = max(1, self.config.epochs // OFA_EPOCHS)
        return TrainConfig.from_dict(values).resolved(convolutional=True)

    def finished(self, name: str) -> bool:
        """Whether a network is trained."""
        from growtas.training.run import CONFIG_NAME, Run

        path = self.path(name)
        return (path / CONFIG_NAME).exists() and Run.open(path).finished

    def train(self, name: str) -> Run:
        """Train a network, or go on where it was stopped.

        Raises:
            GrowtasError: its folder holds a run of other settings.
        """
        from growtas.training.run import CONFIG_NAME, Run
        from growtas.training.start import begin, train

        config, path = self.settings(name), self.path(name)
        if not (path / CONFIG_NAME).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            return begin(config, self.space_of(name))
        run = Run.open(path)
        held, wanted = run.config.to_dict(), config.to_dict()
        named = [key for key in wanted if key not in ("out", *RUNTIME) and wanted[key] != "auto"]
        differing = [key for key in named if held[key] != wanted[key]]
        if differing:
            key = differing[0]
            raise GrowtasError(
                f"The network in {path} was begun with {key}={held[key]}, not {wanted[key]}; remove that "
                "folder, or choose another one for the report."
            )
        return run if run.finished else train(resume=path, device=self.device)

    def run(self, name: str) -> Run:
        """A network that is trained. Raises: GrowtasError: it is not."""
        from growtas.training.run import Run

        if not self.finished(name):
            raise GrowtasError(f"The network {name!r} of the report is not trained: {self.path(name)}.")
        return Run.open(self.path(name))


def ofa_space_for(space: Space) -> MobileNetSpace:
    """Once-for-all's space for small images of the channels that a space takes: the choices are the same."""
    published = load_space(OFA_SPACE)
    return dataclasses.replace(
        published,
        name=f"{OFA_SPACE}-{OFA_IMAGE_SIZE}",
        image_size=OFA_IMAGE_SIZE,
        in_channels=space.in_channels,
    )
