"""Where a training step's time goes on a CPU, by kind of work: torch's profiler, summed into a few groups.

Native kernels leave no trace in the profiler, so each is wrapped in a mark of its own name; so are the
reference functions of attention and LayerNorm, whose products and sums then count for them. What an operator
takes beyond those inside of it is its own. Under "Python and autograd" stands what remains of the wall clock:
the interpreter, the engine and the dispatcher.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from common import counting
from growtas.ops import dispatch

GROUPS = ("products", "attention", "LayerNorm", "GELU", "copies", "rest", "Python and autograd")
MARK = "growtas::"

_WORDS = {
    "attention": ("attention", "softmax"),
    "LayerNorm": ("layer_norm", "pooled_norm"),
    "GELU": ("gelu",),
    "products": ("product", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "linear", "qkv"),
    "copies": (
        "copy", "clone", "aten::cat", "aten::fill_", "aten::zero", "aten::zeros", "slice_backward",
        "select_backward", "contiguous", "aten::index", "constant_pad", "transpose_copy",
    ),
}  # fmt: skip
_MARKED = ("relative_attention_forward", "relative_attention_backward", "layer_norm_forward",
           "layer_norm_backward")  # fmt: skip


def group_of(name: str) -> str:
    """The group of an operator or a mark by its name.

    Args:
        name: such as ``aten::addmm`` or ``growtas::layer_norm_forward``.
    """
    for group, words in _WORDS.items():
        if any(word in name for word in words):
            return group
    return "rest"


@contextlib.contextmanager
def marks() -> Iterator[None]:
    """Within it, native kernels and the reference functions of two operations are marked in the profile."""

    def marked(name: str, call: Callable) -> Callable:
        def wrapped(*args: Any, **options: Any) -> Any:
            with record_function(f"{MARK}{name}"):
                return call(*args, **options)

        return wrapped

    functions: dict[int, Callable] = {}
    for module in [m for name, m in list(sys.modules.items()) if m and name.startswith("growtas.ops.")]:
        for name, value in vars(module).items():
            if name in _MARKED and callable(value):
                functions[id(value)] = value
    with contextlib.ExitStack() as stack:
        stack.enter_context(counting.native_wrapped(marked))
        for function in functions.values():
            stack.enter_context(counting.replaced(function, marked(function.__name__, function)))
        dispatch.changed()  # it remembers the functions that stood there before
        stack.callback(dispatch.changed)
        yield


def profile_step(step: Callable[[], Any], steps: int = 3) -> dict[str, Any]:
    """Profile a training step on the CPU.

    Args:
        step: one training step.
        steps: how many to take the mean of, after one that warms up.

    Returns:
        ``seconds`` of a step; ``groups``: seconds and calls by group.
    """
    step()
    with marks(), profile(activities=[ProfilerActivity.CPU]) as found:
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = (time.perf_counter() - begin) / steps
    groups = {name: {"seconds": 0.0, "calls": 0} for name in GROUPS}
    for event in found.events():
        if not (event.name.startswith(("aten::", "mkldnn", MARK))):
            continue  # autograd's own frames: what they do beyond operators is the remainder
        group = _outermost_mark(event) or group_of(event.name)
        groups[group]["seconds"] += event.self_cpu_time_total * 1e-6 / steps
        groups[group]["calls"] += 1
    for entry in groups.values():
        entry["calls"] = round(entry["calls"] / steps)
    counted = sum(entry["seconds"] for entry in groups.values())
    groups["Python and autograd"]["seconds"] = max(0.0, seconds - counted)
    return {"seconds": seconds, "groups": groups}


def _outermost_mark(event: Any) -> str | None:
    """The group of the outermost mark around an event that is not "rest", or None."""
    group = None
    while event is not None:
        if event.name.startswith(MARK) and group_of(event.name) != "rest":
            group = group_of(event.name)
        event = event.cpu_parent
    return group


def peak_flops(sizes: tuple[tuple[int, int, int], ...], seconds: float = 1.0) -> float:
    """The best rate of torch's own product among some sizes, in FLOP/s: what products could reach here.

    Args:
        sizes: (rows, inner, columns) of dense products.
        seconds: for all of them, about.
    """
    best = 0.0
    for rows, inner, columns in sizes:
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        out = torch.empty(rows, columns)
        torch.mm(a, b, out=out)
        end = time.perf_counter() + seconds / len(sizes)
        while True:
            begin = time.perf_counter()
            torch.mm(a, b, out=out)
            now = time.perf_counter()
            best = max(best, 2 * rows * inner * columns / (now - begin))
            if now > end:
                break
    return best
