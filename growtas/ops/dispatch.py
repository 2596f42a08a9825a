"""Which backend runs an operation: the one asked for, or the one that a measurement favours.

Five backends: ``torch`` (the reference composition, always there), ``cpu`` (C++), ``cublas`` (GEMMs, with
Triton between them), ``triton`` and ``cuda`` (CUDA C++). Every operation's folder holds the table of those it
has, ``BACKENDS``, and makes an :class:`Operation` of it; calling that with the activations gives the module
that runs them, whose functions (``linear_forward``, ...) bear the same names in every backend.

``GROWTAS_BACKEND`` or :func:`use` asks for one: every operation that has it then runs on it or raises;
operations without it stay with torch (docs/kernels.md has the table). ``auto``, the default, follows the
tuning record of the device (growtas.ops.records): the user's, which ``growtas tune`` wrote, or one that we
ship; without any, or where the favoured backend is missing, torch.

A choice depends on the supernet's width class and the dtype, never on the subnet. Callers may keep what they
looked up for as long as :func:`epoch` stays the same.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from growtas import native
from growtas.errors import GrowtasError, UsageError, nearest
from growtas.ops import records

BACKENDS = ("torch", "cpu", "cublas", "triton", "cuda")

Backend = TypeVar("Backend")


class Lazy(NamedTuple):
    """A backend that is imported when it is first chosen; its name as ``pkgutil.resolve_name`` takes it."""

    name: str


def place_of(backend: Any) -> str:
    """The name under which another process imports a backend."""
    return backend.name if isinstance(backend, Lazy) else backend.__name__


class Operation(Generic[Backend]):
    """An operation and the table of its backends; a call gives the backend that runs it.

    Args:
        name: as tuning records have it.
        backends: modules, or :class:`Lazy` names of modules, by backend.
        follows: an operation that is raced in its stead: this one then runs where that one does, and in torch
            where it lacks that backend.

    Example:
        >>> y = LINEAR(x, weight.shape[1]).linear_forward(x, weight, bias, out_features)
    """

    def __init__(self, name: str, backends: Mapping[str, Backend | Lazy], follows: str = "") -> None:
        self.name, self.backends, self.follows = name, dict(backends), follows
        (FOLLOWERS if follows else OPERATIONS)[name] = self

    def __call__(self, x: torch.Tensor, width: int, dtype: torch.dtype | None = None) -> Backend:
        """The backend for tensors like x.

        Args:
            x: activations, whose device and dtype decide, with
            width: channels of the *shared* weight (head_dim for attention): one choice for all subnets, so
                that nothing compiled depends on the subnet.
            dtype: of the GEMMs, where it is not x's.

        Raises:
            UsageError, GrowtasError: as :func:`choose`.
        """
        asked = self.name, x.device, dtype or x.dtype, int(width)  # a symbolic width has no hash
        found = _found.get(asked)
        if found is None:
            name = choose(self.follows or self.name, *asked[1:])
            lacks = self.follows and name not in self.backends
            found = _found[asked] = self.load("torch" if lacks else name)
        return found

    def load(self, backend: str) -> Backend:
        """The module of a backend, imported."""
        found = self.backends[backend]
        return pkgutil.resolve_name(found.name) if isinstance(found, Lazy) else found


OPERATIONS: dict[str, Operation] = {}
"""By the names that tuning records have; filled as the operations' folders are imported."""

FOLLOWERS: dict[str, Operation] = {}
"""Those that run where another does, which is raced in their stead."""

COMPANIONS = {"cublas": "triton"}
"""The backend of operations that the requested one lacks, where it is not torch: no GEMM, so no cuBLAS."""

OWN = {"cpu": {"cpu"}, "cuda": {"triton"}}
"""The backends that every installation has for a type of device."""

_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float16),
    "cublas": (torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}

_request: str | None = None  # None: not read from the environment yet
_assigned: tuple[Mapping[str, str], Choices] | None = None  # of the block that assigned() is in force for
_adopted: dict[torch.device, records.Found] = {}
_epoch = 0
_found: dict[tuple[str, torch.device, torch.dtype, int], Any] = {}  # backends by what was asked


