"""Triton kernels, packaged as ``growtas.kernels``.

Each operation is one package, ``layer_norm``, ``linear``, ``qkv``, ``norm_qkv``, ``relative_attention`` or
``mlp``, which exports a launcher for every step; its modules hold the kernels, each beside its launcher.
``common`` holds what they share: GEMM loops, GELU, split-K sums, tiles, launch plans, workspaces and checks.
``shadow`` casts weights to 16 bits. ``compile_ahead`` compiles all of it for GPUs that need not be there.
Importing this package imports neither torch nor Triton; its modules do.
"""

from __future__ import annotations


def interpreted() -> bool:
    """True if the kernels are interpreted on the CPU: TRITON_INTERPRET=1 was set before Triton's import."""
    from growtas.kernels.common import launch

    return launch.INTERPRETED


def compiled_variants() -> dict[str, int]:
    """Count the variants of each kernel that this process has compiled; see ``launch.compiled_variants``."""
    from growtas.kernels import layer_norm, linear, mlp, norm_qkv, relative_attention  # noqa: F401 - registers
    from growtas.kernels.common import launch

    return launch.compiled_variants()
