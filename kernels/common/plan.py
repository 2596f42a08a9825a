"""Launch plans: computed once per combination of sizes, strides, dtypes and device, and then looked up.

A training step of AutoFormer-T launches two hundred kernels, and the host that prepares a launch for longer
than the GPU runs it bounds the step. The preparation is the same in every step: checks, the tile, the classes
of alignment, the grid, the constexpr arguments, and the compiled kernel that goes with them.

So a launcher has two parts. A *planner*, decorated with :func:`planned`, does all of this and returns a
:class:`Plan`; it runs once per combination of its arguments' properties. The launcher itself looks the plan
up, has it allocate the outputs, and starts it:

    plan = _plan_forward(x, weight, bias, out_features, launch.dot_precision(x.dtype))
    (y,) = plan.outputs()
    plan.start(x, weight, bias, y)

The first start of a plan goes through ``JITFunction.run``, which compiles and answers with the compiled
kernel; all others give that one to the driver. Triton compiles a pointer that 16 bytes divide differently
from another, so a plan keeps one compiled kernel per pattern of such pointers. Hooks of profilers, a device
that is not the current one, the interpreter and ``launch.recording`` go the long way every time.

Triton's knobs that change what is compiled (``debug``, instrumentation) are read when a plan starts for the
first time; to change them later, call :func:`launch.forget`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from growtas.kernels.common import launch, workspace

#: Plans that one planner remembers; it starts over when there are more. A step of one subnet needs a few.
LIMIT = 4096

_current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", lambda: -1)
_capturing: Callable[[], bool] = getattr(torch._C, "_cuda_isCurrentStreamCapturing", lambda: False)
_current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0)
_runtime = knobs.runtime

#: Those who watch launches to have them again (``replay``); the last one sees them.
recorders: list[Any] = []

#: Shape, dtype and strides, contiguous where left out, of a tensor that a launch writes; None where none is.
Output = tuple[tuple[int, ...], torch.dtype] | tuple[tuple[int, ...], torch.dtype, tuple[int, ...]] | None


def ceil(a: int, b: int) -> int:
    """a / b rounded up; ``triton.cdiv`` takes microseconds on the host."""
    return -(-a // b)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def observed() -> bool:
    """True if a profiler wants to see launches."""
    for hook in (_runtime.launch_enter_hook, _runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):
            return True
    return False


def pattern_of(addresses: Sequence[int]) -> tuple[bool, ...] | None:
    """Which pointers 16 bytes divide, by which a plan keeps compiled kernels; None where all are."""
    bits = 0
    for address in addresses:
        bits |= address
    return None if not bits & 15 else tuple([address & 15 == 0 for address in addresses])


def current(device: torch.device) -> bool:
    """True if a device is the current one."""
    return device.index is None or device.index == _current_device()


def stream_of(index: int) -> int:
    """The current stream of a device, as the driver takes it; 0 where the CPU interprets."""
    return _current_stream(index) if index >= 0 else 0


class Plan:
    """One launch but for its pointers.

    Args:
        jitted: a kernel made by ``launch.kernel``. Its pointers come first, then ``sizes``, then the
            constexpr arguments.
        grid: programs along each axis; none on the first where there is nothing to do.
        device: as ``launch.check`` returned it.
        sizes: integers and floats in order.
        constants: constexpr arguments, ``num_warps`` and ``num_stages``.
        outputs: the tensors that :meth:`outputs` allocates.
        counters: zeros that the launch needs; where it needs some, its last two pointers are its partial sums
            and its counters, which :meth:`start` adds.
        partials: fp32 elements that it needs for partial sums.

    Attributes:
        kernels: the compiled kernel by the pattern of its pointers (:func:`pattern_of`): what runs it, and
            its handle and options as that takes them.
        grid3: programs along all three axes.
        arguments: what a launch takes after its pointers.
    """

    __slots__ = (
        "arguments", "constants", "counters", "device", "grid", "grid3", "index", "jitted", "kernels", "name",
        "partials", "sizes", "_empty", "_outputs", "_workspaces",
    )  # fmt: skip

    def __init__(
        self,
        jitted: Any,
        grid: tuple[int, ...],
        device: torch.device,
        sizes: Sequence[int | float],
        constants: dict[str, Any],
        outputs: Sequence[Output] = (),
        counters: int = 0,
        partials: int = 0,
    ) -> None:
        self.jitted = jitted
        self.name = launch.name_of(jitted)
        self.grid = grid
        self.device = device
        self.index = -1 if device.index is None else device.index
        self.sizes = tuple(sizes)
        self.constants = constants
        self.counters = counters
        self.partials = partials
        self._outputs = [
            None if o is None else (tuple(o[0]), tuple(o[2]) if o[2:] else _contiguous(o[0]), o[1])
            for o in outputs
        ]
        self._empty = workspace.allocator(device)
        self.kernels: dict[Any, tuple] = {}
        self.grid3 = (*grid, 1, 1)[:3]
        self._workspaces = workspace.by_stream(device)
        self.arguments = self.sizes + tuple(
            constants.get(name, default) for name, default in launch.constexprs(jitted).items()
        )

    def outputs(self) -> list[Tensor | None]:
        """New tensors for the launch to write; zeros where there is nothing to launch."""
        empty = self._empty
        if recorders:
            found = [None if o is None else empty(*o) for o in self._outputs]
            recorders[-1].allocated(found)
        elif self.index >= 0 and self.index != _current_device():
            with torch.cuda.device(self.index):
                found = [None if o is None else empty(*o) for o in self._outputs]
        else:
            found = [None if o is None else empty(*o) for o in self._outputs]
        if self.grid[0] == 0:
            for tensor in found:
                if tensor is not None:
                    tensor.zero_()
        return found

    def start(self, *tensors: Tensor | None) -> None:
        """Launch on the current stream of the plan's device.

        Args:
            tensors: the planner's tensors and those of :meth:`outputs`, in the kernel's order; None where the
                planner saw None. Partial sums and counters are added.
        """
        if recorders:
            recorders[-1].start(self, tensors)
            return
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        pattern = pattern_of(addresses)
        found = self.kernels.get(pattern)
        if found is None or observed() or self.jitted.pre_run_hooks:
            self._start_anyhow(tensors, pattern)
            return
        index = self.index
        if index != _current_device():
            with torch.cuda.device(index):
                self.start(*tensors)
            return
        for launched in launch.open_counts:
            launched.append(self.name)
        stream = _current_stream(index)
        if self.counters:
            space = self._workspaces.get(stream)
            if space is None or space.count < self.counters or space.size < self.partials or _capturing():
                space = workspace.acquire(self.device, self.partials, self.counters)
            addresses += space.addresses
        run, function, packed = found
        run(*self.grid3, stream, function, packed, None, None, None, *addresses, *self.arguments)

    def _start_anyhow(self, tensors: tuple[Tensor | None, ...], pattern: Any) -> None:
        """Launch through Triton's ``JITFunction``, and remember the kernel that it compiled."""
        if self.grid[0] == 0:
            return
        if self.counters:
            space = workspace.acquire(self.device, self.partials, self.counters)
            tensors += (space.partials, space.counters)
        compiled = launch.run(self.jitted, self.grid, self.device, *tensors, *self.sizes, **self.constants)
        if compiled is not None:  # neither interpreted nor recorded
            compiled = compiled.result() if hasattr(compiled, "result") else compiled
            self.kernels[pattern] = compiled.run, compiled.function, compiled.packed_metadata


