"""Machine code of the CUDA GEMMs and of the MLP branch: no spills, tensor cores, asynchronous copies."""

from __future__ import annotations

import functools
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from thinning import thinned

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
    """Of the CUDA toolkit, or the one that Triton brings along where it is as new as the compiler.

    That of Triton 3.6, of CUDA 12.8, finds no code in what nvcc 13 wrote, and says nothing.
    """
    places = [Path(native.metadata("cuda").get("toolkit", "/nowhere"), "bin", "cuobjdump")]
    try:
        import triton

        places.append(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    except ImportError:
        pass
    nvcc = native.metadata("cuda").get("nvcc", "0")
    return next((str(p) for p in places if p.is_file() and _release(p) >= int(nvcc.split(".")[0])), None)


def _release(tool: Path) -> int:
    """The CUDA release of a tool, such as 13."""
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"release (\d+)", said).group(1))


def _disassembled(arch: str, functions: list[str]) -> list[str]:
    """Functions of the module for an architecture, as text; cuobjdump takes half a second for each."""
    command = [_cuobjdump(), "-sass", "-arch", f"sm_{arch}", "-fun", ",".join(functions)]
    done = subprocess.run(
        [*command, native.load("cuda").__file__], capture_output=True, text=True, check=True
    )
    return re.split(r"\n\s+Function : ", done.stdout)[1:]


def _machine_code(arch: str, folder: Path) -> Iterator[tuple[str, set[int]]]:
    """Each function of the module for an architecture, and its operations: the low 9 bits of instructions."""
    command = [_cuobjdump(), "-xelf", f"sm_{arch}", native.load("cuda").__file__]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    for path in folder.glob("*.cubin"):
        data = path.read_bytes()
        (headers,), (size, count, names) = (
            struct.unpack_from(f, data, at) for f, at in (("<Q", 40), ("<3H", 58))
        )
        sections = [struct.unpack_from("<2I4Q", data, headers + i * size) for i in range(count)]
        for name, _, _, _, start, length in sections:
            begin = sections[names][4] + name
            section = data[begin : data.index(b"\0", begin)].decode()
            if section.startswith(".text."):
                words = np.frombuffer(data[start : start + length], np.uint64)[::2]  # of 128-bit instructions
                yield section.removeprefix(".text."), set((words & np.uint64(0x1FF)).tolist())


#: HMMA is mma.sync, LDSM ldmatrix, LDGSTS cp.async, LDGDEPBAR its group.
OPERATIONS = {"HMMA": 0x3C, "LDSM": 0x3B, "LDGSTS": 0x1AE, "LDGDEPBAR": 0x1AF, "FFMA": 0x23}


@needs_build
@pytest.mark.skipif(_cuobjdump() is None, reason="needs cuobjdump")
def test_the_compiled_gemms_use_tensor_cores_and_asynchronous_copies(tmp_path):
    """Exact fp32 has no tensor cores. A disassembler confirms the numbers of the operations."""
    arch = native.metadata("cuda")["archs"][-1]
    code = {name: found for name, found in _machine_code(arch, tmp_path) if "gemm_" in name}
    assert len(code) == 34
    exact = {name for name in code if "fffLb1E" in name}  # <float, float, float, FMA = true, ...>
    for name, found in code.items():
        assert (OPERATIONS["HMMA"] in found) is (name not in exact), name
        assert OPERATIONS["FFMA"] in found or name not in exact, name
        assert (OPERATIONS["LDSM"] in found) is ("ffLb" not in name), name  # both operands of fp32: converted
        assert {OPERATIONS["LDGSTS"], OPERATIONS["LDGDEPBAR"]} <= found, name
    both = [min(code.keys() - exact), min(exact)]
    bodies = _disassembled(arch, both)
    assert {body.split("\n", 1)[0] for body in bodies} == set(both)
    for body in bodies:
        name, instructions = body.split("\n", 1)
        for operation, number in OPERATIONS.items():
            assert bool(re.search(rf"\b{operation}\b", instructions)) is (number in code[name]), (
                name,
                operation,
            )


@needs_build
@pytest.mark.parametrize("count", thinned([2, 8], fast=(0,)))
def test_the_compiled_mlp_branch_multiplies_while_it_works_on_gelu(tmp_path, count):
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
    names = sorted(name for name, _ in _machine_code("90a", tmp_path) if "mlp_branch" in name)
    assert len(names) == 8
    bodies = _disassembled("90a", names[:: 8 // count])
    assert len(bodies) == count
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
