"""Search for the best subnet under a limit; the package is callable: ``growtas.search(run, ...)``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from growtas.search.driver import read_result, search
from growtas.search.evolution import Evolution, EvolutionConfig
from growtas.search.limits import FeasibleSet, Limits
from growtas.search.log import SearchLog
from growtas.search.result import Evaluation, SearchResult

__all__ = [
    "Evaluation",
    "Evolution",
    "EvolutionConfig",
    "FeasibleSet",
    "Limits",
    "SearchLog",
    "SearchResult",
    "read_result",
    "search",
]


class _CallableModule(ModuleType):
    """``growtas.search`` is both this package and, in the API, the function of the same name: importing any
    file of the package binds the package to that name, so the package itself has to answer the call."""

    def __call__(self, *args: Any, **kwargs: Any) -> SearchResult:
        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
_CallableModule.__call__.__doc__ = search.__doc__
