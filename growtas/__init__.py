"""growtas: supernets of vision transformers, trained small to large, searched and exported.

The names below are loaded when first used: importing growtas touches no GPU and imports no plotting, command
line or kernel code.
"""

import importlib
from typing import TYPE_CHECKING, Any

from growtas.version import __version__

if TYPE_CHECKING:
    from growtas import analysis, cost, ops
    from growtas.analysis.report import report
    from growtas.checking import check
    from growtas.comparing import compare
    from growtas.errors import GrowtasError, UsageError
    from growtas.export import extract
    from growtas.export.transfer import transfer
    from growtas.searching import search
    from growtas.searching.emission import emit
    from growtas.searching.evaluate import evaluate
    from growtas.space import SearchSpace, load_space
    from growtas.spaces.mobilenet import MobileNetSpace
    from growtas.spaces.mobilenet_subnet import MobileNetSubnet
    from growtas.subnet import Subnet
    from growtas.supernet import Supernet
    from growtas.timing import latency
    from growtas.training import train
    from growtas.training.data.pack import data_pack
    from growtas.training.finetune import finetune
    from growtas.tuning.driver import tune

_HOME = {
    "GrowtasError": "growtas.errors",
    "MobileNetSpace": "growtas.spaces.mobilenet",
    "MobileNetSubnet": "growtas.spaces.mobilenet_subnet",
    "SearchSpace": "growtas.space",
    "Subnet": "growtas.subnet",
    "Supernet": "growtas.supernet",
    "UsageError": "growtas.errors",
    "check": "growtas.checking",
    "compare": "growtas.comparing",
    "data_pack": "growtas.training.data.pack",
    "emit": "growtas.searching.emission",
    "evaluate": "growtas.searching.evaluate",
    "extract": "growtas.export",
    "finetune": "growtas.training.finetune",
    "latency": "growtas.timing",
    "load_space": "growtas.space",
    "report": "growtas.analysis.report",
    "search": "growtas.searching",
    "train": "growtas.training",
    "transfer": "growtas.export.transfer",
    "tune": "growtas.tuning.driver",
}
_MODULES = ("analysis", "cost", "ops")

__all__ = [
    "GrowtasError",
    "MobileNetSpace",
    "MobileNetSubnet",
    "SearchSpace",
    "Subnet",
    "Supernet",
    "UsageError",
    "__version__",
    "analysis",
    "check",
    "compare",
    "cost",
    "data_pack",
    "emit",
    "evaluate",
    "extract",
    "finetune",
    "latency",
    "load_space",
    "ops",
    "report",
    "search",
    "train",
    "transfer",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # also over a submodule of that name: growtas.search is the function
        return value
    if name in _MODULES:
        return importlib.import_module(f"growtas.{name}")
    raise AttributeError(f"module 'growtas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
