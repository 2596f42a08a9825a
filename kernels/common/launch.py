"""Launch kernels: the jit decorator, argument checks, device facts, and a record of compiled variants.

A launcher prepares a launch once per combination of sizes, strides and dtypes, then looks it up: ``plan``.

A kernel is compiled once per *variant*: its pointer dtypes, its constexpr arguments and its launch options.
Sizes and strides are never specialised on (see :func:`kernel`); alignment is passed as a constexpr of three
classes (``tiles.alignment``). So the number of variants does not grow with the number of subnets, and
:func:`recording` can list them on a machine without a GPU.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from growtas.errors import UsageError
from growtas.kernels.common.workspace import counters, one  # noqa: F401 - launchers say launch.counters

#: Triton decides at decoration time whether a kernel is interpreted; the variable is read once, here.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: name -> kernel, of every kernel that has been imported.
KERNELS: dict[str, Any] = {}

#: name -> its constexpr arguments in order, with their defaults.
_constexprs: dict[str, dict[str, Any]] = {}

_recording = False

#: The caches of all planners (``plan.planned``).
remembered: list[dict] = []

#: While recording: launches that were noted already, by what decides about their variant.
_noted: set[tuple] = set()

#: One list per :func:`counted` block that is open.
open_counts: list[list[str]] = []


def kernel(function: Callable) -> Any:
    """``triton.jit`` for a kernel whose integer arguments are never specialised on.

    Triton would compile one variant for sizes equal to 1, one for multiples of 16 and one for the rest, per
    argument: widths such as 216, 756 and 840 switch class from one subnet to the next. Here every argument
    that is neither a pointer (``*_ptr``) nor a constexpr is left alone.

    Pointers come first, then sizes, then constexpr arguments: ``plan`` counts on it.
    """
    parameters = inspect.signature(function).parameters
    constants = {n: p.default for n, p in parameters.items() if "constexpr" in str(p.annotation)}
    pointers = [name for name in parameters if name.endswith("_ptr")]
    sizes = [name for name in parameters if name not in constants and name not in pointers]
    assert list(parameters) == [*pointers, *sizes, *constants], "pointers, sizes, constexprs: in this order"
    jitted = triton.jit(function, do_not_specialize=sizes)
    name = f"{function.__module__.removeprefix('growtas.kernels.')}.{function.__name__}"
    KERNELS[name] = jitted
    _constexprs[name] = constants
    return jitted


def constexprs(jitted: Any) -> dict[str, Any]:
    """The constexpr arguments of a kernel in order, with their defaults."""
    return _constexprs[name_of(jitted)]


def forget() -> None:
    """Have every launch planned anew, because something changed that plans do not look at."""
    for known in remembered:
        known.clear()


def is_recording() -> bool:
    """True inside :func:`recording`."""
    return _recording


def name_of(jitted: Any) -> str:
    """The name under which :func:`kernel` registered a kernel, such as ``linear.forward._forward``."""
    return next(name for name, registered in KERNELS.items() if registered is jitted)


@contextmanager
def counted() -> Iterator[list[str]]:
    """Count launches: on a GPU, in the interpreter, or on meta tensors inside :func:`recording`.

    Yields:
        A list that fills up with the names of the kernels launched inside, one per launch, in order.
    """
    launched: list[str] = []
    open_counts.append(launched)
    try:
        yield launched
    finally:
        open_counts[:] = [names for names in open_counts if names is not launched]


@triton.jit
def known_multiple(size, FACTOR: tl.constexpr):
    """``size``, which FACTOR divides, written so that the compiler sees it.

    A mask ``offsets < size`` allows wide accesses only if a known power of two divides ``size``, and a row
    stride likewise. ``tl.multiple_of`` would be the word for it, but it is lost on kernel arguments (Triton
    3.6 to 3.9).
    """
    return size // FACTOR * FACTOR


def check(**tensors: torch.Tensor | None) -> torch.device:
    """Refuse tensors that a kernel cannot read.

    Args:
        tensors: the arguments by name; None is skipped.

    Returns:
        The one device all of them are on.

    Raises:
        UsageError: a dtype the kernels do not have, a last stride other than 1, tensors on different devices,
            or a device the kernels cannot run on.
    """
    first_name, device = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_dtype(name, tensor.dtype)
        if tensor.ndim and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise UsageError(
                f"The last stride of {name} is {tensor.stride(-1)}, but the Triton kernels need 1. "
                f"Call .contiguous() on {name} first."
            )
        if device is None:
            first_name, device = name, tensor.device
        elif tensor.device != device:
            raise UsageError(
                f"{first_name} is on {device} but {name} is on {tensor.device}. Move them to one device."
            )
    assert device is not None
    _check_device(first_name, device)
    return device


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Refuse a dtype the kernels do not have."""
    if dtype not in DTYPES:
        raise UsageError(
            f"{name} is {str(dtype).removeprefix('torch.')}, but the Triton kernels take float32, "
            "bfloat16 and float16. Convert it, or use the 'torch' backend."
        )


