"""Costs that a Pareto search weighs against accuracy. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from growtas.errors import UsageError, nearest
from growtas.searching.latency import LatencyFeasibleSet
from growtas.searching.limits import FeasibleSet
from growtas.subnet import AnySubnet


@dataclass(frozen=True)
class Objective:
    """A cost of a subnet; less is better.

    Args:
        name: one word, for file names and columns.
        unit: of its values.
        measure: the cost of a subnet; called once per evaluated subnet, and what it gave stands in the log.
            A search with a predictor calls it for its proposals too.

    Example:
        >>> depth = Objective("depth", "blocks", lambda subnet: subnet.depth)
        >>> growtas.search("runs/tiny", pareto=depth)  # doctest: +SKIP
    """

    name: str
    unit: str
    measure: Callable[[AnySubnet], float]


def objective_of(pareto: str | Objective, feasible: FeasibleSet) -> Objective:
    """An objective by its name, ``params``, ``macs`` or ``latency``.

    Raises:
        UsageError: it has another name, or no latencies are known.
    """
    if isinstance(pareto, Objective):
        return pareto
    known = {
        "params": Objective("params", "parameters", lambda subnet: feasible.cost(subnet)[0]),
        "macs": Objective("macs", "MACs", lambda subnet: feasible.cost(subnet)[1]),
    }
    if isinstance(feasible, LatencyFeasibleSet):
        known["latency"] = Objective("latency", "ms", feasible.latency_ms)
    elif pareto == "latency":
        raise UsageError("pareto='latency' needs the latencies: give latency=growtas.latency(run).")
    if pareto not in known:
        raise UsageError(f"pareto={pareto!r} is no known cost.{nearest(str(pareto), known)}")
    return known[pareto]
