"""Replay of launches: what a piece of work launched once is launched again, with other addresses only.

A launcher called again asks for every tensor's shape, strides and dtype, to look up its plan, and its callers
check and view the same tensors before it. A block of a net does that for twelve launches. All of it depends
on sizes alone. So :class:`Recorder` watches one run of the work and notes, per launch, its plan and where
each pointer comes from: one of the tensors *given* to the work, one that it made, or one that lasts as long
as the process. A :class:`Replay` then needs the addresses of the given tensors and room for the others.

Memory: tensors that the work returns are its *results*, and the caller makes room for them. All others are
scratch: one piece of memory, in which tensors share room whose launches do not overlap. The launches of a
replay run on one stream, one after the other, so sharing is safe.

Nothing is replayed that was not seen whole. The work is refused if torch ran an operation in it that is not a
view or an allocation, if a pointer is of unknown origin, or if given tensors overlap. The work's other code,
such as compiled functions that take addresses, is not seen; the caller answers for its absence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from growtas.kernels.common import launch, plan, workspace

#: Bytes: every tensor of a replay begins at a multiple of this, as those of torch's allocator do.
ALIGNMENT = 512

#: Whether the environment switches replaying off; it is read once.
OFF: bool = os.environ.get("GROWTAS_REPLAY", "1") == "0"

_ALLOCATING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_FREE = {"_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select"}
_FREE |= {"slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"}


class Layout(NamedTuple):
    """A tensor but for its memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """The layout of a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes from its first element to its last."""
        if 0 in self.shape:
            return 0
        steps = sum([(size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)])
        return (steps + 1) * self.dtype.itemsize


class Argument(NamedTuple):
    """A pointer of a launch: ``offset`` bytes past the address in ``slot``."""

    slot: int
    offset: int
    layout: Layout


class Step(NamedTuple):
    """A launch: its plan, and its pointers as slots and offsets, and as tensors; None where there is none."""

    plan: plan.Plan
    addresses: tuple[tuple[int, int], ...]
    tensors: tuple[Argument | Tensor | None, ...]


