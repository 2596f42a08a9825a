"""Declares a setting of a training run: its default, its choices or bounds, its type. No torch."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from typing import Any

from growtas.errors import UsageError, nearest

Check = Callable[[str, Any], None]  # of a name and a value; raises a UsageError


def setting(default: Any, check: Check | None = None, runtime: bool = False) -> Any:
    """A field of :class:`.TrainConfig`. A resume may change a runtime one: it does not enter the result."""
    return dataclasses.field(default=default, metadata={"check": check, "runtime": runtime})


def choices(*known: str) -> Check:
    """One of these."""

    def check(name: str, value: Any) -> None:
        if value not in known:
            raise UsageError(f"{name}={value!r} is unknown.{nearest(str(value), known)}")

    return check


def _bounded(holds: Callable[[float], bool], allowed: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not (math.isfinite(value) and holds(value)):
            raise UsageError(f"{name}={value} is not possible; it must be {allowed}.")

    return check


def at_least(least: int) -> Check:
    """A number from here on."""
    return _bounded(lambda value: value >= least, f"{least} or more")


ABOVE_ZERO = _bounded(lambda value: value > 0, "more than 0")
BELOW_ONE = _bounded(lambda value: 0 <= value < 1, "at least 0 and below 1")
PROBABILITY = _bounded(lambda value: 0 <= value <= 1, "between 0 and 1")


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
    if isinstance(value, int) and not isinstance(value, bool) and int not in allowed and float in allowed:
        return float(value)
    if isinstance(value, bool) and bool not in allowed or not isinstance(value, allowed):
        kinds = " or ".join(KINDS[kind] for kind in allowed)
        raise UsageError(f"{name}={value!r} is not possible; it must be {kinds}.")
    return value


KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "none",
}
