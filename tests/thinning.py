"""Parametrised cases of which ``make test`` runs some and ``make test-slow`` the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], fast: Collection[int], several: bool = False) -> list[Any]:
    """The cases, those at other places than ``fast`` marked slow.

    Args:
        cases: values for :func:`pytest.mark.parametrize`.
        fast: places of cases that differ in kind; the others repeat their code at further sizes.
        several: each case is a tuple of arguments, not one argument.
    """
    made = [pytest.param(*case) if several else pytest.param(case) for case in cases]
    return [
        case if place in fast else pytest.param(*case.values, marks=pytest.mark.slow)
        for place, case in enumerate(made)
    ]
