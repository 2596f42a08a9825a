"""Counts what a training step keeps for its backward pass and how many operations it runs.

An operation is what would be a kernel on a GPU: a tensor operator that computes or copies, a call of one of
growtas' native kernels, a Triton launch. Views and allocations are none. Counting sees growtas as it runs in
plain eager mode, where an operation of growtas.ops is not one operator but what it consists of.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that allocate, or that hand on a tensor that is there, without being views by their schema.
NO_WORK = {
    "alias", "detach", "detach_", "empty", "empty_like", "empty_permuted", "empty_strided", "lift_fresh",
    "new_empty", "new_empty_strided", "resize_", "set_", "view", "_reshape_alias", "_unsafe_view",
    "_local_scalar_dense", "promote_types",
}  # fmt: skip
#: Operators that run two kernels: they fill a tensor and copy into it, or copy one and add to it.
TWO_KERNELS = {"slice_backward", "select_backward", "constant_pad_nd", "index_put"}
NATIVE = ("growtas._cpu", "growtas._cuda")
QUESTIONS = ("threads", "vector_level", "layer_norm_blocks")  # native functions that compute nothing


def saved_bytes(run: Callable[[], Any], nets: Iterable[nn.Module] = ()) -> int:
    """Bytes that a forward pass keeps for the backward pass: every storage once, parameters left out.

    Args:
        run: the forward pass, under autograd.
        nets: whose parameters do not count.
    """
    parameters = {p.untyped_storage().data_ptr() for net in nets for p in net.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(size for address, (size, _) in kept.items() if address not in parameters)
    del result
    return total


class _Counter(TorchDispatchMode):
    """Counts the operators that do work."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not function.is_view and name not in NO_WORK:
            self.found[name] += 2 if name in TWO_KERNELS else 1
        return function(*args, **(kwargs or {}))


def count_operations(run: Callable[[], Any]) -> Counter[str]:
    """The operations of a call, by name.

    Args:
        run: such as one training step, backward pass included.
    """
    mode = _Counter()

    def counted(name: str, call: Callable) -> Callable:
        def wrapped(*args, **options):
            mode.found[name] += 1
            return call(*args, **options)

        return wrapped

    with eager_operations(), native_wrapped(counted), mode:
        run()
    return mode.found


def count_launches(run: Callable[[], Any]) -> int:
    """Kernels, copies and fills that a call starts on a GPU, as the profiler sees them.

    Args:
        run: such as one training step.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in found.events())


@contextlib.contextmanager
def eager_operations() -> Iterator[None]:
    """Within it, operations of growtas.ops run directly although a dispatch mode is on."""
    from growtas.ops import registry

    with _set(registry, "eager", lambda: True):
        yield


@contextlib.contextmanager
def native_wrapped(wrap: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """Within it, every native kernel and every Triton launch goes through a wrapper.

    Args:
        wrap: takes the kernel's name and its function, gives the function to call in its place.
    """
    with contextlib.ExitStack() as stack:
        for module in (sys.modules[name] for name in NATIVE if name in sys.modules):
            for name, function in list(vars(module).items()):
                if callable(function) and not name.startswith("_") and name not in QUESTIONS:
                    stack.enter_context(_set(module, name, wrap(name, function)))
        launch, plan = (sys.modules.get(f"growtas.kernels.common.{name}") for name in ("launch", "plan"))
        if launch is not None:
            planned: list[Any] = []  # a plan's first start goes through launch.run, and is one launch

            def run(jitted: Any, *args: Any, **options: Any) -> Any:
                own = original if planned else wrap(jitted.fn.__name__, original)
                return own(jitted, *args, **options)

            original = launch.run
            stack.enter_context(replaced(original, run))
        if plan is not None:

            def start(self: Any, *tensors: Any) -> None:
                planned.append(self)
                try:
                    wrap(self.name.rpartition(".")[2], first)(self, *tensors)
                finally:
                    planned.pop()

            first = plan.Plan.start
            stack.enter_context(_set(plan.Plan, "start", start))
        yield


@contextlib.contextmanager
def replaced(function: Callable, other: Callable) -> Iterator[None]:
    """Within it, ``other`` stands wherever a growtas module has ``function``, also under another name."""
    with contextlib.ExitStack() as stack:
        modules = [m for name, m in list(sys.modules.items()) if m and name.split(".")[0] == "growtas"]
        for module in modules:
            for name, value in list(vars(module).items()):
                if value is function:
                    stack.enter_context(_set(module, name, other))
        yield


@contextlib.contextmanager
def _set(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
