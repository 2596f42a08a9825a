"""Tile sizes: a short list per kind of operand, and the readable rule that picks from it.

Nothing is tuned at run time. A tile is picked from sizes by arithmetic, so that two processes pick alike, and
every tile that can be picked is compiled ahead of time by ``compile_ahead`` (no spills, tensor cores used).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt

import torch

from growtas.errors import UsageError
from growtas.kernels.common import launch

#: Classes of alignment, in elements. 8 elements of 16 bits are one 16-byte access; 756 = 4 * 189 gets 8
#: bytes.
ALIGNMENTS = (8, 4, 1)

#: Row tiles that share their column tiles are scheduled together in groups of this many, so that they meet in
#: L2.
GROUP = 8

#: The cost of adding one element of one partial sum, in steps of the reduction itself: 4 bytes at the
#: 100 GB/s that one multiprocessor reads from L2, against half the speed of its tensor cores.
ADDING = 60

#: The widest LayerNorm: one row has to fit into the registers of one program, with its gradients.
MAX_NORM_WIDTH = 8192


@dataclass(frozen=True)
class Tile:
    """One choice for C[rows, cols] += A[rows, depth] B[depth, cols]: elements, warps, pipeline stages."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int

    def constants(self) -> dict[str, int]:
        """Constexpr arguments, warps and stages of a GEMM kernel."""
        return {
            "GROUP": GROUP,
            "BLOCK_ROWS": self.rows,
            "BLOCK_COLS": self.cols,
            "BLOCK_DEPTH": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


#: The tiles to pick from, by kind of operand; largest first. All fit the 99 KiB of the smallest sm_8x parts.
#: "half": both operands are 16 bits in memory. "mixed": one is fp32 and converted on load, so a stage
#: is twice as large and half as deep. "tf32", "ieee": fp32 operands on tensor cores, or exactly on the FMA
#: units.
COMMITTED: dict[str, tuple[Tile, ...]] = {
    "half": (Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 4, 4), Tile(64, 64, 64, 4, 4)),
    "mixed": (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
    "tf32": (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
    "ieee": (Tile(32, 64, 16, 4, 2),),
    # A weight gradient also sums dy for the bias. Beside that, ptxas serialises the wgmmas of four warps, and
    # not those of eight.
    "half+weight": (Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 8, 4)),
    # With four warps, 24 bytes would spill on sm_80.
    "ieee+weight": (Tile(32, 64, 16, 8, 2),),
    # The GELU epilogue holds its input and its slope beside the sums, so the largest tile would spill.
    "half+gelu": (Tile(128, 64, 64, 8, 4), Tile(64, 64, 64, 4, 4)),
    "mixed+gelu": (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3)),
    "tf32+gelu": (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3)),
    "ieee+gelu": (Tile(32, 64, 16, 4, 2),),
}

#: Tiles of 16-bit GEMMs that a measurement on sm_90 may try beside the committed ones. Where they were
#: tried, in bf16 with 16-bit weights, they were seen to compile without spills and unserialised, but not with
#: the GELU epilogue; the committed table does not hold them. Steps of 32 pad 216 channels to 224, not 256; a
#: fourth stage keeps two copies under way. (128 x 256 spills with a residual.)
CANDIDATES: dict[str, tuple[Tile, ...]] = {
    "half": (Tile(128, 128, 32, 8, 4), Tile(128, 128, 64, 8, 4)),
    "half+weight": (Tile(128, 128, 32, 8, 4), Tile(128, 64, 64, 4, 3)),
}

#: Time per element of a tile beside that of the largest: the smaller, the more often operands are read.
TIME_PER_ELEMENT = {128 * 128: 1.0, 128 * 64: 1.15}

#: Programs whose sums of LayerNorm's parameter gradients are added together first (``split_k``): the square
#: root of what an H100 runs at a time, so that both levels are equally long.
NORM_GROUP = 16

#: LayerNorm folded into q, k, v, its whole rows held on chip: ``depth`` is the widest row, ``cols`` the units
#: of one step. 128 rows read an fp32 weight half as often as 64 would; up to 160 KiB of shared memory.
HELD: dict[str, Tile] = {"half": Tile(128, 64, 256, 8, 2), "mixed": Tile(128, 32, 256, 8, 2)}

