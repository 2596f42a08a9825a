"""Runs a module where it will be deployed, and times it: plain PyTorch on a CPU or GPU, or ONNX Runtime."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from growtas.errors import UsageError, nearest
from growtas.ops import records

TARGETS = ("cpu", "cuda", "onnxruntime")
WARM_UP = 3  # calls that are not timed
QUEUED = 10  # calls of a piece that a GPU is given at once, as it is within a network

Run = Callable[[], object]


def check(on: str) -> None:
    """Raises: UsageError: the target is unknown, or this machine has no such thing."""
    if on not in TARGETS:
        raise UsageError(f"on={on!r} is unknown.{nearest(str(on), TARGETS)}")
    if on == "cuda" and not torch.cuda.is_available():
        raise UsageError("on='cuda' needs a GPU that torch can use; growtas doctor says why there is none.")
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if on == "onnxruntime" and missing:
        raise UsageError(
            f"on='onnxruntime' needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'growtas[export]'"
        )


def machine(on: str) -> dict[str, str | None]:
    """Device and versions that a latency depends on."""
    known = records.key(torch.device("cuda" if on == "cuda" else "cpu"))
    key = {name: known[name] for name in ("device", "driver", "torch", "growtas") if name in known}
    return key | ({"onnxruntime": importlib.metadata.version(on)} if on == "onnxruntime" else {})


def prepare(module: nn.Module, x: Tensor, on: str, threads: int) -> Run:
    """A call of a module on the target, warmed up."""
    if on == "onnxruntime":
        run = _session(module, x, threads)
    else:
        module, x = module.to(on), x.to(on)

        def run() -> object:
            return module(x)

    for _ in range(WARM_UP):
        run()
    return run


def milliseconds(name: str, run: Run, on: str, threads: int) -> float:
    """The time of one call: of a whole subnet, or of a piece.

    On one thread of the processor it is that thread's own time, from which other programs take nothing.

    Args:
        name: of the piece or the subnet.
        run: the call.
        on, threads: as of :func:`prepare`.
    """
    calls = QUEUED if on == "cuda" and " " in name else 1
    if on == "cuda":
        torch.cuda.synchronize()
    clock = time.thread_time if threads == 1 and on != "cuda" else time.perf_counter
    begin = clock()
    for _ in range(calls):
        run()
    if on == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (clock() - begin) / calls


@contextmanager
def ready(threads: int) -> Iterator[None]:
    """Within it, torch computes with so many threads, and without gradients."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def _session(module: nn.Module, x: Tensor, threads: int) -> Run:
    import onnxruntime

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and takes a tenth of the other's time
        torch.onnx.export(module, (x,), buffer, dynamo=False, input_names=["x"], verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    inputs = {"x": x.numpy()}
    return lambda: session.run(None, inputs)
