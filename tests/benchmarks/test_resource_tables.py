"""The table of what the compilers say: the worst variant of each kernel, and where two Tritons differ."""

from __future__ import annotations

import json

from common import resource_tables


def _row(kernel, arch, **fields):
    row = {"registers": 10, "stack": 0, "shared": 1024, "stages": 3, "loop_pendings": None, "loop_copies": 2}
    row |= {"dtypes": {"x_ptr": "bf16", "weight_ptr": "bf16"}, "constexprs": {"PRECISION": "ieee"}}
    return {"kernel": kernel, "arch": arch, "serialised": False, **row, **fields}


def test_the_worst_variant_is_shown_and_both_tritons_where_they_differ(tmp_path):
    older = [
        _row("a.b", "sm_90", registers=100, loop_pendings=1, stages=2),
        _row("a.b", "sm_90", shared=4096, loop_pendings=0, serialised=True),
        _row("a.b", "sm_80", stack=8),
        _row("a.b", "sm_80", stack=99, dtypes={"x_ptr": "bf16", "weight_ptr": "fp32"}),
        _row("a.b", "sm_80", stack=99, dtypes={"x_ptr": "fp32"}),
    ]
    newer = [
        _row("a.b", "sm_90", registers=90, loop_pendings=0, stages=2),
        _row("a.b", "sm_90", shared=4096),
        _row("a.b", "sm_80", stack=8),
    ]
    for name, version, rows in zip(resource_tables.TABLES, ("3.6.0", "3.8.0"), (older, newer), strict=True):
        (tmp_path / name).write_text(json.dumps({"triton": version, "variants": rows}))
    text = resource_tables.worst_cases(tmp_path)
    assert "Triton 3.6 and 3.8" in text and "not measured" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "a.b" in line]
    assert lines == [
        ["`a.b`", "sm_90", "2", "100 / 90", "0", "4", "2", "0", "2", "1 / 0"],
        ["`a.b`", "sm_80", "1", "10", "8", "1", "3", "-", "2", "0"],
    ]
