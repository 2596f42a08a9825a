"""The paper's analyses: one module per figure, each also a function for a notebook.

The names below are loaded when first used: no plotting code is imported before.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_MODULES = (
    *("extend_and_crop", "initialisation", "interference", "methods_table", "sampling_schedule"),
    *("sampling_strategies", "similarity", "weight_regions", "weight_statistics"),
)
_HOME = {name: name for name in _MODULES} | {"extend_and_crop_convolutional": "extend_and_crop"}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'growtas.analysis' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"growtas.analysis.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """A package whose functions are not hidden by the modules of the same names, once those are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return __all__
