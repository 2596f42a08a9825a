"""The limits under which every method is searched. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from growtas import cost
from growtas.errors import UsageError

KINDS = {"params": "max_params", "macs": "max_macs"}
SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Limit:
    """The most that a subnet may cost: ``params``, or ``macs`` (multiply-accumulates of one image)."""

    kind: str
    most: int

    @classmethod
    def parse(cls, text: str | float) -> Limit:
        """Read ``60000``, ``6e4``, ``params=6e4`` or ``macs=1e6``. Raises: UsageError: it is neither."""
        kind, equals, number = str(text).partition("=")
        if not equals:
            kind, number = "params", str(text)
        try:
            most = float(number)
        except ValueError:
            most = 0.0
        if kind not in KINDS or not 1 <= most < float("inf"):
            raise UsageError(
                f"{text!r} is no limit; write a number of parameters such as 6e4, or macs=NUMBER for "
                "multiply-accumulates."
            )
        return cls(kind, int(most))

    def __str__(self) -> str:
        return f"{self.kind}={self.most}"

    @property
    def label(self) -> str:
        """For tables."""
        return f"search, {'MACs' if self.kind == 'macs' else 'params'} ≤ {self.most:,}"

    @property
    def unit(self) -> str:
        """In words."""
        return "MACs" if self.kind == "macs" else "parameters"

    def check(self, space: Any, num_classes: int) -> None:
        """Raises: UsageError: not even the smallest subnet of the space meets it."""
        count = cost.macs if self.kind == "macs" else cost.parameters
        least = count(space.smallest(), space, num_classes)
        if self.most < least:
            raise UsageError(
                f"The limit {self} is below the smallest subnet of {space.name} ({least:,}); raise it."
            )

    def arguments(self) -> dict[str, Any]:
        """For :func:`growtas.search`."""
        return {KINDS[self.kind]: self.most}


def default_limits(space: Any, num_classes: int) -> tuple[Limit, ...]:
    """A quarter, half and three quarters of the way from the smallest to the largest subnet's parameters.

    They are rounded to two digits.

    Example:
        >>> from growtas.space import load_space
        >>> [str(limit) for limit in default_limits(load_space("digits"), 10)]
        ['params=40000', 'params=63000', 'params=87000']
    """
    low, high = cost.parameter_range(space, num_classes)
    found = []
    for share in SHARES:
        exact = low + share * (high - low)
        rounded = int(float(f"{exact:.1e}"))
        found.append(rounded if low < rounded < high else int(exact))
    return tuple(Limit("params", most) for most in sorted(set(found)))


def read_limits(limits: Iterable[str | float]) -> tuple[Limit, ...]:
    """The limits of texts or numbers, in order, none twice. Raises: UsageError: one cannot be read."""
    return tuple(dict.fromkeys(Limit.parse(text) for text in limits))
