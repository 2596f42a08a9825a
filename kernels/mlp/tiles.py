"""Tile choices of the fused MLP: a short list per GPU generation and kind of operand, and the rule.

A program owns ``rows`` rows of the batch at their whole width and walks over the hidden layer, ``hidden``
units at a time. Its fp32 sums for 256 channels take 128 registers of each thread at 16 rows per warp; the
choices fit beside them without a byte on the stack, for every width, alignment and dtype of the spaces. On
sm_90 operands that were loaded stay in shared memory, and 128 rows halve the reads of the weights; from sm_80
to sm_89 (and where nothing better is known) operands pass through registers, and every choice fits the 99 KiB
of the smallest parts. 32 rows on sm_90 are too few for wgmma and use mma.sync; so does the backward pass in
tf32, of which wgmma would need both weights transposed. Where a tile has fewer than 16 rows per warp (tf32,
exact fp32, and fp32 weights in the backward pass before sm_90), warps repeat each other's chunk of h.

The choices come from registers, shared memory and counted traffic; none was timed on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from triton.runtime import driver

#: The widest embedding that the fused form takes: wider sums would not fit into the registers.
MAX_FUSED_WIDTH = 256

#: Programs of the backward pass whose sums for LayerNorm's parameters are added first; see ``split_k``.
SUM_GROUP = 32


@dataclass(frozen=True)
class MLPTile:
    """Rows of a program, hidden units per step, warps, pipeline stages."""

    rows: int
    hidden: int
    warps: int
    stages: int = 2

    def constants(self) -> dict[str, int]:
        """Constexpr arguments, warps and stages of either kernel."""
        return {
            "BLOCK_ROWS": self.rows,
            "BLOCK_HIDDEN": self.hidden,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


#: (pass, sm_90, kind of operand) -> choices, largest first. Kinds as in ``tiles.operand_kind``.
COMMITTED: dict[tuple[str, bool, str], tuple[MLPTile, ...]] = {
    ("forward", True, "half"): (MLPTile(128, 32, 8, 3), MLPTile(64, 32, 4, 3)),
    ("forward", True, "mixed"): (MLPTile(128, 32, 8), MLPTile(64, 16, 4)),
    ("forward", True, "tf32"): (MLPTile(64, 16, 8),),
    ("forward", True, "ieee"): (MLPTile(16, 16, 4),),
    ("forward", False, "half"): (MLPTile(64, 16, 4),),
    ("forward", False, "mixed"): (MLPTile(64, 16, 4),),
    ("forward", False, "tf32"): (MLPTile(32, 16, 4),),
    ("forward", False, "ieee"): (MLPTile(32, 16, 4),),
    # Of 64 rows, ptxas 12.8 serialises the wgmmas at some alignments.
    ("backward", True, "half"): (MLPTile(128, 32, 8), MLPTile(32, 16, 4)),
    ("backward", True, "mixed"): (MLPTile(128, 16, 8), MLPTile(32, 16, 4)),
    ("backward", True, "tf32"): (MLPTile(32, 16, 8),),
    ("backward", True, "ieee"): (MLPTile(32, 16, 8),),
    ("backward", False, "half"): (MLPTile(64, 16, 4),),
    ("backward", False, "mixed"): (MLPTile(64, 16, 8),),
    ("backward", False, "tf32"): (MLPTile(32, 16, 4),),
    ("backward", False, "ieee"): (MLPTile(32, 16, 8),),
}


#: (pass, kind) -> tiles on sm_90 that a measurement may try beside the committed ones. They were seen to
#: compile without spills in bf16 where they were tried, at widths of T, but the committed table does not hold
#: them: a measurement has to look at what it compiles. Two programs of 64 rows fit a multiprocessor and
#: overlap GELU with matmuls, but read the weights twice as often as 128 rows do; longer chunks use wider
#: wgmmas.
CANDIDATES: dict[tuple[str, str], tuple[MLPTile, ...]] = {
    ("forward", "half"): (MLPTile(64, 32, 4), MLPTile(128, 64, 8), MLPTile(128, 32, 8, 4)),
    ("backward", "half"): (MLPTile(64, 16, 4),),
}


def _has_wgmma(device: torch.device) -> bool:
    """True if the device, or the one that is being recorded for, multiplies by wgmma (sm_90)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] == 9
    return device.type == "meta" and driver.active.get_current_target().arch // 10 == 9


def pick(way: str, kind: str, rows: int, multiprocessors: int, device: torch.device) -> MLPTile:
    """The largest tile of which there are enough to give half of the multiprocessors one; else the smallest.

    Args:
        way: "forward" or "backward".
        kind: of operands, as ``tiles.operand_kind`` names them.
        rows: of the batch.
        multiprocessors: of the device.
        device: where the kernel runs.
    """
    choices = COMMITTED[way, _has_wgmma(device), kind]
    return next((tile for tile in choices if 2 * rows >= tile.rows * multiprocessors), choices[-1])


def pieces(width: int, whole: bool = False) -> tuple[int, int]:
    """The powers of two that a row is multiplied in, the second perhaps 0: 192 channels are 128 + 64.

    Every matmul of a row with a chunk of weights is waited for, so 256 channels are one piece, not two.

    Args:
        width: channels, at most :data:`MAX_FUSED_WIDTH`.
        whole: have one piece whatever the width, as :func:`one_piece` says.
    """
    if width <= 128:
        return (64 if width <= 64 else 128), 0
    return (128, 64) if width <= 192 and not whole else (256, 0)


def one_piece(way: str, dtype: torch.dtype, device: torch.device) -> bool:
    """True if rows are multiplied in one piece: 16-bit gradients on sm_90.

    There, ptxas 12.8 serialises the wgmmas of a row in two pieces, whatever the tile; not those of one.

    Args:
        way: "forward" or "backward".
        dtype: of the matmuls.
        device: where the kernel runs.
    """
    return way == "backward" and dtype.itemsize == 2 and _has_wgmma(device)
