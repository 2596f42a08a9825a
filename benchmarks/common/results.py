"""Result files: JSON with one record a line, so that a diff shows which measurement changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas import atomic


def rounded(value: Any) -> Any:
    """Floats to five significant digits, everywhere inside: more is noise, and makes files large."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def write(
    path: Path, head: Mapping[str, Any], records: Sequence[Mapping[str, Any]], key: str = "records"
) -> None:
    """Write ``head`` and, under ``key``, the records; the old file stays until the new one is whole.

    Args:
        path: of the file; its folder is made.
        head: what all records have in common.
        records: the measurements.
        key: the name of their list.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps(rounded(head), indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join("  " + json.dumps(rounded(record), ensure_ascii=False) for record in records)
    atomic.write_text(path, f'{body},\n "{key}": [\n{lines}\n ]\n}}\n')


def read(path: Path) -> dict[str, Any]:
    """A result file as a dictionary."""
    return json.loads(path.read_text())
