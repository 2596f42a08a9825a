"""Latency of subnets on the user's device. ``growtas.latency`` is the function :func:`driver.latency`."""

from growtas.timing.driver import latency
from growtas.timing.table import LatencyTable, Validation

__all__ = ["LatencyTable", "Validation", "latency"]
