"""Tiles of relative attention, by architecture, dtype of the matmuls and head width.

A query tile of the backward pass holds its dq and two sums over places in registers; the gradients of all
tables, 64 more, would fit only with twice the warps and half the programs per multiprocessor (``keep``), so
they are added to memory that stays in L2. Before Hopper the operands of a matmul are registers too, so tiles
are smaller there. Exact fp32 runs on the FMA units, where a matmul of depth E holds all of it in registers,
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
from growtas.kernels.common import launch

MAX_HEAD_DIM = 128
#: Classes of grids: the longer side and two columns more must fit, one more without a cls token.
SIDES = (16, 32, 64)


@dataclass(frozen=True)
class Tile:
    """Queries and keys per tile, columns of table space per matmul, warps, pipeline stages; and whether a
    program keeps its table gradients in registers (1) or adds to its partial sums in memory (0).
    """

    queries: int
    keys: int
    chunk: int
    warps: int
    stages: int
    keep: int = 0


#: kernel -> class of matmuls -> 64: heads up to 64 wide on the smallest class of grids, 128: all others.
#: "-older": before Hopper, where that differs.
COMMITTED: dict[str, dict[str, dict[int, Tile]]] = {
    "forward": {
        "half": {64: Tile(64, 64, 64, 4, 3), 128: Tile(64, 64, 64, 8, 2)},
        "half-older": {64: Tile(64, 32, 32, 4, 2), 128: Tile(64, 32, 32, 8, 2)},
        "tf32": {64: Tile(64, 32, 64, 4, 2), 128: Tile(16, 32, 16, 8, 1)},
        "tf32-older": {64: Tile(64, 16, 64, 4, 2), 128: Tile(16, 32, 16, 8, 1)},
        "ieee": {64: Tile(16, 16, 16, 8, 1), 128: Tile(16, 16, 16, 8, 1)},
    },
    "one_pass": {
        "half": {64: Tile(128, 32, 64, 8, 2)},
    },
    "backward_queries": {
        "half": {64: Tile(64, 32, 64, 4, 3), 128: Tile(64, 16, 32, 8, 2)},
        "half-older": {64: Tile(64, 32, 32, 8, 2), 128: Tile(16, 32, 16, 8, 1)},
        "tf32": {64: Tile(16, 32, 32, 4, 1), 128: Tile(16, 16, 16, 8, 1)},
        "ieee": {64: Tile(16, 16, 16, 8, 1), 128: Tile(16, 16, 16, 8, 1)},
    },
    "backward_keys": {
        "half": {64: Tile(32, 64, 64, 4, 3), 128: Tile(32, 64, 64, 8, 2)},
        "half-older": {64: Tile(32, 64, 64, 4, 2), 128: Tile(32, 64, 64, 8, 2)},
        "tf32": {64: Tile(32, 64, 64, 8, 2), 128: Tile(32, 32, 32, 8, 1)},
        "ieee": {64: Tile(16, 16, 16, 4, 1), 128: Tile(16, 16, 16, 8, 1)},
    },
}

#: True has the backward pass take the "one_pass" kernel where it fits. It computes S and dP once, not twice,
#: and moves less; but one program of it fills a multiprocessor, and nothing else runs there while it waits.
#: ``one_pass`` counts both. A measurement should switch it.
ONE_PASS = False

#: Tiles that ``growtas tune`` may race, for 16-bit heads up to 64 wide on the smallest class of grids on
#: Hopper: form -> fields to put into :func:`constrained`; the committed choice comes first. All compile for
#: sm_90 without spills, but for some words outside of the main loop in one pass with 64 keys.
CANDIDATES: dict[str, list[dict[str, int]]] = {
    "forward": [
        {},
        {"stages": 2},
        {"queries": 128, "warps": 8, "stages": 3},
        {"queries": 128, "warps": 8, "stages": 2},
    ],
    "backward": [
        {"one_pass": 0},
        {"one_pass": 0, "stages": 2},
        {"one_pass": 0, "queries": 64, "stages": 3},
        {"one_pass": 1},
        {"one_pass": 1, "keys": 64},
    ],
}

#: Names that can be forced besides fields of tiles.
_NOT_OF_TILES = ("programs", "one_pass")

_overrides: dict[str, int] = {}


@contextmanager
def constrained(**fields: int) -> Iterator[None]:
    """Force fields of every tile chosen inside, for tests and measuring: ``constrained(queries=16)``.

    Args:
        fields: any field of :class:`Tile`; ``programs`` of the table gradients; and ``one_pass``, 1 or 0: the
            form of the backward pass, whatever :func:`one_pass` would say.

    Raises:
        UsageError: a field that no choice has.
    """
    known = {*Tile.__dataclass_fields__, *_NOT_OF_TILES}
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


def _hopper(device: torch.device) -> bool:
    """True where matmuls run as wgmma, from shared memory; the interpreter counts as that too."""
    if device.type == "meta":
        return driver.active.get_current_target().arch >= 90
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def pick(
    kernel: str, dtype: torch.dtype, block_e: int, side: int, device: torch.device
) -> tuple[Tile, str, bool]:
    """The tile and the precision that one kernel is launched with.

    Args:
        kernel: a key of :data:`COMMITTED`.
        dtype: of qkv.
        block_e: padded head width.
        side: class of the grid.
        device: as ``launch.check`` returned it.

    Returns:
        The tile, its chunk no wider than table space; the precision of matmuls; and whether the table
        gradients are kept in registers.
    """
    precision = launch.dot_precision(dtype)
    kind = precision if dtype is torch.float32 else "half"
    if not _hopper(device) and f"{kind}-older" in COMMITTED[kernel]:
        kind += "-older"
    if kernel == "one_pass":
        tile = COMMITTED[kernel]["half"][64]  # whatever it is forced on
    else:
        tile = COMMITTED[kernel][kind][64 if block_e <= 64 and side == SIDES[0] else 128]
    tile = replace(tile, **{name: value for name, value in _overrides.items() if name not in _NOT_OF_TILES})
    tile = replace(tile, chunk=min(tile.chunk, 4 * side))
    return tile, precision, bool(tile.keep) and tile.chunk == 4 * side


def one_pass(dtype: torch.dtype, block_e: int, side: int, device: torch.device) -> bool:
    """True if one program makes all gradients of a head of an image, computing S and dP once, not twice.

    Its dq, sums over places and gradients of all tables fill the registers of a Hopper multiprocessor with
    16-bit operands in shared memory, heads up to 64 wide and the smallest class of grids, so up to 225
    tokens. Everything else takes the two kernels of ``two_pass``.
    """
    fits = dtype is not torch.float32 and _hopper(device) and block_e <= 64 and side == SIDES[0]
    return bool(_overrides.get("one_pass", fits and ONE_PASS))


def tail_of(tokens: int, block: int) -> int:
    """Width of the last tile of keys, after whole ones of ``block``: 0, or a power of two from 16."""
    rest = tokens % block
    return max(16, 1 << (rest - 1).bit_length()) if rest else 0


def pick_programs(work: int, device: torch.device, per_multiprocessor: int) -> int:
    """Programs that share ``work`` query tiles or heads; each leaves one partial sum of table gradients."""
    return min(work, _overrides.get("programs", per_multiprocessor * launch.multiprocessors(device)))


def side_of(grid: tuple[int, int], cls: int) -> int:
    """The class of a grid; 0 if it is over the largest."""
    return next((side for side in SIDES if max(grid) + cls + 1 <= side), 0)