#: Gradients of an input whose programs own whole rows: of q, k, v through the GEMM and LayerNorm's backward
#: pass, and of a layer whose dy is converted on the way. ``cols`` is the widest row.
NORM_BACKWARD: dict[str, Tile] = {
    "half": Tile(64, 256, 32, 8, 4),
    "mixed": Tile(64, 256, 32, 8, 2),
    "tf32": Tile(64, 256, 32, 8, 2),
    "ieee": Tile(16, 256, 16, 4, 2),
}

_overrides: dict[str, int] = {}


@contextmanager
def constrained(**fields: int) -> Iterator[None]:
    """Force fields of every choice made inside, for tests and measuring: ``constrained(rows=16, splits=3)``.

    Args:
        fields: any field of :class:`Tile`, and ``splits``, ``norm_rows``, ``norm_programs``, ``held``,
            ``apart``.

    Raises:
        UsageError: a field that no choice has.
    """
    known = {field.name for field in dataclasses.fields(Tile)} | {
        "splits", "norm_rows", "norm_programs", "held", "apart",
    }  # fmt: skip
    if unknown := sorted(set(fields) - known):
        raise UsageError(f"No tile choice has a field {unknown[0]!r}. Known: {', '.join(sorted(known))}.")
    previous = dict(_overrides)
    _overrides.update(fields)
    launch.forget()
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(previous)
        launch.forget()


def alignment(*values: int) -> int:
    """The largest class of :data:`ALIGNMENTS` that divides every value.

    Args:
        values: widths and row strides, in elements, of the rows that are read or written.
    """
    return next(a for a in ALIGNMENTS if all(value % a == 0 for value in values))


def operand_kind(a: torch.dtype, b: torch.dtype, precision: str) -> str:
    """The list of :data:`COMMITTED` that a GEMM of two operands with these dtypes in memory picks from.

    Args:
        a, b: dtypes in memory; ``a`` is the dtype of the GEMM.
        precision: ``"ieee"`` or ``"tf32"``, used where ``a`` is fp32.
    """
    if a is torch.float32:
        return precision
    return "mixed" if b is torch.float32 else "half"


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def pick(
    kind: str,
    rows: int,
    cols: int,
    multiprocessors: int,
    panels: int = 1,
    depth: int | None = None,
    others: Sequence[tuple[int, int]] = (),
) -> Tile:
    """The tile for a GEMM with ``panels`` separate outputs of (rows, cols).

    The larger a tile, the less often its operands are read (:data:`TIME_PER_ELEMENT`); but padding at the
    edges is computed too, a GPU that is not full is wasted, and the partial sums of a split reduction have
    to be added by one program.

    Args:
        kind: a key of :data:`COMMITTED`.
        rows, cols: the output's size in elements.
        multiprocessors: of the device.
        panels: how many such outputs one launch makes (3 for q, k, v).
        depth: length of the reduction where :func:`pick_splits` may cut it, which fills the GPU: of a weight
            gradient.
        others: rows and columns of further outputs of the same launch.
    """
    outputs = [(rows, cols)] * panels + list(others)

    def cost(tile: Tile) -> float:
        programs = sum(_ceil(r, tile.rows) * _ceil(c, tile.cols) for r, c in outputs)
        size = tile.rows * tile.cols
        work = size * TIME_PER_ELEMENT.get(size, 1.4)
        if depth is None:
            return max(1.0, programs / multiprocessors) * work
        splits = pick_splits(tile, programs, depth, multiprocessors)
        time = max(1.0, programs * splits / multiprocessors) * work * depth / splits
        return time + (ADDING * size * splits if splits > 1 else 0)

    committed = COMMITTED[kind] if depth is None else COMMITTED.get(f"{kind}+weight", COMMITTED[kind])
    return _forced(min(committed, key=cost))


def _forced(tile: Tile) -> Tile:
    forced = {name: value for name, value in _overrides.items() if hasattr(tile, name)}
    return dataclasses.replace(tile, **forced) if forced else tile


def pick_held(kind: str, rows: int, width: int, multiprocessors: int, shared: int) -> Tile | None:
    """The tile whose programs hold whole rows of a LayerNorm on chip; None where that would not pay.

    Args:
        kind: a key of :data:`COMMITTED`.
        rows, width: of the batch's activations.
        multiprocessors: of the device.
        shared: bytes of shared memory that one block of the device may use.

    Returns:
        None for exact or tf32 matmuls, rows over 256 wide, fewer programs than multiprocessors, or parts of
        a GPU with less than 160 KiB of shared memory per block.
    """
    tile = HELD.get(kind)
    if tile is None or width > tile.depth or shared < 160 * 1024:
        return None
    held = _overrides.get("held", 3 * _ceil(rows, tile.rows) >= multiprocessors)
    return dataclasses.replace(_forced(tile), depth=tile.depth) if held else None


