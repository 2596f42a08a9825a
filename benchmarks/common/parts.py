"""The parts of the kernels' benchmarks, and the works of one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.end_works import end_works
from common.fused_works import fused_works
from common.memory_works import attention_works, norm_works
from common.product_works import product_works
from common.works import Work

PARTS = {
    "products": product_works,
    "fused": fused_works,
    "layer_norm": norm_works,
    "attention": attention_works,
    "ends": end_works,
}


def pick(context: Any, part: str, op: str, subnets: Sequence[str] = ()) -> list[Work]:
    """The works of an operation in the middle layers, or in those of some subnets of T."""
    return [work for work in PARTS[part](context.layers(subnets)) if work.op == op]
