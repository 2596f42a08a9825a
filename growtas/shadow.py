"""16-bit shadows of shared weights: one cast of a weight per optimizer step, read in slices by every subnet.

Under 16-bit autocast a GEMM needs its weight in 16 bits. Converting a slice in every call costs a launch and
a copy per layer and subnet; converting while a kernel loads sends the operand through registers, and wgmma
waits for it. A shadow is the whole parameter in 16 bits: kernels and BLAS read its slices by stride, as they
read the parameter's own. Nothing is copied per subnet.

The rows of q, k and v are interleaved in a qkv weight: row ``3 * u + i`` for channel u of part i. On a GPU
its shadow is sorted by head, part and channel: the first h heads are still the first rows, one GEMM makes
(B, N, h, 3, E), and every head's q, k and v are rows of E neighbours. On a CPU they stay interleaved.

A shadow is valid as long as the weight's version counter is the one it was made at: an optimizer step, a
loaded checkpoint or ``weight.copy_(...)`` makes it stale, and :func:`read` then answers with the weight
itself. Writes through ``weight.data`` leave no trace in the counter. Some optimizers write so; therefore the
end of every optimizer's step makes all shadows stale too. After such writes by hand, call :func:`expire`.

Memory: 2 bytes per element of every shared weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

SHADOW_DTYPES = (torch.bfloat16, torch.float16)


class Work(NamedTuple):
    """One weight (N, K) to cast into ``matrix``; its rows are sorted by head where head_dim is not 0."""

    weight: Tensor
    matrix: Tensor
    head_dim: int


class _Shadow:
    """One shadow: of which weight, at which version and age it was made."""

    __slots__ = ("weight", "work", "shape", "tensor", "version", "age", "__weakref__")

    def __init__(self, weight: Tensor, work: Work) -> None:
        self.weight = weight
        self.work = work
        self.shape = weight.shape
        self.tensor = work.matrix.view(weight.shape)
        self.version = self.age = -1


_shadows: WeakValueDictionary[tuple[int, torch.dtype], _Shadow] = WeakValueDictionary()
_age = 0
_made = 0  # how often shadows were made, of any weights
_ignored = False


@contextmanager
def ignored() -> Iterator[None]:
    """Within it, weights are read as they are: for code that was promised the strides of that path."""
    global _ignored
    former, _ignored = _ignored, True
    try:
        yield
    finally:
        _ignored = former


def _place(weight: Tensor) -> int:
    """The address, which views of a weight share; meta tensors have none, and are told apart as objects."""
    return weight.data_ptr() or id(weight)


def _find(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, int] | None:
    """The shadow in the weight's shape, and its head_dim; None where there is no valid one."""
    if _ignored or not _shadows:
        return None
    place = _place(weight)
    shadow = _shadows.get((place, dtype))
    if shadow is None or not (shadow.weight is weight or _place(shadow.weight) == place):
        return None
    if shadow.age != _age or shadow.version != shadow.weight._version:
        return None
    if weight.shape == shadow.shape:
        return shadow.tensor, shadow.work.head_dim
    matrix = shadow.work.matrix  # the rows of a convolution's weight
    return (matrix, shadow.work.head_dim) if weight.shape == matrix.shape else None


def of(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor | None]:
    """The valid shadows of some weights, rows as they are or sorted by head; None where there is none."""
    if _ignored or not _shadows:
        return [None] * len(weights)
    found: list[Tensor | None] = []
    for weight in weights:
        shadow = _shadows.get((weight.data_ptr() or id(weight), dtype))
        # most often the very weight, not a view of it: then it is where it was
        if shadow is not None and shadow.weight is weight and shadow.shape == weight.shape:
            valid = shadow.age == _age and shadow.version == weight._version
            found.append(shadow.tensor if valid else None)
        else:
            other = _find(weight, dtype)
            found.append(None if other is None else other[0])
    return found


