"""Parametrised cases of which ``make test`` runs some and ``make test-slow`` the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], fast: Collection[int | str], several: bool = False) -> list[Any]:
    """The cases, others than ``fast`` marked slow.

    Args:
        cases: values for :func:`pytest.mark.parametrize`.
        fast: those that differ in kind, by place or, where they are names, by name; the others repeat their
            code at further sizes.
        several: each case is a tuple of arguments, not one argument.
    """

    def marked(place: int, case: Any) -> Any:
        quick = place in fast or isinstance(case, str) and case in fast
        return pytest.param(*(case if several else (case,)), marks=() if quick else pytest.mark.slow)

    return [marked(place, case) for place, case in enumerate(cases)]