def planned(planner: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: cache the answers of a planner, by everything that it may look at.

    Of a tensor these are shape, strides, dtype and device: never values or addresses. Of everything else it
    is the argument itself. Which parameters are tensors is read from the annotations ``Tensor`` and
    ``Tensor | None``. The key is made by one expression that is written here once, from the parameters:
    a loop over them would take as long as all the rest of a launch.

    Whatever else an answer depends on must call :func:`launch.forget` when it changes, as
    ``tiles.constrained`` does. Nothing is remembered inside ``launch.recording``.
    """
    known: dict[tuple, Any] = {}
    launch.remembered.append(known)
    names, key = [], []
    for name, parameter in inspect.signature(planner).parameters.items():
        names.append(name)
        annotation = str(parameter.annotation).replace("torch.", "")
        seen = f"{name}.shape, {name}.stride(), {name}.dtype, {name}.get_device()"
        if annotation == "Tensor":
            key.append(seen)
        elif annotation == "Tensor | None":
            key.append(f"None if {name} is None else ({seen})")
        else:
            key.append(name)

    def make(*arguments: Any) -> Any:
        answer = planner(*arguments)
        if not launch.is_recording():
            if len(known) >= LIMIT:
                known.clear()
            known[key_of(*arguments)] = answer
        return answer

    parameters = ", ".join(names)
    space = {"find": known.get, "make": make}
    key_of = eval(f"lambda {parameters}: ({', '.join(key)},)")
    look_up = eval(f"lambda {parameters}: find(({', '.join(key)},)) or make({parameters})", space)
    look_up.__doc__, look_up.__name__, look_up.__wrapped__ = planner.__doc__, planner.__name__, planner
    return look_up
