"""What the compiler made of the CUDA products: no spills, tensor cores, asynchronous copies."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

from growtas.ops import native

needs_build = pytest.mark.skipif(not native.status("cuda").ok, reason="growtas._cuda was not built")


def products() -> list[dict]:
    return [k for k in native.metadata("cuda")["kernels"] if k["kernel"].startswith("product_")]


@needs_build
def test_the_compiled_products_leave_room_and_spill_nothing():
    """34 kernels per architecture: 7 pairs of types in two 16-bit dtypes and two tiles, and fp32's six."""
    archs = native.metadata("cuda")["archs"]
    assert len({k["kernel"] for k in products()}) == 34 and len(products()) == 34 * len(archs)
    for kernel in products():
        assert kernel["spill_stores"] == kernel["spill_loads"] == kernel["stack"] == 0, kernel
        large = kernel["kernel"].rstrip(">()Product").endswith("128")
        assert kernel["registers"] * (256 if large else 3 * 128) <= 65536, kernel


@functools.cache
def _cuobjdump() -> str | None:
    """Of the CUDA toolkit, or the one that Triton brings along."""
    places = [Path(native.metadata("cuda").get("toolkit", "/nowhere"), "bin", "cuobjdump")]
    try:
        import triton

        places.append(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    except ImportError:
        pass
    return next((str(p) for p in places if p.is_file()), None)


@needs_build
@pytest.mark.skipif(_cuobjdump() is None, reason="needs cuobjdump")
def test_the_compiled_products_use_tensor_cores_and_asynchronous_copies():
    """HMMA is mma.sync, LDSM ldmatrix, LDGSTS cp.async; exact fp32 has none but the last."""
    arch = native.metadata("cuda")["archs"][-1]
    code = subprocess.run(
        [_cuobjdump(), "-sass", "-arch", f"sm_{arch}", native.load("cuda").__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    bodies = [b for b in re.split(r"\n\s+Function : ", code) if "product_" in b.split("\n", 1)[0]]
    assert len(bodies) == 34
    for body in bodies:
        name, instructions = body.split("\n", 1)
        exact = "fffLb1E" in name  # <float, float, float, FMA = true, ...>
        assert ("HMMA" in instructions) is not exact, name
        assert ("LDSM" in instructions) is ("ffLb" not in name), name  # both operands of fp32: converted
        assert "LDGSTS" in instructions and "LDGDEPBAR" in instructions, name
        assert exact is ("FFMA" in instructions and "HMMA" not in instructions), name
        assert "STL" not in instructions and "LDL" not in instructions, name  # local memory: a spill
