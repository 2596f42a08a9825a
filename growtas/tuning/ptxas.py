"""The assembler that Triton calls, and whether it is one that Hopper's kernels can trust."""

from __future__ import annotations

import functools
import re
import subprocess

NEEDED = (13, 3)
HOPPER = "9.0"


@functools.cache
def version(capability: str = HOPPER) -> tuple[str, tuple[int, int]] | None:
    """Path and version of the ptxas that Triton calls for a GPU; it brings several.

    Args:
        capability: compute capability of the GPU.

    Returns:
        None where there is no Triton or no ptxas.
    """
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        path = get_ptxas(int(capability.replace(".", ""))).path
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except Exception:  # whatever is broken about Triton is told by growtas doctor's list of backends
        return None
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    return (path, (int(found[1]), int(found[2]))) if found else None


def notice(capabilities: list[str]) -> str:
    """Advise on an old ptxas; empty where nothing need be done.

    Args:
        capabilities: compute capabilities of the GPUs that are there, such as ``9.0``.
    """
    found = version()
    if found is None or found[1] >= NEEDED or HOPPER not in capabilities:
        return ""
    own, needed = (".".join(map(str, numbers)) for numbers in (found[1], NEEDED))
    return (
        f"Triton uses ptxas {own}; before {needed} it is reported to reuse operands of wgmma too early on "
        f"sm_90. growtas tune leaves out what gives wrong or changing bits. For a newer one, install CUDA "
        f"{needed} or later and set TRITON_PTXAS_PATH to its ptxas."
    )
