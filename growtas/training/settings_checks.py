"""Declares a setting of a training run: its default, its choices or bounds, its type. No torch."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from typing import Any

from growtas.bounds import Bound, check_text
from growtas.errors import UsageError, nearest, quoted

Check = Callable[[str, Any], None]  # of a name and a value; raises a UsageError


def setting(default: Any, check: Check | None = None, runtime: bool = False) -> Any:
    """A field of :class:`.TrainConfig`. A resume may change a runtime one: it does not enter the result."""
    return dataclasses.field(default=default, metadata={"check": check, "runtime": runtime})


def choices(*known: str) -> Check:
    """One of these."""

    def check(name: str, value: Any) -> None:
        if value not in known:
            raise UsageError(f"{name}={quoted(value)} is unknown.{nearest(str(value), known)}")

    return check


def at_least(least: int, most: float = 1_000_000_000) -> Bound:
    """A number from here on, up to what makes sense; :func:`typed` has made sure of its type."""
    return Bound(least, most, whole=False)


ABOVE_ZERO = Bound(0, 10**9, whole=False, above=True)
BELOW_ONE = Bound(0, 1, whole=False, below=True)
PROBABILITY = Bound(0, 1, whole=False)


def stages_text(stages: Any) -> Any:
    """Nested lists as the text form, so that YAML, the command line and Python hold the same value."""
    if isinstance(stages, list | tuple) and all(isinstance(groups, list | tuple) for groups in stages):
        return "/".join(",".join(str(group) for group in groups) for groups in stages)
    return stages


def transition_text(transition: Any) -> Any:
    """An epoch or a list of epochs as the text form."""
    if isinstance(transition, int) and not isinstance(transition, bool):
        return str(transition)
    if isinstance(transition, list | tuple):
        return ",".join(str(epoch) for epoch in transition)
    return transition


def typed(name: str, value: Any, hint: Any) -> Any:
    """The value, an int as a float where a float is meant; otherwise it must be what the field says."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    check_text(name, value)
    if isinstance(value, int) and not isinstance(value, bool) and int not in allowed and float in allowed:
        return float(value) if value.bit_length() <= 1000 else math.inf  # which no bound lets pass
    if isinstance(value, bool) and bool not in allowed or not isinstance(value, allowed):
        kinds = " or ".join(KINDS[kind] for kind in allowed)
        raise UsageError(f"{name}={quoted(value)} is not possible; it must be {kinds}.")
    return value


KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "none",
}
