"""What is in a compiled kernel: resources, copies, what its loops wait for; and which ptxas assembles it."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile

import triton

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
    """What the innermost loops with products wait for, from the text of Triton's intermediate code.

    Args:
        ttgir: of one kernel.

    Returns:
        ``loop_pendings``: the smallest number of products that a wait inside a loop lets run on, and
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
    """The ptxas that Triton assembles for a GPU with; ``TRITON_PTXAS_PATH`` names another."""
    nvidia = triton.knobs.nvidia
    tool = nvidia.ptxas_blackwell if capability >= 100 else nvidia.ptxas
    return tool.path


def ptxas_version(capability: int = 90) -> tuple[int, int] | None:
    """Major and minor version of the ptxas that Triton uses, or None where it cannot be run.

    Args:
        capability: compute capability times ten of the GPU that is assembled for.
    """
    try:
        done = subprocess.run([_ptxas(capability), "--version"], capture_output=True, text=True, check=False)
    except (OSError, RuntimeError):
        return None
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else None


#: The first ptxas that is not known to let a later instruction take a register of a running wgmma.
SAFE_PTXAS = (13, 3)


def ptxas_notice(capability: int = 90) -> str | None:
    """One sentence about the ptxas that Triton uses where it deserves one, for ``growtas doctor``; else None.

    Args:
        capability: compute capability times ten of the GPU at hand.
    """
    if capability // 10 != 9:
        return None  # only sm_90 has wgmma
    version = ptxas_version(capability)
    if version is None:
        return "Triton finds no ptxas that runs. Set TRITON_PTXAS_PATH to the one of a CUDA toolkit."
    if version < SAFE_PTXAS:
        return (
            f"Triton assembles with ptxas {version[0]}.{version[1]}; public reports say that versions before "
            f"{SAFE_PTXAS[0]}.{SAFE_PTXAS[1]} can reuse registers of a running wgmma. growtas tune checks "
            "every kernel for equal bits; TRITON_PTXAS_PATH names another ptxas."
        )
    return None


def serialised(ptx: str, capability: int) -> bool:
    """Whether ptxas remarks that it serialises the wgmmas of a kernel, for a reason it finds in the code.

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
