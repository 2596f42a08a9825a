"""16-bit shadows of shared weights: one cast of a weight per optimizer step, read in slices by every subnet.

Under 16-bit autocast a GEMM needs its weight in 16 bits. Converting a slice in every call costs a launch and
a copy per layer and subnet; converting while a kernel loads sends the operand through registers, and wgmma
waits for it. A shadow is the whole parameter in 16 bits: kernels and BLAS read its slices by stride, as they
read the parameter's own. Nothing is copied per subnet.

The rows of q, k and v are interleaved in a qkv weight: row ``3 * u + i`` for channel u of part i. On a GPU its
shadow is sorted by head, part and channel, so that the first h heads are still the first rows, one GEMM makes
(B, N, h, 3, E), and every head's q, k and v are rows of E neighbours. On a CPU they stay interleaved.

A shadow is valid as long as the weight's version counter is the one it was made at: an optimizer step, a
loaded checkpoint or ``weight.copy_(...)`` makes it stale, and :func:`read` then answers with the weight
itself. Writes through ``weight.data`` leave no trace in the counter. Some optimizers write so; therefore the
end of every optimizer's step makes all shadows stale too. After such writes by hand, call :func:`expire`.

Memory: 2 bytes per element of every shared matrix.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

SHADOW_DTYPES = (torch.bfloat16, torch.float16)


class Entry(NamedTuple):
    """One shadow.

    Args:
        weight: weakly held.
        version: the weight's, when the shadow was made.
        age: how often :func:`expire` had been called then.
        matrix: (N_max, K_max) in 16 bits.
        head_dim: of a qkv weight whose rows are sorted by head; else 0.
    """

    weight: weakref.ref
    version: int
    age: int
    matrix: Tensor
    head_dim: int


class Work(NamedTuple):
    """One weight (N, K) to cast into ``matrix``; its rows are sorted by head where head_dim is not 0."""

    weight: Tensor
    matrix: Tensor
    head_dim: int


_entries: dict[tuple[int, torch.dtype], Entry] = {}
_age = 0


def read(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as a GEMM in ``dtype`` reads it.

    Args:
        weight: (N_max, K_max) shared weight.
        dtype: of the GEMM.

    Returns:
        Its shadow of the same shape, where there is a valid one; else the weight itself.
    """
    entry = _entries.get((weight.data_ptr(), dtype)) if _entries else None
    if entry is None or entry.head_dim or not _valid(entry, weight):
        return weight
    return entry.matrix


def read_qkv(weight: Tensor, dtype: torch.dtype, head_dim: int) -> tuple[Tensor, int, int]:
    """A qkv weight as a GEMM in ``dtype`` reads it.

    Args:
        weight: (3 * E * H, D) shared weight, row ``3 * u + i`` for channel u of q, k or v.
        dtype: of the GEMM.
        head_dim: E.

    Returns:
        A (3 * E * H, D) matrix and its steps p and s: channel e of head j, part i, is the row
        ``3 * E * j + p * i + s * e``. (E, 1) for a shadow on a GPU, (1, 3) otherwise.
    """
    entry = _entries.get((weight.data_ptr(), dtype)) if _entries else None
    if entry is None or entry.head_dim not in (0, head_dim) or not _valid(entry, weight):
        return weight, 1, 3
    return (entry.matrix, head_dim, 1) if entry.head_dim else (entry.matrix, 1, 3)


def _valid(entry: Entry, weight: Tensor) -> bool:
    own = entry.weight()
    return (
        own is not None
        and entry.version == weight._version
        and entry.age == _age
        and own.data_ptr() == weight.data_ptr()
        and len(entry.matrix) == len(weight)
    )


def copy(work: Sequence[Work]) -> None:
    """Cast weights by torch's own copies. Args: work: as :func:`refresh` lists it."""
    for weight, matrix, head_dim in work:
        if head_dim:
            sorted_rows = matrix.view(-1, 3, head_dim, matrix.shape[1])
            sorted_rows.copy_(weight.view(-1, head_dim, 3, matrix.shape[1]).transpose(1, 2))
        else:
            matrix.copy_(weight)


@torch.no_grad()
def refresh(
    weights: Sequence[Tensor],
    dtype: torch.dtype,
    head_dims: Mapping[int, int] | None = None,
    cast: Callable[[Sequence[Work]], None] = copy,
) -> int:
    """Bring the shadows of weights up to date; those that are valid are left alone.

    Args:
        weights: shared weights; more than two axes count as rows of the first. A weight that is not fp32 or
            not contiguous gets no shadow.
        dtype: bfloat16 or float16.
        head_dims: place in ``weights`` -> head_dim, of the qkv weights among them.
        cast: casts a list of :class:`Work`.

    Returns:
        How many weights were cast.
    """
    if dtype not in SHADOW_DTYPES:
        return 0
    stale = []
    for place, weight in enumerate(weights):
        key = weight.data_ptr(), dtype
        entry = _entries.get(key)
        if entry is not None and _valid(entry, weight):
            continue
        if weight.dtype is not torch.float32 or not weight.is_contiguous() or not weight.numel():
            continue
        flat = weight.detach().flatten(1)
        head_dim = (head_dims or {}).get(place, 0) if weight.is_cuda else 0
        matrix = entry.matrix if entry is not None else None
        if matrix is None or matrix.shape != flat.shape or matrix.device != flat.device:
            matrix = torch.empty(flat.shape, dtype=dtype, device=weight.device)
        own = weakref.ref(weight, functools.partial(_drop, key))
        _entries[key] = Entry(own, weight._version, _age, matrix, head_dim)
        stale.append(Work(flat, matrix, head_dim))
    if stale:
        cast(stale)
    return len(stale)


def _drop(key: tuple[int, torch.dtype], gone: weakref.ref) -> None:
    """The weight is gone: so is its shadow, unless another weight has taken its place in memory."""
    entry = _entries.get(key)
    if entry is not None and entry.weight is gone:
        del _entries[key]


def expire(*_: object) -> None:
    """Make every shadow stale; the memory is used again by the next :func:`refresh`."""
    global _age
    _age += 1


def nbytes() -> int:
    """Bytes that all shadows take."""
    return sum(entry.matrix.nbytes for entry in _entries.values())


register_optimizer_step_post_hook(expire)
