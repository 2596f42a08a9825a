"""Read back a compiled kernel: its resources, its copies, the waits of its loops, and ptxas's remarks."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile

import triton
from triton.backends.nvidia.compiler import get_ptxas

from growtas.errors import GrowtasError


def widest_copy(ptx: str) -> int:
    """Bytes of the widest asynchronous copy from global to shared memory; 0 where there is none."""
    return max(
        (
            int(size, 16)
            for size in re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*?, 0x([0-9a-f]+)", ptx)
        ),
        default=0,
    )


def binary_resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack of a CUDA binary, read by the cuobjdump that comes with Triton."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=False)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", done.stdout)
    if not found:
        raise GrowtasError(
            f"{tool} could not read a compiled kernel: {done.stderr.strip() or done.stdout.strip()}"
        )
    return {"registers": int(found[1]), "stack": int(found[2]) + int(found[4])}


def loop_waits(ttgir: str) -> dict[str, int | None]:
    """The waits of the innermost loops with wgmmas, from the text of Triton's intermediate code.

    Args:
        ttgir: of one kernel.

    Returns:
        ``loop_pendings``: the smallest number of wgmmas that a wait inside a loop lets run on, and
        ``loop_copies``: of copies that a wait for copies lets run on; None where there is no such wait.
    """
    loops: list[int] = []  # how far the lines of the open loops are indented
    found: dict[str, list[int]] = {"loop_pendings": [], "loop_copies": []}
    for line in ttgir.splitlines():
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        while loops and text.startswith("}") and indent <= loops[-1]:
            loops.pop()
        if re.search(r"\bscf\.(for|while)\b", text):
            loops.append(indent)
        elif loops and (wait := re.search(r"warp_group_dot_wait.*\bpendings = (\d+)", text)):
            found["loop_pendings"].append(int(wait[1]))
        elif loops and (wait := re.search(r"async_wait.*\bnum = (\d+)", text)):
            found["loop_copies"].append(int(wait[1]))
    return {name: min(counts, default=None) for name, counts in found.items()}


def _ptxas(capability: int) -> str:
    """The ptxas that Triton assembles for a GPU with; which of its own that is differs between versions."""
    return get_ptxas(capability).path


def serialised(ptx: str, capability: int) -> bool:
    """True if ptxas remarks that it serialises the wgmmas of a kernel, for a reason it finds in the code.

    Args:
        ptx: of the kernel.
        capability: 90 has wgmma; for others the answer is no.
    """
    if "wgmma.mma_async" not in ptx:
        return False
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        arch = f"-arch=sm_{capability}{'a' if capability >= 90 else ''}"
        command = [_ptxas(capability), arch, "-v", file.name, "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GrowtasError(f"ptxas could not read a compiled kernel: {done.stderr.strip()}")
    return "instructions are serialized" in done.stderr + done.stdout
