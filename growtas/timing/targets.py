"""Runs a model where it will be deployed, and times it: PyTorch, compiled PyTorch or ONNX Runtime."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import io
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from growtas.errors import UsageError, nearest
from growtas.ops import records

TARGETS = ("cpu", "cuda", "cpu-compiled", "cuda-compiled", "onnxruntime")
WARM_UP = 3  # calls that are not timed
QUEUED = 10  # calls of a piece that a GPU is given at once, as it is within a network

Run = Callable[[], object]
Parts = Sequence[tuple[str, nn.Module]]  # that are called in turn, each with its name


def check(on: str) -> None:
    """Raises: UsageError: the target is unknown, or this machine has no such thing."""
    if on not in TARGETS:
        raise UsageError(f"on={on!r} is unknown.{nearest(str(on), TARGETS)}")
    if device_of(on) == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"on={on!r} needs a GPU that torch can use; growtas doctor says why there is none.")
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if on == "onnxruntime" and missing:
        raise UsageError(
            f"on='onnxruntime' needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'growtas[export]'"
        )


def machine(on: str) -> dict[str, str | None]:
    """Device and versions that a latency depends on."""
    known = records.key(torch.device(device_of(on)))
    key = {name: known[name] for name in ("device", "driver", "torch", "growtas") if name in known}
    return key | ({"onnxruntime": importlib.metadata.version(on)} if on == "onnxruntime" else {})


def device_of(on: str) -> str:
    """The device of a target: ``cpu`` or ``cuda``."""
    return "cuda" if on.startswith("cuda") else "cpu"


def is_compiled(on: str) -> bool:
    """True where the pieces of a model are compiled, each by its own name."""
    return on.endswith("-compiled")


def prepare(parts: Parts, x: Tensor, on: str, threads: int) -> Run:
    """A call on the target, warmed up: compilation and first calls are behind it.

    Args:
        parts: the model as a whole; where :func:`is_compiled`, its pieces; each name is compiled once.
        x: the input of the first part.
        on: the target.
        threads: of the processor.

    Raises:
        UsageError: the target compiles, and torch.compile cannot here.
    """
    if on == "onnxruntime":
        ((_, module),) = parts
        run = _session(module, x, threads)
    else:
        device = device_of(on)
        calls = [(_compiled(name) if is_compiled(on) else _call, module.to(device)) for name, module in parts]
        x = x.to(device)

        def run() -> object:
            following = x
            for call, module in calls:
                following = call(module, following)
            return following

    try:
        for _ in range(WARM_UP):
            run()
    except torch._dynamo.exc.BackendCompilerFailed as error:
        reason = str(error.inner_exception).strip().partition("\n")[0]
        raise UsageError(
            f"on={on!r}: torch.compile fails here ({reason}). It needs "
            f"{'Triton' if device_of(on) == 'cuda' else 'a C++ compiler'}; without it measure "
            f"on={device_of(on)!r}."
        ) from error
    return run


def _call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


@functools.cache
def _compiled(name: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """A call that is compiled for the modules of one name.

    Each has a code object of its own, by which torch.compile keeps its results: otherwise a call would look
    through those of every other piece, and there may be but a few of them.
    """
    own = types.FunctionType(_call.__code__.replace(co_name=f"piece {name}"), globals())
    return torch.compile(own, dynamic=False)


def milliseconds(name: str, run: Run, on: str, threads: int) -> float:
    """The time of one call: of a whole subnet, or of a piece.

    On one thread of the processor it is that thread's own time, from which other programs take nothing.

    Args:
        name: of the piece or the subnet.
        run: the call.
        on, threads: as of :func:`prepare`.
    """
    cuda = device_of(on) == "cuda"
    calls = QUEUED if cuda and " " in name else 1
    if cuda:
        torch.cuda.synchronize()
    clock = time.thread_time if threads == 1 and not cuda else time.perf_counter
    begin = clock()
    for _ in range(calls):
        run()
    if cuda:
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
