"""How subnets are sampled and phased during training: one file per method, found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from growtas.errors import UsageError, nearest
from growtas.methods.base import Method, MethodSettings, TrainingContext, register, registered
from growtas.methods.schedule import Stage

__all__ = [
    "Method",
    "MethodSettings",
    "Stage",
    "TrainingContext",
    "create_method",
    "method_names",
    "register",
]

_loaded = False


def _load() -> None:
    """Import every module of this package once, so that each registers its method."""
    global _loaded
    if not _loaded:
        for module in pkgutil.iter_modules(__path__):
            importlib.import_module(f"{__name__}.{module.name}")
        _loaded = True


def method_names() -> tuple[str, ...]:
    """Names of the methods that :func:`create_method` knows."""
    _load()
    return tuple(sorted(registered()))


def create_method(name: str, settings: MethodSettings) -> Method:
    """Build a method by name.

    Args:
        name: such as ``"growtas"`` or ``"uniform"``.
        settings: of the run.

    Raises:
        UsageError: there is no such method (the nearest is named), or the settings do not fit it.
    """
    _load()
    methods = registered()
    if name not in methods:
        raise UsageError(f"There is no method {name!r}.{nearest(str(name), methods)}")
    return methods[name](settings)
