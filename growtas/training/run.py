"""A run is a folder: config.yaml, log.jsonl, checkpoint.pt, tensorboard/. Nothing else is written.

A run that continues another's weights has a copy of those besides, initial.safetensors.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from growtas import atomic, files
from growtas.bounds import CLASSES, Bound
from growtas.errors import GrowtasError, UsageError, command, quoted
from growtas.space import ModelSpace, Space, space_from_dict
from growtas.training.config import RUNTIME, TrainConfig, with_former
from growtas.training.log import LOG_NAME
from growtas.version import __version__, commit

if TYPE_CHECKING:
    from growtas.supernet.vit import VisionTransformer
    from growtas.training.data import Splits

CONFIG_NAME = "config.yaml"
INITIAL_NAME = "initial.safetensors"
FORMAT = 1
_HEADER = "# Everything needed to repeat this run. Continue it with: growtas {verb} --resume FOLDER\n"


@dataclass(frozen=True, repr=False)
class Run:
    """A training run, wherever its folder lies now.

    Args:
        path: the folder.
        config: the settings, every default filled in.
        space: the search space, as it was when the run began.
        num_classes: outputs of the head.
        steps_per_epoch: updates per epoch.
        images: sizes of the splits, and a digest of the data.
        versions: of growtas (its git commit too, ``+`` where the checkout was changed), torch, timm, numpy,
            Python and the platform when the run began.
        classes: names of the classes, in the order of the labels; empty where the data has none.
        teacher_digest: of the weights of the external teacher, where there is one.
        initial_digest: SHA-256 of initial.safetensors, where there is one.
    """

    path: Path
    config: TrainConfig
    space: Space
    num_classes: int
    steps_per_epoch: int
    images: Mapping[str, int | str] = field(hash=False)
    versions: Mapping[str, str] = field(hash=False)
    classes: tuple[str, ...] = ()
    teacher_digest: str | None = None
    initial_digest: str | None = None

    def __repr__(self) -> str:
        config = self.config
        return (
            f"Run({str(self.path)!r}: {config.method} on space {self.space.name!r} and data {config.data!r}, "
            f"{config.epochs} epochs, {self.steps:,} steps, {self.num_classes:,} classes)"
        )

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def checkpoint_path(self) -> Path:
        """Where the checkpoint is, or will be."""
        from growtas.training.checkpoint import CHECKPOINT_NAME

        return self.path / CHECKPOINT_NAME

    @property
    def finished(self) -> bool:
        """Return whether the checkpoint holds the last step, and the log the evaluation after it."""
        from growtas.training import checkpoint

        if not self.checkpoint_path.exists():
            return False
        state = checkpoint.load(self.checkpoint_path)
        return state["step"] == self.steps and not state.get("to_assess")

    @property
    def resume_command(self) -> str:
        """The command that continues the run."""
        return command(self._verb, "--resume", self.path)

    @property
    def _verb(self) -> str:
        return "transfer" if isinstance(self.space, ModelSpace) else "train"

    @classmethod
    def open(cls, path: str | Path | Run, of_model: bool = False) -> Run:
        """Open the folder of a run.

        Args:
            path: the folder; a Run is given back as it is.
            of_model: open a run of one model, which growtas transfer made, rather than one of a supernet.

        Raises:
            UsageError: the folder does not exist or holds no run of that kind.
            GrowtasError: config.yaml cannot be understood.
        """
        if isinstance(path, Run):
            return path
        path = Path(path)
        file = path / CONFIG_NAME
        if not file.is_file():
            state = "holds no run: it has no config.yaml" if path.is_dir() else "does not exist"
            raise UsageError(
                f"The run folder {path} {state}. Start one with: {command('train', '--out', path)}"
            )
        with files.reading(file, "the configuration of a run", "Nothing was changed; put a good copy back."):
            data = files.read_yaml(file)
            if data["format"] != FORMAT:
                raise GrowtasError(
                    f"{file} has format {data['format']}, but growtas {__version__} reads format {FORMAT}."
                )
            run = cls(
                path=path,
                config=TrainConfig.from_dict(with_former(data["train"])),
                space=space_from_dict(data["space"]),
                num_classes=data["num_classes"],
                steps_per_epoch=data["steps_per_epoch"],
                images=data["images"],
                versions=data["versions"],
                classes=tuple(data.get("classes", ())),
                teacher_digest=data.get("teacher_digest"),
                initial_digest=data.get("initial_digest"),
            )
            run._check()
        if isinstance(run.space, ModelSpace) != of_model:
            kind = "trains a supernet" if of_model else "fine-tunes one model, which has no subnets"
            raise UsageError(f"The run {path} {kind}. Continue it with: {run.resume_command}")
        return run

    def _check(self) -> None:
        """Raises: ValueError: a field of config.yaml is not what growtas writes there."""
        CLASSES("num_classes", self.num_classes)
        for name in ("images", "versions"):
            values = getattr(self, name)
            if not isinstance(values, dict) or not all(
                isinstance(each, int | str) for each in values.values()
            ):
                raise UsageError(f"{name} must be names and values, not {quoted(values)}")
        if self.classes and len(self.classes) != self.num_classes:
            raise UsageError(f"it has {len(self.classes):,} classes, but num_classes={self.num_classes:,}")
        if not all(isinstance(each, str) for each in self.classes):
            raise UsageError(f"classes must be names, not {quoted(self.classes)}")
        for name in ("teacher_digest", "initial_digest"):
            if not isinstance(getattr(self, name), str | None):
                raise UsageError(f"{name} must be text, not {quoted(getattr(self, name))}")
        images, batch, steps = self.images["train"], self.config.batch_size, self.steps_per_epoch
        for name, value in (("images: train", images), ("batch_size", batch), ("epochs", self.config.epochs)):
            Bound(1, 10**12)(name, value)
        if isinstance(steps, bool) or steps != images // batch:
            raise UsageError(
                f"steps_per_epoch={quoted(steps)}, but {images:,} images in batches of {batch:,} make "
                f"{images // batch:,}"
            )

    def write_config(self) -> None:
        """Write config.yaml. Raises: GrowtasError: it could not be written."""
        data = {
            "format": FORMAT,
            "train": self.config.to_dict(),
            "space": self.space.to_dict(),
            "num_classes": self.num_classes,
            "steps_per_epoch": self.steps_per_epoch,
            "images": dict(self.images),
            "versions": dict(self.versions),
            "classes": list(self.classes),
            **({"teacher_digest": self.teacher_digest} if self.teacher_digest else {}),
            **({"initial_digest": self.initial_digest} if self.initial_digest else {}),
        }
        text = _HEADER.format(verb=self._verb)
        for name, value in data.items():
            if isinstance(value, dict) and value:
                text += f"{name}:\n" + "".join(f"  {yaml_line(key, each)}" for key, each in value.items())
            else:
                text += yaml_line(name, value)
        atomic.write_text(self.path / CONFIG_NAME, text)

    def identity(self) -> dict[str, Any]:
        """The fields that a checkpoint must agree with to belong to this run."""
        settings = self.config.to_dict()
        for name in ("out", "data", "download", "initial", *RUNTIME):  # folders may have moved
            settings.pop(name)
        return {**settings, "space": self.space.to_dict(), "num_classes": self.num_classes}

    def load_net(self, device: str = "cpu", averaged: bool = False) -> VisionTransformer:
        """The supernet with the checkpoint's weights, in evaluation mode.

        Args:
            device: where to put it.
            averaged: take the moving average of the weights instead of the weights.

        Raises:
            UsageError: the run keeps no average.
            GrowtasError: there is no checkpoint yet, or it does not belong to the run.
        """
        from growtas.training import checkpoint

        state = checkpoint.load(self.checkpoint_path)
        checkpoint.check_belongs(state, self.identity(), self.checkpoint_path)
        if averaged and "ema" not in state:
            raise UsageError(
                f"The run {self.path} keeps no averaged weights; train it with ema_decay, such as 0.9999."
            )
        net = self.new_net()
        chosen = {"weights": state["ema" if averaged else "weights"]}
        checkpoint.load_weights(net, chosen, self.checkpoint_path)
        return net.to(device).eval()

    def new_net(self) -> VisionTransformer:
        """The supernet as the settings describe it, freshly initialised from torch's global generator."""
        from growtas.supernet import SingleModel, Supernet

        config = self.config
        if isinstance(self.space, ModelSpace):
            return SingleModel.new(self.space, self.num_classes, config.drop_path)
        return Supernet(
            self.space,
            self.num_classes,
            config.qkv_bias,
            config.drop_path,
            config.unused_blocks,
            **{
                name: value
                for name in ("global_pool", "norm_eps")
                if (value := getattr(config, name)) is not None
            },
        )

    def splits(self) -> Splits:
        """Load the run's data.

        Raises:
            UsageError: it is not where it was.
            GrowtasError: it is not what it was: sizes or digest differ; or an image cannot be read.
        """
        from growtas.training.data import splits_of

        found = splits_of(self.config, self.space)
        known = {name: found.summary()[name] for name in self.images}  # an older run has no digest
        if known != dict(self.images):
            raise GrowtasError(
                f"The data {self.config.data!r} has changed since the run began: it was {dict(self.images)}, "
                f"and is {known}. Put it back; nothing was changed."
            )
        return found


