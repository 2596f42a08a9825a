"""What was measured along some runs, as figure and sentences of "Interference" read it."""

from __future__ import annotations

import statistics

from growtas.analysis.base import Analysis

WHOLE = "all"  # in the column of layers: over all shared weights together


class InterferenceTables(Analysis):
    """The tables of :class:`growtas.analysis.interference.GradientInterference`, read."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that were measured, in order."""
        return tuple(dict.fromkeys(self.tables["cosines"].column("method")))

    def seeds(self, method: str) -> list[int]:
        """The seeds of a method."""
        return sorted(set(self.tables["cosines"].where(method=method).column("seed")))

    def course(self, method: str, layer: str = WHOLE) -> dict[int, list[tuple[float, float | None]]]:
        """For each epoch the cosine and its control of every seed that has the layer there."""
        table = self.tables["cosines"].where(method=method, layer=layer)
        found: dict[int, list[tuple[float, float | None]]] = {}
        for epoch, cosine, control in zip(*map(table.column, ("epoch", "cosine", "control")), strict=True):
            found.setdefault(epoch, []).append((cosine, control))
        return dict(sorted(found.items()))

    def begins(self, method: str) -> list[float]:
        """The epochs of the transitions of a method, each the mean over the seeds."""
        table = self.tables["transitions"].where(method=method)
        return [
            statistics.fmean(table.where(stage=k).column("epoch")) for k in sorted(set(table.column("stage")))
        ]