def activation(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last stride is 1, else a contiguous copy; not for weights.

    A gradient may arrive expanded (``y.sum().backward()``) or transposed; it is put right once, at the edge.
    """
    if tensor.is_contiguous() or tensor.shape[-1] <= 1 or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()


def _check_device(name: str, device: torch.device) -> None:
    if (
        device.type == "cuda"
        or (device.type == "cpu" and INTERPRETED)
        or (device.type == "meta" and _recording)
    ):
        return
    raise UsageError(
        f"{name} is on {device}, but the Triton kernels run on CUDA devices. Move the tensors to a GPU, use "
        "the 'torch' backend, or set TRITON_INTERPRET=1 before Triton is imported to interpret them here."
    )


def check_matmul(*operands: torch.Tensor | torch.dtype) -> None:
    """Refuse bfloat16 matmuls in the interpreter, which multiplies the bits of bfloat16 as integers.

    Raises:
        UsageError: the kernels are interpreted and a tensor, or a dtype, is bfloat16.
    """
    if INTERPRETED and any(getattr(a, "dtype", a) is torch.bfloat16 for a in operands):
        raise UsageError(
            "Triton's interpreter has no bfloat16 matmuls. Use float32 or float16, or a CUDA device."
        )


def run(jitted: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **constants: Any) -> Any:
    """Launch a kernel on the device of its tensors, whichever device is current.

    Args:
        jitted: a kernel made by :func:`kernel`.
        grid: programs along each axis.
        device: as :func:`check` returned it.
        arguments: pointers and sizes in order.
        constants: constexpr arguments, ``num_warps`` and ``num_stages``.

    Returns:
        The compiled kernel; None where it is interpreted or recorded.
    """
    for launched in open_counts:
        launched.append(name_of(jitted))
    if _recording:
        kinds = tuple(a.dtype if isinstance(a, torch.Tensor) else type(a) for a in arguments)
        key = (id(jitted), kinds, *sorted(constants.items()))
        if key in _noted:
            return None
        _noted.add(key)
    elsewhere = device.type == "cuda" and device.index not in (None, torch.cuda.current_device())
    with torch.cuda.device(device) if elsewhere else nullcontext():
        # Set explicitly: Triton's default for contracting a*b + c varies by version.
        return jitted[grid](*arguments, enable_fp_fusion=True, **constants)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a device: 132 (H100, H200) while recording, 4 where the CPU interprets."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132 if device.type == "meta" else 4


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory one block may use: of an H100 while recording or where the CPU interprets."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return getattr(properties, "shared_memory_per_block_optin", 48 * 1024)  # what any GPU has
    return 227 * 1024


def dot_precision(dtype: torch.dtype) -> str:
    """``input_precision`` of a matmul whose activations have ``dtype``: fp32 follows torch's own setting."""
    if dtype is not torch.float32 or INTERPRETED:
        return "ieee"  # 16-bit operands are multiplied exactly either way; one name keeps one variant
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def compiled_variants() -> dict[str, int]:
    """Count the variants of each imported kernel that this process has compiled, on all devices together.

    Returns:
        kernel name -> count; all zero where the kernels are interpreted.
    """
    if INTERPRETED:
        return dict.fromkeys(KERNELS, 0)
    return {
        name: sum(len(caches[0]) for caches in jitted.device_caches.values())
        for name, jitted in KERNELS.items()
    }


@dataclass(frozen=True)
class Variant:
    """A kernel variant: the arguments of ``triton.compile``, and a key, equal for equal binaries."""

    kernel: str
    key: str
    signature: dict[str, str]
    constants: dict
    attrs: dict
    options: dict[str, Any]

    def dtypes(self) -> dict[str, str]:
        """The element types of the pointer arguments, by argument name."""
        return {name: kind[1:] for name, kind in self.signature.items() if kind.startswith("*")}

    def constexprs(self) -> dict[str, Any]:
        """The constexpr arguments by name."""
        names = list(self.signature)
        return {names[path[0]]: value for path, value in self.constants.items()}


class _RecordingDriver:
    """Stands in for the CUDA driver: enough of it to bind arguments for a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> str:
        return f"recording sm_{self._target.arch}"

    def get_current_stream(self, device: Any) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


@contextmanager
def recording(capability: int = 90) -> Iterator[dict[str, Variant]]:
    """Run launchers without a GPU and without compiling: note every variant that would have been compiled.

    Inside, launchers take tensors on the ``meta`` device and return tensors without values.

    Args:
        capability: compute capability times ten of the GPU to pretend, such as 80 or 90.

    Yields:
        A dictionary that fills up with the variants, by a key that is unique per variant.

    Raises:
        UsageError: the kernels are interpreted in this process.
    """
    global _recording
    if INTERPRETED:
        raise UsageError("Interpreted kernels have no variants. Run in a process without TRITON_INTERPRET.")
    found: dict[str, Variant] = {}

    def note(*, key: str, fn: Any, compile: dict, **_: Any) -> bool:
        name = name_of(fn.jit_function)
        found.setdefault(
            f"{name} {key}",
            Variant(
                name,
                f"{name} {key}",
                dict(compile["signature"]),
                dict(compile["constants"]),
                dict(compile["configs"][0]),
                {name: compile[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")},
            ),
        )
        return True  # tells Triton that there is nothing left to compile or launch

    try:
        previous_driver = driver.active
    except RuntimeError:  # no GPU: Triton looks for a driver again when one is asked for
        previous_driver = None
    previous_hook = triton.knobs.runtime.jit_cache_hook
    driver.set_active(_RecordingDriver(capability))
    triton.knobs.runtime.jit_cache_hook = note
    _recording = True
    forget()
    _noted.clear()
    try:
        yield found
    finally:
        _recording = False
        triton.knobs.runtime.jit_cache_hook = previous_hook
        driver.set_active(previous_driver)
