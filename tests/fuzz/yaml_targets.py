"""Search spaces and configurations of runs, which are YAML files."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mutators
from harness import Target

from growtas import cost
from growtas.space import PRESET_FOLDER, load_space
from growtas.training.config import TrainConfig
from growtas.training.run import CONFIG_NAME, Run, read_config

SPACE = "space.yaml"


def _spaces() -> Sequence[bytes]:
    return [path.read_bytes() for path in sorted(PRESET_FOLDER.glob("*.yaml"))]


def _place_space(data: bytes, folder: Path) -> None:
    (folder / SPACE).write_bytes(data)


def _read_space(folder: Path) -> None:
    """Read a space, and ask it what listings and training ask of it."""
    space = load_space(folder / SPACE)
    space.count()
    subnet = space.parse(str(space.largest()))
    assert subnet in space and type(space).from_dict(space.to_dict()) == space
    cost.parameters(space.smallest(), space, 10)
    cost.macs(subnet, space, 10)


def _configs() -> Sequence[bytes]:
    """Of a run on the digits, and of one of convolutions."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("digits", "digits-mobilenet"):
            space = load_space(name)
            config = TrainConfig(name, out="runs/one", stages=2, epochs=4).resolved(name != "digits")
            images = {"train": 1151, "search": 287, "test": 359, "digest": "0123456789abcdef"}
            steps = images["train"] // config.batch_size
            versions = {"growtas": "1.0", "torch": "2.11", "python": "3.12"}
            classes = tuple(map(str, range(10)))
            run = Run(Path(folder), config, space, 10, steps, images, versions, classes)
            run.write_config()
            found.append((Path(folder) / CONFIG_NAME).read_bytes())
    return found


def _place_config(data: bytes, folder: Path) -> None:
    (folder / CONFIG_NAME).write_bytes(data)


def _read_run(folder: Path) -> None:
    """Open a run, and begin another with its settings."""
    run = Run.open(folder)
    repr(run), run.identity(), run.resume_command
    assert isinstance(run.steps, int) and run.steps > 0
    values, _ = read_config(folder)
    TrainConfig.from_dict(values)


TARGETS = (
    Target("space", functools.cache(_spaces), mutators.yaml, _read_space, _place_space, share=3),
    Target("run-config", functools.cache(_configs), mutators.yaml, _read_run, _place_config, share=3),
)
