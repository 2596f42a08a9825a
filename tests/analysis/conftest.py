"""Fixtures for analyses and reports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "comparing"))  # small comparisons and forked processes

from comparisons import forked

from growtas.jobs import runner


@pytest.fixture
def fork_work(monkeypatch):
    """Networks and parts are made in forked processes: the same work, without importing torch again."""
    monkeypatch.setattr(runner, "_start", forked)