def norm_apart(dtype: torch.dtype, precision: str, rows: int, width: int, multiprocessors: int) -> bool:
    """True if the LayerNorm before q, k, v is a launch of its own, see ``norm_qkv``.

    Args:
        dtype: of the matmuls.
        precision: as ``launch.dot_precision`` names it.
        rows, width: of the batch's activations.
        multiprocessors: of the device.

    Returns:
        True for rows over 256 wide that are enough to fill the GPU, unless matmuls are exact fp32.
    """
    if "apart" in _overrides:
        return bool(_overrides["apart"])
    exact = dtype is torch.float32 and precision == "ieee"
    widest, few = HELD["half"].depth, HELD["half"].rows * multiprocessors > 3 * rows
    return not exact and not few and widest < width <= MAX_NORM_WIDTH


def pick_norm_backward(kind: str) -> Tile:
    """The tile of :data:`NORM_BACKWARD` for a kind of GEMM; its ``cols`` is the widest row it can take."""
    return dataclasses.replace(_forced(NORM_BACKWARD[kind]), cols=NORM_BACKWARD[kind].cols)


def pick_splits(tile: Tile, programs: int, depth: int, multiprocessors: int) -> int:
    """The number of splits of a long reduction (split-K), so that few output tiles still fill the GPU.

    Args:
        tile: of the GEMM.
        programs: output tiles.
        depth: length of the reduction (rows of the batch).
        multiprocessors: of the device.

    Returns:
        1 (one program makes the whole sum) or more (partial sums, which the last program adds in order). Each
        split keeps at least eight steps of the inner loop. More splits shorten these steps and lengthen the
        addition: best where both take equally long.
    """
    if "splits" in _overrides:
        return max(1, min(_overrides["splits"], _ceil(depth, tile.depth)))
    return max(1, min(2 * multiprocessors // programs, depth // (8 * tile.depth), isqrt(depth // ADDING)))


def split(tile: Tile, programs: int, depth: int, multiprocessors: int) -> tuple[int, int]:
    """Splits of a reduction and the rows of each, whole steps of the tile; no split is empty.

    Args:
        tile, programs, depth, multiprocessors: as :func:`pick_splits`.
    """
    splits = pick_splits(tile, programs, depth, multiprocessors)
    rows = _ceil(_ceil(depth, splits), tile.depth) * tile.depth
    return _ceil(depth, rows), rows


@dataclass(frozen=True)
class NormTile:
    """One choice for LayerNorm: rows per step, columns (a power of two that holds the width), warps."""

    rows: int
    cols: int
    warps: int


def _norm_cols(width: int) -> int:
    if width > MAX_NORM_WIDTH:
        raise UsageError(
            f"LayerNorm over {width} channels is over the {MAX_NORM_WIDTH} that one program holds. "
            "Use the 'torch' backend for it."
        )
    return max(16, 1 << (width - 1).bit_length())


def pick_norm(width: int) -> NormTile:
    """The LayerNorm tile of a width: every warp has rows of its own up to 1024 columns, two where they fit.

    Raises:
        UsageError: the width is over :data:`MAX_NORM_WIDTH`.
    """
    cols = _norm_cols(width)
    rows = _overrides.get("norm_rows", 8 if cols <= 256 else max(1, 4096 // max(cols, 1024)))
    return NormTile(rows, cols, 4 if cols <= 1024 else min(16, cols // 512))


def pick_norm_gradient(width: int) -> NormTile:
    """The same for its backward pass, where eight warps leave one sum of parameter gradients together.

    Raises:
        UsageError: as :func:`pick_norm`.
    """
    cols = _norm_cols(width)
    rows = _overrides.get("norm_rows", 16 if cols <= 256 else max(1, 8192 // max(cols, 1024)))
    return NormTile(rows, cols, 8 if cols <= 2048 else 16)


def pick_norm_programs(tile: NormTile, rows: int, multiprocessors: int) -> int:
    """Programs that share the rows of a LayerNorm backward pass; each leaves one partial sum of gradients.

    As many as are on a GPU at a time: two per multiprocessor, whose registers hold one of wide rows.
    """
    wanted = _overrides.get("norm_programs", (2 if tile.cols <= 512 else 1) * multiprocessors)
    return max(1, min(wanted, _ceil(rows, tile.rows)))