def read(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A shared weight as a GEMM in ``dtype`` reads it.

    Args:
        weight: (N_max, K_max), or (N_max,) for a bias.
        dtype: of the GEMM.

    Returns:
        Its shadow, of the same shape, where there is a valid one; else the weight itself.
    """
    found = _find(weight, dtype)
    return weight if found is None or found[1] else found[0]


def read_qkv(weight: Tensor, dtype: torch.dtype, head_dim: int) -> tuple[Tensor, int, int]:
    """A qkv weight or bias as a GEMM in ``dtype`` reads it.

    Args:
        weight: (3 * E * H, D) shared weight, or its bias; row ``3 * u + i`` is channel u of q, k or v.
        dtype: of the GEMM.
        head_dim: E.

    Returns:
        A tensor of the weight's shape and its steps p and s: channel e of head j, part i, is the row
        ``3 * E * j + p * i + s * e``. (E, 1) for a shadow on a GPU, (1, 3) otherwise.
    """
    found = _find(weight, dtype)
    if found is None or found[1] not in (0, head_dim):
        return weight, 1, 3
    return (found[0], head_dim, 1) if found[1] else (found[0], 1, 3)


def copy(work: Sequence[Work]) -> None:
    """Cast weights by torch's own copies. Args: work: as :meth:`Shadows.refresh` lists it."""
    for weight, matrix, head_dim in work:
        if head_dim:
            sorted_rows = matrix.view(-1, 3, head_dim, matrix.shape[1])
            sorted_rows.copy_(weight.view(-1, head_dim, 3, matrix.shape[1]).transpose(1, 2))
        else:
            matrix.copy_(weight)


class Shadows:
    """The shadows of a network's shared weights; they live as long as this object.

    Args:
        weights: fp32 and contiguous, on one device; those that are not get no shadow. More than two axes
            count as rows of the first.
        head_dims: place in ``weights`` -> head_dim, of the qkv weights and biases among them.
        sort: whether rows of qkv weights are sorted by head; on a GPU where None.

    Example:
        >>> shadows = Shadows([fc1.weight, fc2.weight])
        >>> shadows.refresh(torch.bfloat16)  # before a forward pass under autocast
    """

    def __init__(
        self, weights: Sequence[Tensor], head_dims: Mapping[int, int] | None = None, sort: bool | None = None
    ) -> None:
        self._weights = list(weights)
        self._head_dims = dict(head_dims or {})
        self._sort = sort
        self._made: dict[torch.dtype, list[_Shadow]] = {}
        self._places: list[int] = []
        self._seen = 0  # the value of _made up to which these shadows are known to be in place

    @torch.no_grad()
    def refresh(self, dtype: torch.dtype, cast: Callable[[Sequence[Work]], None] = copy) -> bool:
        """Cast the weights, unless none has changed since the last time.

        Args:
            dtype: bfloat16 or float16; another makes no shadows.
            cast: casts a list of :class:`Work`.

        Returns:
            Whether the weights were cast.
        """
        if dtype not in SHADOW_DTYPES:
            return False
        made = self._made.get(dtype)
        if made is None or not self._in_place(dtype, made):
            made = self._make(dtype)
        if all([s.version == s.weight._version and s.age == _age for s in made]):
            return False
        cast([s.work for s in made])
        for s in made:
            s.version, s.age = s.weight._version, _age
        return True

    def _in_place(self, dtype: torch.dtype, made: list[_Shadow]) -> bool:
        """Return whether :func:`read` finds these shadows: no weight moved, and nobody else made one."""
        if [_place(s.weight) for s in made] != self._places:
            return False
        if self._seen != _made:
            if not all(_shadows.get((_place(s.weight), dtype)) is s for s in made):
                return False
            self._seen = _made
        return True

    @torch.inference_mode(False)  # an evaluation may come first; training could not refresh what it makes
    def _make(self, dtype: torch.dtype) -> list[_Shadow]:
        global _made
        made = []
        for place, weight in enumerate(self._weights):
            if weight.dtype is not torch.float32 or not weight.is_contiguous() or not weight.numel():
                continue
            flat = weight.detach().view(len(weight), -1)
            matrix = torch.empty(flat.shape, dtype=dtype, device=weight.device)
            sort = weight.device.type != "cpu" if self._sort is None else self._sort
            head_dim = self._head_dims.get(place, 0) if sort else 0
            made.append(_Shadow(weight, Work(flat, matrix, head_dim)))
        _made += 1
        self._made[dtype], self._seen = made, _made
        self._places = [_place(s.weight) for s in made]
        _shadows.update({(_place(s.weight), dtype): s for s in made})
        return made

    def __reduce__(self) -> tuple:
        """A copied or pickled network makes shadows of its own weights."""
        return type(None), ()

    @property
    def nbytes(self) -> int:
        """Memory of all shadows."""
        return sum(s.work.matrix.nbytes for made in self._made.values() for s in made)


def expire(*_: object) -> None:
    """Make every shadow stale; the next :meth:`Shadows.refresh` uses their memory again."""
    global _age
    _age += 1


register_optimizer_step_post_hook(expire)
