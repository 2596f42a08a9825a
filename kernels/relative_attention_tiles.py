"""Tiles of relative attention: what each kernel is launched with, by architecture, products and head width.

A query tile of the backward pass holds its dq and two sums over places in registers; the gradients of all
tables, 64 more, would fit only with twice the warps and half the programs per multiprocessor (``keep``), so
they are added to memory that stays in L2. Before Hopper the operands of a product are registers too, so tiles
are smaller there. Exact fp32 runs on the FMA units, where a product of depth E holds all of it in registers,
and gets the smallest tiles of all. No GPU has timed these choices; heads up to 64 wide on the smallest class
of grids compile without spills on sm_80 and sm_90; the widest class spills a little in its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from triton.runtime import driver

from growtas.errors import UsageError
from growtas.kernels import launch

MAX_HEAD_DIM = 128
#: Classes of grids: the longer side and two columns more must fit, one more without a cls token.
SIDES = (16, 32, 64)


@dataclass(frozen=True)
class Tile:
    """Queries and keys per tile, columns of table space per product, warps, pipeline stages; and whether a
    program keeps its table gradients in registers (1) or adds to its partial sums in memory (0).
    """

    queries: int
    keys: int
    chunk: int
    warps: int
    stages: int
    keep: int = 0


#: kernel -> class of products -> 64: heads up to 64 wide on the smallest class of grids, 128: all others.
#: "half-older": before Hopper.
COMMITTED: dict[str, dict[str, dict[int, Tile]]] = {
    "forward": {
        "half": {64: Tile(64, 64, 64, 4, 2), 128: Tile(64, 64, 64, 8, 2)},
        "half-older": {64: Tile(64, 32, 32, 4, 2), 128: Tile(64, 32, 32, 8, 2)},
        "tf32": {64: Tile(64, 32, 64, 4, 2), 128: Tile(16, 32, 16, 8, 1)},
        "ieee": {64: Tile(16, 16, 16, 8, 1), 128: Tile(16, 16, 16, 8, 1)},
    },
    "backward_queries": {
        "half": {64: Tile(64, 32, 64, 4, 2), 128: Tile(64, 16, 32, 8, 2)},
        "half-older": {64: Tile(64, 32, 32, 8, 2), 128: Tile(16, 32, 16, 8, 1)},
        "tf32": {64: Tile(16, 32, 32, 4, 1), 128: Tile(16, 16, 16, 8, 1)},
        "ieee": {64: Tile(16, 16, 16, 8, 1), 128: Tile(16, 16, 16, 8, 1)},
    },
    "backward_keys": {
        "half": {64: Tile(32, 64, 64, 4, 2), 128: Tile(32, 64, 64, 8, 2)},
        "half-older": {64: Tile(32, 64, 64, 4, 2), 128: Tile(32, 64, 64, 8, 2)},
        "tf32": {64: Tile(32, 64, 64, 8, 2), 128: Tile(32, 32, 32, 8, 1)},
        "ieee": {64: Tile(16, 16, 16, 4, 1), 128: Tile(16, 16, 16, 8, 1)},
    },
}

_overrides: dict[str, int] = {}


@contextmanager
def constrained(**fields: int) -> Iterator[None]:
    """Force fields of every tile chosen inside, for tests and measuring: ``constrained(queries=16)``.

    Args:
        fields: any field of :class:`Tile`, and ``programs`` of the table gradients.

    Raises:
        UsageError: a field that no choice has.
    """
    known = {*Tile.__dataclass_fields__, "programs"}
    if unknown := sorted(set(fields) - known):
        raise UsageError(f"No tile choice has a field {unknown[0]!r}. Known: {', '.join(sorted(known))}.")
    previous = dict(_overrides)
    _overrides.update(fields)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(previous)


def _hopper(device: torch.device) -> bool:
    """Whether products are made by wgmma, from shared memory; the interpreter counts as that too."""
    if device.type == "meta":
        return driver.active.get_current_target().arch >= 90
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def pick(
    kernel: str, dtype: torch.dtype, block_e: int, side: int, device: torch.device
) -> tuple[Tile, str, bool]:
    """What one kernel is launched with.

    Args:
        kernel: a key of :data:`COMMITTED`.
        dtype: of qkv.
        block_e: padded head width.
        side: class of the grid.
        device: as ``launch.check`` returned it.

    Returns:
        The tile, its chunk no wider than table space; the precision of products; and whether the table
        gradients are kept in registers.
    """
    precision = launch.dot_precision(dtype)
    kind = precision
    if dtype is not torch.float32:
        kind = "half" if _hopper(device) else "half-older"
    tile = COMMITTED[kernel][kind][64 if block_e <= 64 and side == SIDES[0] else 128]
    tile = replace(tile, **{name: value for name, value in _overrides.items() if name != "programs"})
    tile = replace(tile, chunk=min(tile.chunk, 4 * side))
    return tile, precision, bool(tile.keep) and tile.chunk == 4 * side


def pick_programs(work: int, device: torch.device) -> int:
    """Programs that share ``work`` query tiles; each leaves one partial sum of table gradients."""
    return min(work, _overrides.get("programs", 2 * launch.multiprocessors(device)))


def side_of(grid: tuple[int, int], cls: int) -> int:
    """The class of a grid; 0 if it is over the largest."""
    return next((side for side in SIDES if max(grid) + cls + 1 <= side), 0)
