"""What the compiler made of the CUDA GEMMs and the MLP branch: no spills, tensor cores, async copies."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

from growtas import native

needs_build = pytest.mark.skipif(not native.status("cuda").ok, reason="growtas._cuda was not built")


def gemms() -> list[dict]:
    return [k for k in native.metadata("cuda")["kernels"] if k["kernel"].startswith("gemm_")]


@needs_build
def test_the_compiled_gemms_leave_room_and_spill_nothing():
    """34 kernels per architecture: 7 pairs of types in two 16-bit dtypes and two tiles, and fp32's six."""
    archs = native.metadata("cuda")["archs"]
    assert len({k["kernel"] for k in gemms()}) == 34 and len(gemms()) == 34 * len(archs)
    for kernel in gemms():
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


@functools.cache
def _sass(arch: str) -> str:
    """The machine code of the module for an architecture."""
    command = [_cuobjdump(), "-sass", "-arch", f"sm_{arch}", native.load("cuda").__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_build
@pytest.mark.skipif(_cuobjdump() is None, reason="needs cuobjdump")
def test_the_compiled_gemms_use_tensor_cores_and_asynchronous_copies():
    """HMMA is mma.sync, LDSM ldmatrix, LDGSTS cp.async; exact fp32 has none but the last."""
    code = _sass(native.metadata("cuda")["archs"][-1])
    bodies = [b for b in re.split(r"\n\s+Function : ", code) if "gemm_" in b.split("\n", 1)[0]]
    assert len(bodies) == 34
    for body in bodies:
        name, instructions = body.split("\n", 1)
        exact = "fffLb1E" in name  # <float, float, float, FMA = true, ...>
        assert ("HMMA" in instructions) is not exact, name
        assert ("LDSM" in instructions) is ("ffLb" not in name), name  # both operands of fp32: converted
        assert "LDGSTS" in instructions and "LDGDEPBAR" in instructions, name
        assert exact is ("FFMA" in instructions and "HMMA" not in instructions), name
        assert "STL" not in instructions and "LDL" not in instructions, name  # local memory: a spill


@needs_build
def test_the_compiled_mlp_branch_multiplies_while_it_works_on_gelu():
    """HGMMA is wgmma, UTMALDG a load of TMA, WARPGROUP.DEPBAR the wait for multiplies in flight.

    In the loop, the wait for the output comes after GELU: the tensor cores work on it meanwhile.
    """
    metadata = native.metadata("cuda")
    if "90a" not in metadata["archs"]:
        pytest.skip("growtas._cuda was built without sm_90a")
    kernels = [k for k in metadata["kernels"] if k["kernel"].startswith("mlp_branch")]
    assert len(kernels) == 8
    for kernel in kernels:
        assert kernel["spill_stores"] == kernel["spill_loads"] == kernel["stack"] == 0, kernel
        assert kernel["registers"] == 168, kernel  # 3 * 128 threads; setmaxnreg gives consumers 240 of them
    if _cuobjdump() is None:
        pytest.skip("needs cuobjdump")
    code = _sass("90a")
    bodies = [b for b in re.split(r"\n\s+Function : ", code) if "mlp_branch" in b.split("\n", 1)[0]]
    assert len(bodies) == 8
    for body in bodies:
        name = body.split("\n", 1)[0]
        lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", body)
        at = {int(address, 16): i for i, (address, _) in enumerate(lines)}
        operations = [operation for _, operation in lines]
        assert "UTMALDG" in body and "USETMAXREG" in body and "STL" not in body and "LDL" not in body, name
        # The shortest loop that multiplies both ways.
        loops = []
        for end, operation in enumerate(operations):
            if (found := re.search(r"BRA (?:UP\d, )?0x([0-9a-f]+)", operation)) and at[
                int(found[1], 16)
            ] < end:
                loop = operations[at[int(found[1], 16)] : end]
                if sum("HGMMA" in o for o in loop) >= 16:
                    loops.append(loop)
        loop = min(loops, key=len)
        waits = [i for i, o in enumerate(loop) if "WARPGROUP.DEPBAR" in o]
        special = [i for i, o in enumerate(loop) if "MUFU" in o]
        assert len(waits) == 2 and len(special) == 64, name  # two for each GELU
        assert waits[0] < special[0] and special[-1] < waits[1], name
