"""The training loop, its data, its checkpoints and the run folder. Names are loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growtas.training.config import TrainConfig
    from growtas.training.run import Run
    from growtas.training.start import begin, train

_HOME = {
    "Run": "growtas.training.run",
    "TrainConfig": "growtas.training.config",
    "begin": "growtas.training.start",
    "train": "growtas.training.start",
}

__all__ = ["Run", "TrainConfig", "begin", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
