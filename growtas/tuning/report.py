"""A tuning record as text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from growtas.ops.records import Record, name_of
from growtas.tuning.decide import PASSES


def summaries(record: Record) -> list[dict[str, Any]]:
    """Per operation, dtype, class and backend: what was measured, and what ``auto`` takes.

    Args:
        record: of growtas.ops.records.

    Returns:
        ``op``, ``dtype``, ``class``, ``backend``, ``auto``; ``forward`` and ``step``, times faster than torch
        over all sizes and at the worst; or ``refused``, the reason.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in record.get("measurements", []):
        groups.setdefault((one["op"], one["dtype"], one["class"], one["backend"]), []).append(one)
    for op, by_dtype in record["choices"].items():  # a record may say more than it measured
        for dtype, by_class in by_dtype.items():
            for width_class, choice in by_class.items():
                groups.setdefault((op, dtype, width_class, name_of(choice)), [])
    found = []
    for (op, dtype, width_class, name), own in groups.items():
        choice = record["choices"].get(op, {}).get(dtype, {}).get(width_class, "torch")
        one = {"op": op, "dtype": dtype, "class": width_class, "backend": name, "auto": name_of(choice)}
        refused = next((measured["refused"] for measured in own if "refused" in measured), None)
        if refused is not None:
            one["refused"] = refused
        elif own:
            for what in PASSES:
                mean = statistics.geometric_mean(measured[what][0] for measured in own)
                one[what] = [round(mean, 3), min(measured[what][0] for measured in own)]
        found.append(one)
    return found


def table(choices: Sequence[dict[str, Any]]) -> str:
    """A record as lines for a terminal. Args: choices: of :func:`summaries`."""
    rows = [("operation", "dtype", "width", "auto takes", "rival", "x torch forward, step (worst size)")]
    for one in choices:
        if "refused" in one:
            why = f"left out: {one['refused']}"
        elif "step" in one:
            (forward, worst_forward), (step, worst_step) = one["forward"], one["step"]
            why = f"{forward:.2f} ({worst_forward:.2f}), {step:.2f} ({worst_step:.2f})"
        else:
            why = "not measured here"
        width = f"to {one['class']}" if one["class"] != "1024" else "over 512"
        rows.append((one["op"], one["dtype"], width, one["auto"], one["backend"], why))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]))
    return "\n".join(lines)
