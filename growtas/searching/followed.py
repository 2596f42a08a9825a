"""A search on several ranks: rank 0 writes the log, and the others follow it in memory. No torch."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from growtas.subnet import AnySubnet


class FollowedLog:
    """The log in the memory of a rank other than the first, for :class:`growtas.searching.log.SearchLog`.

    Args:
        path: of the log.
        evaluations: that stand in it.
        result: that stands in it, or None.
        prior: as of that class.
    """

    def __init__(
        self,
        path: Path,
        evaluations: list[dict[str, Any]],
        result: dict[str, Any] | None,
        prior: dict[AnySubnet, float],
    ) -> None:
        self.path, self.evaluations, self.result, self.prior = path, evaluations, result, prior

    def __enter__(self) -> FollowedLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def add_evaluation(self, values: dict[str, Any]) -> None:
        """Note an evaluation that rank 0 writes."""
        self.evaluations.append(values)

    def add_result(self, values: dict[str, Any]) -> None:
        """Note the result that rank 0 writes."""
        self.result = values

    def sync(self) -> None:
        """Do nothing: rank 0 flushes the log."""
