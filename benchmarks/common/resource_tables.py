"""The compiler's report on every Triton kernel, from the committed tables of two versions of Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common import results
from common.table import render

TABLES = ("triton_resources_3.6.json", "triton_resources.json")
"""Files in the folder of results, one per version of Triton, the older first."""

COLUMNS: dict[str, tuple[str, Callable[[Iterable[Any]], Any]]] = {
    "registers": ("registers", max),
    "stack": ("stack bytes", max),
    "shared": ("shared KiB", max),
    "stages": ("stages", min),
    "loop_pendings": ("wgmmas in flight", min),
    "loop_copies": ("copies in flight", min),
    "serialised": ("serialised", sum),
}
"""Field of a row -> its title, and which of a kernel's variants is shown."""


def _worst(rows: list[dict[str, Any]], field: str) -> str:
    """The worst value of a field among the variants of a kernel; a dash where none has one."""
    values = [row[field] for row in rows if row[field] is not None]
    if not values:
        return "-"
    worst = COLUMNS[field][1](values)
    return f"{worst / 1024:.0f}" if field == "shared" else str(worst)


def _by_default(row: dict[str, Any]) -> bool:
    """True for what training launches by default: 16-bit operands, and no fp32 weights of a GEMM."""
    dtypes = row["dtypes"]
    gemm = "PRECISION" in row["constexprs"]
    weights = (dtypes.get("weight_ptr"), dtypes.get("w1_ptr")) if gemm else ()
    return "bf16" in dtypes.values() and "fp32" not in weights


def worst_cases(folder: Path) -> str:
    """The worst case of every kernel in bf16 on sm_90 and sm_80; "a / b" where two versions of Triton differ.

    Args:
        folder: of all results.
    """
    tables = [results.read(folder / name) for name in TABLES]
    first, second = (".".join(table["triton"].split(".")[:2]) for table in tables)
    groups: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
    for place, table in enumerate(tables):
        for row in filter(_by_default, table["variants"]):
            groups.setdefault((row["kernel"], row["arch"]), [[], []])[place].append(row)
    rows = []
    for kernel, arch in sorted(groups, key=lambda key: (key[0], -int(key[1][3:]))):
        cells = [f"`{kernel}`", arch]
        for field in (None, *COLUMNS):
            both = [
                str(len(own)) if field is None else _worst(own, field) if own else "-"
                for own in groups[kernel, arch]
            ]
            cells.append(both[0] if both[0] == both[1] else " / ".join(both))
        rows.append(cells)
    header = ["kernel", "GPU", "variants", *(title for title, _ in COLUMNS.values())]
    return (
        "Counted by the compilers, not measured: the worst variant of each kernel in bf16. Where Triton "
        f"{first} and {second} differ, the cell reads “{first} / {second}”. A wait that leaves 0 wgmmas "
        "or copies in flight waits for all of them; serialised counts the variants whose wgmmas ptxas "
        "serialises.\n\n" + render(header, rows, left=2, markdown=True)
    )
