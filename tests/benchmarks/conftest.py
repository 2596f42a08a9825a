"""The benchmarks are scripts, not a package: their folder goes on the path."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from common import roofline  # noqa: E402

measure = roofline.measure


@functools.cache
def ceilings(device, dtype):
    """The ceilings of a device, from one short measurement for all tests."""
    return measure(device, dtype, 0.0)


@pytest.fixture(autouse=True)
def _ceilings_measured_once(monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda device, dtype, seconds=1.0: ceilings(device, dtype))