def read_config(path: str | Path) -> tuple[dict[str, Any], Space]:
    """The settings of a run but its folder, and its space, for another run to begin with.

    Args:
        path: its config.yaml, or the folder.

    Raises:
        UsageError: there is no such file.
        GrowtasError: it is no configuration of a run.
    """
    path = Path(path)
    if not path.is_dir() and path.name != CONFIG_NAME:
        raise UsageError(f"config={str(path)!r} must be a run's {CONFIG_NAME}, or its folder.")
    run = Run.open(path if path.is_dir() else path.parent)
    return run.config.to_dict() | {"out": None}, run.space


def yaml_line(key: str, value: Any) -> str:
    """One setting on one line, lists in brackets."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**16)
    return f"{key}: {text.removesuffix('...' + chr(10)).strip()}\n"


def versions() -> dict[str, str]:
    """The versions that the result of a run may depend on besides its settings."""
    import numpy
    import PIL
    import timm
    import torch

    from growtas import native

    made_from = commit() or native.metadata("cpu").get("commit")  # a wheel knows what it was built from
    return {
        "growtas": __version__,
        **({"commit": made_from} if made_from else {}),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        **({"triton": version("triton")} if find_spec("triton") else {}),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def check_free(path: Path) -> None:
    """Raises: UsageError: the folder holds something else than what a killed process left unfinished."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; choose a folder for the run.")
    if not path.is_dir():
        return
    if (path / CONFIG_NAME).exists():
        raise UsageError(
            f"{path} holds another run. Continue it with: {command('train', '--resume', path)} - or choose "
            "another folder. Nothing was changed."
        )
    held = sorted(entry.name for entry in path.iterdir() if not is_leftover(entry))
    if LOG_NAME in held and not (path / LOG_NAME).stat().st_size:  # a run that was killed while its folder
        held.remove(LOG_NAME)  # was made: config.yaml comes last
    if held and held != [INITIAL_NAME]:
        raise UsageError(
            f"{path} is not empty (it holds {', '.join(held[:3])}); choose another folder for the run. "
            "Nothing was changed."
        )


def is_leftover(path: Path) -> bool:
    """Return whether this is a temporary file of an atomic write that a killed process did not finish."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_leftovers(path: Path) -> None:
    """Remove what atomic writes of a killed process left behind; call it under the run's lock."""
    for entry in path.iterdir():
        if is_leftover(entry) and entry.is_file():
            with suppress(OSError):  # one that stays harms nobody
                entry.unlink(missing_ok=True)
