"""The paper's analyses: one module per figure, each also a function for a notebook.

The names below are loaded when first used: no plotting code is imported before.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME: dict[str, str] = {}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'growtas.analysis' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"growtas.analysis.{_HOME[name]}"), name)
    globals()[name] = value  # also over a submodule of that name
    return value


def __dir__() -> list[str]:
    return __all__
