"""Search for the best subnet under a limit. ``growtas.search`` is the function :func:`driver.search`."""

from growtas.searching.driver import search
from growtas.searching.evolution import Evolution, EvolutionConfig
from growtas.searching.feasible import feasible_set
from growtas.searching.folder import read_result
from growtas.searching.limits import FeasibleSet, Limits
from growtas.searching.log import SearchLog
from growtas.searching.objective import Objective
from growtas.searching.result import Evaluation, ParetoResult, Ranking, Score, SearchResult

__all__ = [
    "Evaluation",
    "Evolution",
    "EvolutionConfig",
    "FeasibleSet",
    "Limits",
    "Objective",
    "ParetoResult",
    "Ranking",
    "Score",
    "SearchLog",
    "SearchResult",
    "feasible_set",
    "read_result",
    "search",
]
