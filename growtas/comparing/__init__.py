"""Compare methods on equal terms. ``growtas.compare`` is the function :func:`driver.compare`."""

from growtas.comparing.driver import compare
from growtas.comparing.report import Comparison
from growtas.comparing.specs import MethodSpec
from growtas.comparing.statistics import Interval, paired_interval

__all__ = ["Comparison", "Interval", "MethodSpec", "compare", "paired_interval"]
