"""Memory that launches share: counters, partial sums, and a one; safe while a graph is captured.

Counters lie at zero between launches, because the last program sets them back (``split_k``). So one buffer
per stream serves every launch, and clearing it costs none. The same goes for the partial sums, which nobody
reads after the launch that wrote them.

A captured graph is replayed on whatever stream, beside whatever else. Therefore a captured launch never gets
the buffers of a stream: its counters are its own, cut from memory that was zeroed before any capture, and its
partial sums come from the graph's own memory. Zeroing while a graph is captured would be recorded and not
done; where no memory was zeroed before, it is recorded for that launch alone, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Counters are handed out in multiples of 128 bytes, and the first buffer of a stream has this many.
_GRAIN, _FIRST = 32, 4096

#: Counters set aside on each device for captured launches: 1 MiB.
RESERVED = 1 << 18

_empty_cuda: Callable | None = getattr(torch._C._dynamo.guards, "_empty_strided_cuda", None)


class Workspace:
    """Partial sums (size,) fp32 and counters (count,) int32 of one stream, or of one captured launch."""

    __slots__ = ("addresses", "count", "counters", "partials", "size")

    def __init__(self, partials: Tensor, counters: Tensor) -> None:
        self.partials, self.counters = partials, counters
        self.size, self.count = partials.numel(), counters.numel()
        self.addresses = partials.data_ptr(), counters.data_ptr()


class _Device:
    """Once per device: zeros of which captured launches cut their counters, and a one."""

    __slots__ = ("one", "used", "zeros")

    def __init__(self, device: torch.device) -> None:
        self.zeros = _zeros(RESERVED, device)
        self.one = lasting(torch.ones(1, dtype=torch.float32, device=device))
        self.used = 0
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # once: other streams read both


_devices: dict[torch.device, _Device] = {}
_lasting: dict[int, Tensor] = {}  # by the address of their memory
_by_stream: dict[torch.device, dict[int, Workspace]] = {}


def capturing(device: torch.device) -> bool:
    """True if launches on a device are being captured into a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _zeros(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)


def _of_device(device: torch.device) -> _Device | None:
    """None while a graph is captured and nothing was made before."""
    found = _devices.get(device)
    if found is None and not capturing(device):
        found = _devices[device] = _Device(device)
    return found


def by_stream(device: torch.device) -> dict[int, Workspace]:
    """The workspaces of a device by stream, to look up before calling :func:`acquire`."""
    return _by_stream.setdefault(device, {})


def acquire(device: torch.device, partials: int, counters: int) -> Workspace:
    """A workspace for one launch on the current stream of a device, at least so large.

    Args:
        device: as ``launch.check`` returned it.
        partials: fp32 elements for partial sums; their contents are undefined.
        counters: zeros for programs to count each other with; every kernel leaves them as zeros.
    """
    shared = _of_device(device)  # made now, so that it is there before a capture
    if capturing(device):
        return Workspace(
            torch.empty(partials, dtype=torch.float32, device=device), _cut(shared, counters, device)
        )
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    found = by_stream(device).get(stream)
    if found is None:
        found = Workspace(torch.empty(partials, dtype=torch.float32, device=device), _zeros(_FIRST, device))
    if found.size < partials:
        found = Workspace(torch.empty(partials, dtype=torch.float32, device=device), found.counters)
    if found.count < counters:
        found = Workspace(found.partials, _zeros(2 * counters, device))
    by_stream(device)[stream] = found
    return found


def _cut(shared: _Device | None, count: int, device: torch.device) -> Tensor:
    """Counters of one captured launch, which no other launch ever gets."""
    count = -(-count // _GRAIN) * _GRAIN
    if shared is None or shared.used + count > shared.zeros.numel():
        return _zeros(count, device)  # recorded, and so replayed before the launch
    cut = shared.zeros[shared.used : shared.used + count]
    shared.used += count
    return cut


def counters(device: torch.device, count: int) -> Tensor:
    """(at least count,) int32 zeros by which programs of a launch count each other; see :func:`acquire`."""
    return acquire(device, 0, count).counters


def one(device: torch.device) -> Tensor:
    """(1,) fp32, a one: read with a stride of zero, the factor of every image where there is none."""
    found = _devices.get(device) or _of_device(device)
    return torch.ones(1, dtype=torch.float32, device=device) if found is None else found.one


def lasting(tensor: Tensor) -> Tensor:
    """Keep a tensor for as long as the process lives, and tell that nobody writes it any more; returns it."""
    _lasting[tensor.untyped_storage().data_ptr()] = tensor
    return tensor


def lasts(tensor: Tensor) -> bool:
    """True if a tensor, or that whose memory it is in, was kept by :func:`lasting`."""
    return tensor.untyped_storage().data_ptr() in _lasting


def allocator(device: torch.device) -> Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]:
    """The quickest way to new memory on a device, by shape, strides and dtype.

    ``torch.empty`` reads its arguments for two microseconds; the allocator of compiled graphs takes half of
    that. It never fills new memory, so it is not used where torch was told to.
    """
    fills = (
        torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
    )
    if device.type == "cuda" and _empty_cuda is not None and not fills:
        return _empty_cuda

    def empty(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)

    return empty