def rounded(nbytes: int) -> int:
    """Bytes that a tensor occupies where others follow it."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def tensor_at(owner: Tensor, address: int, layout: Layout) -> Tensor:
    """A tensor at an address inside the memory of another."""
    made = torch.empty(0, dtype=layout.dtype, device=owner.device)
    storage = owner.untyped_storage()
    offset = (address - storage.data_ptr()) // layout.dtype.itemsize
    return made.set_(storage, offset, layout.shape, layout.stride)


class Replay:
    """The launches of a piece of work; see :class:`Recorder`, which makes it.

    Slots, in order: null, the given tensors, the results, scratch.

    Args:
        steps: the launches in order.
        results: layouts of what the work returned; None where it returned None.
        scratch: bytes that it needs besides.

    Attributes:
        room: bytes of all results side by side.
        offsets: of each in that room.
    """

    def __init__(self, steps: Sequence[Step], results: Sequence[Layout | None], scratch: int) -> None:
        self.results, self.scratch = tuple(results), scratch
        self.offsets, self.room = [], 0
        for layout in results:
            self.offsets.append(self.room)
            self.room += 0 if layout is None else rounded(layout.nbytes)
        self._steps = steps
        self._names = [step.plan.name for step in steps]
        self._counters = max([step.plan.counters for step in steps], default=0)
        self._partials = max([step.plan.partials for step in steps], default=0)
        self._device = steps[0].plan.device
        self._index = steps[0].plan.index
        self._workspaces = workspace.by_stream(self._device)
        self._ready: dict[tuple[int, ...] | None, list[tuple]] = {}  # by the alignment of the slots

    def start(self, addresses: Sequence[int], owners: Callable[[], Sequence[Tensor | None]]) -> None:
        """Launch everything on the current stream of the device, which is the current one.

        Args:
            addresses: of the given tensors, of the results and of the scratch; 0 where there is none.
            owners: gives tensors in whose memory these are, for launches that Triton has to compile.
        """
        slots, bits = [0, *addresses], 0
        for address in slots:
            bits |= address
        aligned = None if not bits & 15 else tuple([address & 15 for address in slots])
        ready = self._ready.get(aligned) or self._prepare(aligned, slots)
        if ready is None:
            tensors = owners()
            for step in self._steps:
                step.plan.start(*_tensors(step, slots, tensors))
            return
        stream = plan.stream_of(self._index)
        if self._counters:
            space = self._workspaces.get(stream)
            if space is None or space.count < self._counters or space.size < self._partials:
                space = workspace.acquire(self._device, self._partials, self._counters)
            slots += space.addresses
        for names in launch.open_counts:
            names += self._names
        for run, x, y, z, function, packed, places, rest in ready:
            pointers = [slots[slot] + offset for slot, offset in places]
            run(x, y, z, stream, function, packed, None, None, None, *pointers, *rest)

    def _prepare(self, aligned: tuple[int, ...] | None, slots: Sequence[int]) -> list[tuple] | None:
        """The launches as the driver takes them, but for addresses; None while one is not compiled."""
        ready = []
        for step in self._steps:
            one, places = step.plan, step.addresses
            kernel = one.kernels.get(plan.pattern_of([slots[slot] + offset for slot, offset in places]))
            if kernel is None:
                return None
            run, function, packed = kernel
            if one.counters:
                places = (*places, (len(slots), 0), (len(slots) + 1, 0))
            ready.append((run, *one.grid3, function, packed, places, one.arguments))
        self._ready[aligned] = ready
        return ready


def _tensors(step: Step, slots: Sequence[int], owners: Sequence[Tensor | None]) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for argument in step.tensors:
        if isinstance(argument, Argument):
            owner = owners[argument.slot - 1]
            assert owner is not None, "a pointer of a launch has memory"
            argument = tensor_at(owner, slots[argument.slot] + argument.offset, argument.layout)
        found.append(argument)
    return found


def possible(device: torch.device) -> bool:
    """Return whether launches on a device may be replayed now.

    They may where no profiler looks on, nothing is captured into a graph or recorded for compiling, the
    device is the current one, and ``GROWTAS_REPLAY`` is not 0.
    """
    if OFF or plan.observed() or launch.is_recording():
        return False
    return plan.current(device) and not workspace.capturing(device)


class Recorder(TorchDispatchMode):
    """Watches the launches of a piece of work while it runs for the first time.

    Args:
        given: the tensors that the work reads, in the order in which :meth:`Replay.start` takes their
            addresses; None where there is none.

    Example:
        >>> with Recorder([x, weight]) as recorder:
        ...     y = work(x, weight)
        >>> again = recorder.replay([y])  # None if the work cannot be replayed
    """

    def __init__(self, given: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.refusal = ""
        self._given = [(i, t) for i, t in enumerate(given, 1) if t is not None and t.numel()]
        self._count = len(given)
        self._made: list[Tensor] = []  # kept until the end, so that no address is used twice
        self._launches: list[tuple[plan.Plan, tuple[Tensor | None, ...]]] = []
        spans = sorted([(t.data_ptr(), t.data_ptr() + Layout.of(t).nbytes) for _, t in self._given])
        if any([end > start for (_, end), (start, _) in zip(spans, spans[1:], strict=False)]):
            self.refusal = "given tensors overlap"

    def __enter__(self) -> Recorder:
        plan.recorders.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        plan.recorders.remove(self)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in _ALLOCATING:
            self._made.append(found)
        elif name not in _FREE:
            self.refusal = f"torch ran {name}"
        return found

    def allocated(self, tensors: Sequence[Tensor | None]) -> None:
        """Note tensors that a plan made, by a way that torch does not show."""
        self._made += [t for t in tensors if t is not None]

    def start(self, one: plan.Plan, tensors: tuple[Tensor | None, ...]) -> None:
        """Note a launch, and start it."""
        self._launches.append((one, tensors))
        plan.recorders.remove(self)
        try:
            with _disable_current_modes():  # the interpreter copies tensors
                one.start(*tensors)
        finally:
            plan.recorders.append(self)

    def replay(self, results: Sequence[Tensor | None]) -> Replay | None:
        """The work's launches, to be started again; None where :attr:`refusal` says why not.

        Args:
            results: what the work returned; each is a tensor of its own that the work made, or None.
        """
        if not self.refusal:
            self._check(results)
        if self.refusal:
            return None
        owners = {id(self._maker(t)): i for i, t in enumerate(results, 1 + self._count) if _there(t)}
        scratch = 1 + self._count + len(results)
        lives: dict[int, tuple[Tensor, int, int]] = {}  # of scratch: the tensor, its first and last launch
        for at, (_, tensors) in enumerate(self._launches):
            for tensor in tensors:
                made = self._maker(tensor) if _there(tensor) else None
                if made is not None and id(made) not in owners:
                    lives[id(made)] = (made, lives.get(id(made), (made, at, at))[1], at)
        offsets, size = _packed(
            [(rounded(Layout.of(t).nbytes), first, last) for t, first, last in lives.values()]
        )
        shared = dict(zip(lives, offsets, strict=True))
        steps = []
        for one, tensors in self._launches:
            found = [self._argument(t, owners, shared, scratch) for t in tensors]
            places = [(a.slot, a.offset) if isinstance(a, Argument) else (0, _address(a)) for a in found]
            steps.append(Step(one, tuple(places), tuple(found)))
        layouts = [None if t is None else Layout.of(t) for t in results]
        return Replay(steps, layouts, size)

    def _check(self, results: Sequence[Tensor | None]) -> None:
        """Refuse work without launches, or with a tensor of unknown origin."""
        if len({one.device for one, _ in self._launches}) != 1:
            self.refusal = "it launched nothing, or on several devices"
        for _, tensors in self._launches:
            for tensor in tensors:
                if _there(tensor) and self._maker(tensor) is None and self._giver(tensor) is None:
                    if not workspace.lasts(tensor):
                        self.refusal = f"nobody knows a tensor of shape {tuple(tensor.shape)}"
        seen = set()
        for tensor in results:
            if _there(tensor):
                made = self._maker(tensor)
                if made is None or made.data_ptr() != tensor.data_ptr() or made.nbytes != tensor.nbytes:
                    self.refusal = f"a result of shape {tuple(tensor.shape)} is not a tensor of its own"
                elif id(made) in seen:
                    self.refusal = "two results are one tensor"
                seen.add(id(made))

    def _maker(self, tensor: Tensor) -> Tensor | None:
        """The tensor that the work made in whose memory this one is."""
        storage = tensor.untyped_storage().data_ptr()
        return next((t for t in self._made if t.numel() and t.untyped_storage().data_ptr() == storage), None)

    def _giver(self, tensor: Tensor) -> tuple[int, Tensor] | None:
        """The given tensor in whose memory this one is, and its slot."""
        start = tensor.data_ptr()
        end = start + Layout.of(tensor).nbytes
        for slot, given in self._given:
            if given.data_ptr() <= start and end <= given.data_ptr() + Layout.of(given).nbytes:
                return slot, given
        return None

    def _argument(
        self, tensor: Tensor | None, owners: dict[int, int], shared: dict[int, int], scratch: int
    ) -> Argument | Tensor | None:
        """Where a launch finds a tensor; the tensor itself where it lasts, or holds nothing."""
        if not _there(tensor):
            return tensor
        layout, made = Layout.of(tensor), self._maker(tensor)
        if made is not None:
            offset = tensor.data_ptr() - made.data_ptr()
            if id(made) in owners:
                return Argument(owners[id(made)], offset, layout)
            return Argument(scratch, shared[id(made)] + offset, layout)
        giver = self._giver(tensor)
        if giver is None:
            return tensor
        return Argument(giver[0], tensor.data_ptr() - giver[1].data_ptr(), layout)


def _there(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.numel() > 0


def _address(tensor: Argument | Tensor | None) -> int:
    return tensor.data_ptr() if isinstance(tensor, Tensor) else 0


def _packed(lives: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Offsets of pieces of memory, and the size of the whole; pieces share room if their lives do not meet.

    Args:
        lives: of each piece its bytes and its first and last moment.
    """
    offsets: dict[int, int] = {}
    whole = 0
    for at in sorted(range(len(lives)), key=lambda i: -lives[i][0]):  # the largest first
        size, first, last = lives[at]
        offset = 0
        for start, other in sorted([(offsets[i], i) for i in offsets]):
            meets = lives[other][1] <= last and first <= lives[other][2]
            if meets and offset < start + lives[other][0] and start < offset + size:
                offset = start + lives[other][0]
        offsets[at] = offset
        whole = max(whole, offset + size)
    return [offsets[i] for i in range(len(lives))], whole
