"""Triton kernels, one file per kernel, packaged as ``growtas.kernels``.

What an operation calls is in ``layer_norm``, ``linear``, ``qkv``, ``relative_attention`` and ``mlp``; files
beside them hold their backward passes and fused forms. Shared: ``matmul`` and ``gelu``, what kernels are made
of; ``parts``, sums over many programs in one launch; ``slices``, checks of shapes; ``tiles`` (for the MLP,
``mlp_tiles``), the choice of tiles; ``launch``, checks of tensors and the record of variants and launches.
``compile_ahead`` compiles all of it for GPUs that need not be there. Importing this package imports neither
torch nor Triton; its modules do.
"""

from __future__ import annotations


def interpreted() -> bool:
    """Whether the kernels are interpreted on the CPU: TRITON_INTERPRET=1 was set before Triton's import."""
    from growtas.kernels import launch

    return launch.INTERPRETED


def compiled_variants() -> dict[str, int]:
    """How many variants of each kernel this process has compiled; see ``launch.compiled_variants``."""
    from growtas.kernels import launch, layer_norm, linear, mlp, qkv, relative_attention  # noqa: F401 - registers

    return launch.compiled_variants()
