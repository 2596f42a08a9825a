"""Bounds of the numbers that users give, declared on settings and on public functions. No torch.

Every number has two ends, so that one with 23 digits is answered at once, and not by a loop or an allocation.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from growtas.errors import UsageError, quoted

Function = TypeVar("Function", bound=Callable)
MOST_ENTRIES = 1000  # of a list of numbers
MOST_TEXT = 4096  # characters; the longest path of Linux


@dataclass(frozen=True)
class Bound:
    """The numbers that a value may be; it is called with a name and the value.

    Args:
        least: the smallest.
        most: the largest.
        whole: only whole numbers.
        above: ``least`` itself is not allowed.
        below: ``most`` itself is not allowed.
        words: text passes, which has a meaning and a check of its own.
    """

    least: float
    most: float
    whole: bool = True
    above: bool = False
    below: bool = False
    words: bool = False

    def __call__(self, name: str, value: Any, owner: str = "") -> None:
        """Raises: UsageError: the value, or one of a list, is no such number. Args: owner: of the option."""
        if isinstance(value, list | tuple):
            if len(value) > MOST_ENTRIES:
                raise UsageError(f"{name} has {len(value):,} entries; give at most {MOST_ENTRIES:,}.")
            for each in value:
                self(name, each, owner)
            return
        if self.words and isinstance(value, str):
            return
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            allowed = "a whole number" if self.whole else "a number"
        elif value > self.most or self.below and value == self.most:
            allowed = self._range()
        elif not value >= self.least or self.above and value == self.least:  # also where it is not a number
            allowed = self._range() if self.most <= 1 else self._least()
        else:
            return
        of = f" of {owner}" if owner else ""
        raise UsageError(f"{name}={quoted(value)}{of} is not possible; it must be {allowed}.")

    def _least(self) -> str:
        return f"more than {_words(self.least)}" if self.above else f"{_words(self.least)} or more"

    def _range(self) -> str:
        least, most = _words(self.least), _words(self.most)
        if self.below:
            return f"at least {least} and below {most}"
        if self.above:
            return f"more than {least} and at most {most}"
        return f"between {least} and {most}"


def _words(number: float) -> str:
    return f"{number:,}" if abs(number) < 10**12 else f"{number:.3g}"


SEED = Bound(-(2**63), 2**63 - 1)
EPOCHS = Bound(1, 1_000_000)
IMAGES = Bound(1, 10_000_000)  # of a batch, or of a part of a split
BATCH = Bound(1, 65_536)  # images of one call that is timed or compiled for
RUNS = Bound(1, 10_000)  # of one comparison
PIXELS = Bound(1, 16_384)
SUBNETS = Bound(1, 100_000)
GENERATIONS = Bound(1, 100_000)
PROCESSES = Bound(0, 1024)
SOME_PROCESSES = Bound(1, 1024)
CLASSES = Bound(1, 1_000_000)
COST = Bound(0, 10**18, whole=False, above=True)  # parameters, MACs, milliseconds
SECONDS = Bound(0, 10**9, whole=False)


def check_text(name: str, value: Any) -> None:
    """Raises: UsageError: a text or a path holds a null byte, which no file's name can, or is no UTF-8."""
    if isinstance(value, str | os.PathLike):
        text = os.fsdecode(value)
        if len(text) > MOST_TEXT:
            raise UsageError(
                f"{name}={quoted(text)} has {len(text):,} characters; {MOST_TEXT:,} is the most that is read."
            )
        if "\0" in text:
            raise UsageError(f"{name}={quoted(text)} holds a null byte; leave it out.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{name}={ascii(text)[:80]} is not UTF-8, in which growtas writes text."
            ) from error
    if isinstance(value, list | tuple):
        for each in value:
            check_text(name, each)


def check(bounds: Mapping[str, Bound], values: Mapping[str, Any]) -> None:
    """Raises: UsageError: a number is not within its bound, or a text or path is none."""
    for name, value in values.items():
        check_text(name, value)
        if name in bounds and value is not None:
            bounds[name](name, value)


def bounded(**bounds: Bound) -> Callable[[Function], Function]:
    """Check the arguments of a public function before anything else happens.

    Args:
        bounds: of its numbers, and of lists of numbers, by parameter; None always passes. Text and paths are
            checked in any case.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        kinds = {parameter.kind: parameter.name for parameter in signature.parameters.values()}
        others = kinds.get(inspect.Parameter.VAR_KEYWORD)

        @functools.wraps(function)
        def checked(*args: Any, **values: Any) -> Any:
            given = signature.bind(*args, **values).arguments
            check(bounds, {**given, **given.get(others, {})})
            return function(*args, **values)

        checked.bounds = bounds
        return checked

    return decorate
