"""Search for the best subnet under a limit. ``growtas.search`` is the function :func:`driver.search`."""

from growtas.searching.driver import search
from growtas.searching.evolution import Evolution, EvolutionConfig
from growtas.searching.feasible import feasible_set
from growtas.searching.limits import FeasibleSet, Limits
from growtas.searching.log import SearchLog, read_result
from growtas.searching.result import Evaluation, SearchResult

__all__ = [
    "Evaluation",
    "Evolution",
    "EvolutionConfig",
    "FeasibleSet",
    "Limits",
    "SearchLog",
    "SearchResult",
    "feasible_set",
    "read_result",
    "search",
]
