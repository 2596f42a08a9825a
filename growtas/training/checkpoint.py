"""Checkpoints that are whole or not there: everything that the next step depends on, replaced atomically."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from growtas import atomic
from growtas.errors import GrowtasError, UsageError
from growtas.files import damaged_record
from growtas.space import space_from_dict
from growtas.training.config import RUNTIME, TrainConfig, with_former
from growtas.training.log import disk_error

CHECKPOINT_NAME = "checkpoint.pt"
FORMAT = "growtas checkpoint 1"
KEYS = (
    "format",
    "run",
    "step",
    "skipped",
    "skipped_in_a_row",
    "log_offset",
    "weights",
    "optimizer",
    "scheduler",
    "method",
    "generator",
    "versions",
)
LATER_KEYS = ("ranks", "to_assess", "log_check", "environment")
"""Keys that the checkpoints of earlier versions lack."""


@dataclass
class Progress:
    """Where a run stands.

    Args:
        step: updates done.
        skipped: of them without effect.
        skipped_in_a_row: the last ones of those.
        checkpoint_step: of the last checkpoint, if there is one.
        checkpoint_time: when it was written, or the process began.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    checkpoint_step: int | None = None
    checkpoint_time: float = field(default_factory=time.monotonic)

    def checkpoint_due(self, config: TrainConfig) -> bool:
        """Return whether the settings ask for a checkpoint within an epoch."""
        waited = time.monotonic() - self.checkpoint_time
        since = self.step - (self.checkpoint_step or 0)
        steps, seconds = config.checkpoint_every_steps, config.checkpoint_every_seconds
        return bool(steps and since >= steps or seconds and waited >= seconds)

    def saved(self) -> None:
        """Note that a checkpoint was written."""
        self.checkpoint_step, self.checkpoint_time = self.step, time.monotonic()


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Replace a checkpoint.

    Args:
        path: the file.
        state: the values of :data:`KEYS` but ``format``: tensors and plain values only.

    Raises:
        GrowtasError: the disk is full or the file cannot be written; the old checkpoint is untouched.
    """
    buffer = io.BytesIO()  # torch's own writer hides why a disk refused; a plain write does not
    torch.save({"format": FORMAT, **state}, buffer)
    try:
        atomic.write_bytes(path, buffer.getvalue())  # getbuffer's view crashes CPython 3.12.1's collector
    except atomic.NotWritten as error:  # the remedy of a run is to resume it
        raise disk_error(error.__cause__, path) from error


def load(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing in it can run code.

    Args:
        path: the file.
        map_location: where the tensors go.

    Raises:
        GrowtasError: the file is missing, truncated, damaged (by one bit, too), or no checkpoint of growtas;
            it is left as it is.
    """
    try:
        with open(path, "rb") as file:
            damaged = damaged_record(file)  # torch reads over flipped bits
            file.seek(0)
            state = None if damaged else torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise GrowtasError(f"There is no checkpoint {path} yet; resume the run to write one.") from error
    except OSError as error:
        raise GrowtasError(
            f"{path} cannot be read ({(error.strerror or str(error)).lower()}). Nothing was changed; make it "
            "readable and repeat the command."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # an unpickler that is fed garbage may raise anything
        raise GrowtasError(
            f"{path} is no checkpoint of growtas ({type(error).__name__}). Nothing was changed; "
            "put the right file in its place, or move it away and resume to start the run again."
        ) from error
    if damaged:
        raise GrowtasError(
            f"{path} is truncated or damaged: {damaged} does not match its checksum. Nothing "
            "was changed; put a good copy in its place, or move it away and resume to start the run again."
        )
    if not isinstance(state, dict) or not set(KEYS) <= set(state) or state["format"] != FORMAT:
        raise GrowtasError(
            f"{path} is no checkpoint of growtas, or one of another version. Nothing was changed; "
            "put the right file in its place, or move it away and resume to start the run again."
        )
    return state


def check_belongs(state: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    """Raises: GrowtasError: the checkpoint was written by a run of other settings than ``identity``."""
    known, before = dict(state["run"]), dict.fromkeys(identity)
    with suppress(UsageError, LookupError, TypeError, AttributeError):  # else it differs
        known["space"] = space_from_dict(known["space"]).to_dict()  # with fields that are younger
    for name, value in with_former(known).items():
        if name in identity or name in known and name not in RUNTIME:  # it may have become one of these
            before[name] = value
    differing = [name for name, value in sorted(before.items()) if value != identity.get(name)]
    if differing:
        raise GrowtasError(
            f"{path} belongs to another run: it differs from config.yaml in {', '.join(differing)}. Nothing "
            "was changed; put the right checkpoint in its place, or move it away and resume to start again."
        )


def load_weights(net: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Raises: GrowtasError: the checkpoint's weights are not those of this network."""
    try:
        net.load_state_dict(state["weights"])
    except RuntimeError as error:
        raise GrowtasError(
            f"{path} does not fit the network of config.yaml ({str(error).splitlines()[-1].strip()}). "
            "Nothing was changed."
        ) from error
