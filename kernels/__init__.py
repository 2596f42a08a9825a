"""Triton kernels, one file per kernel, packaged as ``growtas.kernels``.

``layer_norm``, ``linear`` and ``qkv`` hold the kernels and their launchers; ``matmul`` what the last two
share, ``tiles`` the choice of tiles, ``launch`` checks and the record of variants, ``compile_ahead`` compiles
all of them for GPUs that need not be there. Importing this package imports neither torch nor Triton; its
modules do.
"""

from __future__ import annotations


def interpreted() -> bool:
    """Whether the kernels are interpreted on the CPU: TRITON_INTERPRET=1 was set before Triton's import."""
    from growtas.kernels import launch

    return launch.INTERPRETED


def compiled_variants() -> dict[str, int]:
    """How many variants of each kernel this process has compiled; see ``launch.compiled_variants``."""
    from growtas.kernels import launch, layer_norm, linear, qkv  # noqa: F401 - importing registers the kernels

    return launch.compiled_variants()