Choices = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By operation, dtype and class of widths, as a tuning record holds them."""


class Availability(NamedTuple):
    """Availability of a backend here; where it cannot run, the reason and the remedy."""

    ok: bool
    reason: str = ""
    remedy: str = ""


def _check_name(name: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise UsageError(f"There is no backend {name!r}.{nearest(name, (*BACKENDS, 'auto'))}")
    return name


def requested() -> str:
    """The backend asked for by :func:`use` or, first, by ``GROWTAS_BACKEND``; ``auto`` if none was."""
    global _request
    if _request is None:
        _request = _check_name(os.environ.get("GROWTAS_BACKEND") or "auto")
    return _request


class _Use:
    """The result of :func:`use`: already in force; as a context manager it restores the former request."""

    def __init__(self, former: str) -> None:
        self._former = former

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        _set(self._former)


def _set(name: str) -> None:
    global _request
    _request = name
    changed()


def epoch() -> int:
    """A number that changes whenever the same question may get another answer than before."""
    return _epoch


def changed() -> None:
    """Forget every answer: another request holds, or a record was written."""
    global _epoch
    _epoch += 1
    _found.clear()
    _choose.cache_clear()
    _look_up.cache_clear()


@contextmanager
def assigned(names: Mapping[str, str], choices: Choices | None = None) -> Iterator[None]:
    """Within it, operations run where they are told to, unchecked: for those who measure or compile.

    Args:
        names: backends by operation, at every dtype and width.
        choices: of the operations that are not named there; torch where this says nothing.
    """
    global _assigned
    former, _assigned = _assigned, (names, choices or {})
    changed()
    try:
        yield
    finally:
        _assigned = former
        changed()


def record(device: torch.device) -> records.Found | None:
    """The tuning record that ``auto`` follows on a device, if there is any."""
    return _adopted.get(device) or _look_up(device)


def adopt(device: torch.device, found: records.Found) -> None:
    """Follow a record in this process, wherever it was measured: all ranks of a run choose alike."""
    _adopted[device] = found
    changed()


@functools.cache
def _look_up(device: torch.device) -> records.Found | None:
    return records.find(device)


def use(name: str) -> _Use:
    """Ask for a backend, until told otherwise or, as a context manager, for a block.

    Args:
        name: one of :data:`BACKENDS`, or ``auto``.

    Raises:
        UsageError: there is no such backend.
        GrowtasError: it cannot run here; the sentence says why and what to do.

    Example:
        >>> with growtas.ops.use("torch"):
        ...     logits = net(images, subnet)
    """
    _check_name(name)
    if name != "auto":
        state = available(name)
        if not state.ok:
            raise GrowtasError(f"Backend {name!r} cannot run here: {state.reason}. {state.remedy}")
    former = requested()
    _set(name)
    return _Use(former)


def available(name: str) -> Availability:
    """Return whether a backend can run on this machine.

    Args:
        name: one of :data:`BACKENDS`.

    Returns:
        ``ok`` or the reason why not and a remedy, each a sentence.
    """
    _check_name(name)
    if name in ("torch", "auto"):
        return Availability(True)
    if name in ("triton", "cublas"):  # between the GEMMs of cuBLAS Triton does the work
        return _triton_available()
    status = native.status(name)
    if status.ok and name == "cuda" and not torch.cuda.is_available():
        return Availability(
            False, "no CUDA device is visible", "Run on a machine with an NVIDIA GPU and its driver."
        )
    return Availability(status.ok, status.reason, status.remedy)


def _triton_available() -> Availability:
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken installation can raise anything; the reason is what matters
        return Availability(False, f"triton does not import ({error})", "Install it with: pip install triton")
    if torch.cuda.is_available() or interpreted():
        return Availability(True)
    return Availability(
        False,
        "no CUDA device is visible",
        "Run on a machine with an NVIDIA GPU, or set TRITON_INTERPRET=1 to check kernels slowly on the CPU.",
    )


def missing(device: torch.device) -> str:
    """Kernels that ``auto`` would take on a device and that cannot run here, in sentences; empty where none.

    Args:
        device: of the activations.
    """
    if requested() != "auto":
        return ""
    found = record(device)
    choices = (found.record["choices"] if found else {}).values()
    named = {
        records.name_of(one) for dtypes in choices for widths in dtypes.values() for one in widths.values()
    }
    states = {name: available(name) for name in sorted(named | OWN.get(device.type, set()))}
    return " ".join(
        f"Backend {name!r} cannot run here: {state.reason}. PyTorch's own operations take its place, and are "
        f"slower. {state.remedy}"
        for name, state in states.items()
        if not state.ok
    )


def interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter, and so on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def shape_class(width: int) -> str:
    """The class of widths that one measurement stands for: the next power of two, from 64 to 1024."""
    return str(next(bound for bound in (64, 128, 256, 512, 1024) if width <= bound or bound == 1024))


def choose(op: str, device: torch.device, dtype: torch.dtype, width: int) -> str:
    """The backend that runs an operation on tensors of this kind.

    Args:
        op: a key of :data:`OPERATIONS`.
        device: where the activations are.
        dtype: of the activations.
        width: channels of the shared weight (head_dim for attention).

    Returns:
        A name of :data:`BACKENDS`.

    Raises:
        UsageError: the backend asked for does not run on this device or dtype.
        GrowtasError: it is not available here.
    """
    return _choose(op, device, dtype, int(width))  # a symbolic width is a size of the supernet: it is fixed


@functools.lru_cache(maxsize=4096)
def _choose(op: str, device: torch.device, dtype: torch.dtype, width: int) -> str:
    dtype_name = str(dtype).removeprefix("torch.")
    if _assigned is not None:
        names, choices = _assigned
        return names.get(op) or records.name_of(_chosen(choices, op, dtype_name, width))
    name = requested()
    if name != "auto":
        if name not in OPERATIONS[op].backends:
            name = COMPANIONS.get(name, "torch")
        problem = _mismatch(name, device, dtype)
        if problem:
            raise UsageError(f"Backend {name!r} was asked for, but {problem}. Ask for 'torch' or 'auto'.")
        state = available(name)
        if not state.ok:
            raise GrowtasError(f"Backend {name!r} cannot run {op}: {state.reason}. {state.remedy}")
        return name
    found = record(device)
    name = records.name_of(_chosen(found.record["choices"] if found else {}, op, dtype_name, width))
    return name if name in OPERATIONS[op].backends and suits(name, device, dtype) else "torch"


def suits(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a backend is available here and takes tensors of this device and dtype."""
    return not _mismatch(name, device, dtype) and available(name).ok


def _chosen(choices: Choices, op: str, dtype: str, width: int) -> Any:
    return choices.get(op, {}).get(dtype, {}).get(shape_class(width), "torch")


def tile(op: str, device: torch.device, dtype: torch.dtype, width: int) -> dict[str, Any] | None:
    """The tile that a record names together with the chosen backend; None where the kernel picks its own.

    Args: as of :func:`choose`.
    """
    found = record(device)
    if requested() != "auto" or found is None:
        return None
    dtype_name = str(dtype).removeprefix("torch.")
    choice = _chosen(found.record["choices"], op, dtype_name, width)
    return None if isinstance(choice, str) else choice.get("tile")


def _mismatch(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why a backend cannot take tensors of this device and dtype; empty where it can."""
    if name == "torch":
        return ""
    wanted = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda", "cpu") if interpreted() else ("cuda",)}
    wanted["cublas"] = wanted["triton"]
    if device.type not in wanted[name]:
        return f"the tensors are on {device.type!r}"
    if dtype not in _DTYPES[name]:
        return f"the tensors are {str(dtype).removeprefix('torch.')}, which it has no kernel for"
    return ""
