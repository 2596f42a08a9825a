"""Loads the native modules and calls their kernels with pointers, sizes and strides."""

from __future__ import annotations

import functools
import importlib
import json
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# Before the native modules: their OpenMP calls then resolve to torch's libgomp, and one pool serves both.
import torch

from growtas.errors import GrowtasError
from growtas.version import __version__

KINDS = ("cpu", "cuda")
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INSTALL = "`pip install -e .` in the checkout (or `pip install --force-reinstall --no-deps growtas`)"
REBUILD = f"Build growtas again: {INSTALL}."


class Status(NamedTuple):
    """Whether a native module can be used, and if not, why and what helps."""

    ok: bool
    reason: str
    remedy: str


def metadata(kind: str) -> dict[str, Any]:
    """What was written beside a native module when it was built.

    Args:
        kind: "cpu" or "cuda".

    Returns:
        version, build_id, compiler, flags, ...; empty where there is no such file.
    """
    path = Path(__file__).parent.parent / f"_build_{kind}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _why_missing(kind: str) -> Status:
    """Why there is no binary for this interpreter beside the package."""
    folder = Path(__file__).parent.parent
    others = sorted(p.name for p in folder.glob(f"_{kind}.*.so"))
    if others:
        wanted = sysconfig.get_config_var("EXT_SUFFIX")
        reason = f"growtas._{kind} was built for another Python ({others[0]}, not *{wanted})"
        return Status(False, reason, REBUILD)
    if kind == "cuda":
        told = metadata("cpu").get("cuda", "built")
        reason = "growtas._cuda was not built" + ("" if told == "built" else f" ({told.rstrip('.')})")
        remedy = f"Install the CUDA toolkit 12.0 or newer, then with GROWTAS_BUILD=cuda set: {INSTALL}."
        return Status(False, reason, remedy)
    return Status(False, f"growtas._{kind} was not built", REBUILD)


def _why_stale(kind: str, module: ModuleType) -> Status | None:
    """Why a module that loads must not be used, if so."""
    if module.version != __version__:
        reason = f"growtas._{kind} was built for growtas {module.version}, and this is {__version__}"
        return Status(False, reason, REBUILD)
    if metadata(kind).get("build_id") != module.build_id:
        reason = f"growtas._{kind} and growtas/_build_{kind}.json come from two different builds"
        return Status(False, reason, REBUILD)
    return None


@functools.cache
def _try_load(kind: str) -> ModuleType | Status:
    if kind not in KINDS:
        raise ValueError(f"there is no native module {kind!r}: it is one of {', '.join(KINDS)}")
    try:
        module = importlib.import_module(f"growtas._{kind}")
    except ModuleNotFoundError:
        return _why_missing(kind)
    except ImportError as error:
        return Status(False, f"growtas._{kind} does not load ({error})", REBUILD)
    return _why_stale(kind, module) or module


def load(kind: str) -> ModuleType:
    """The native module, loaded once.

    Args:
        kind: "cpu" or "cuda".

    Returns:
        growtas._cpu or growtas._cuda.

    Raises:
        GrowtasError: it was not built, does not load, or belongs to another version of growtas.
    """
    found = _try_load(kind)
    if isinstance(found, Status):
        raise GrowtasError(f"{found.reason}. {found.remedy}")
    return found


def status(kind: str) -> Status:
    """Whether a native module loads.

    Args:
        kind: "cpu" or "cuda".

    Returns:
        ok, the reason if not, the remedy if not. "cuda" asks for no device here: see ops.backend.available.
    """
    found = _try_load(kind)
    return found if isinstance(found, Status) else Status(True, "", "")


# ------------------------------------------------------------------------------------------ partial LayerNorm


def _check(x: torch.Tensor, name: str, device_type: str) -> torch.Tensor:
    """A matrix the kernels can read: right device, known dtype, dense rows (copied if not)."""
    if x.device.type != device_type:
        raise ValueError(f"{name} is on {x.device}, and this kernel runs on {device_type}")
    dtype_code(x, name)
    if x.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, and the kernel takes a matrix of rows")
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def dtype_code(x: torch.Tensor, name: str) -> int:
    if x.dtype not in DTYPE_CODES:
        raise ValueError(f"{name} is {x.dtype}, and the kernel knows float32, bfloat16 and float16")
    return DTYPE_CODES[x.dtype]


def _check_parameter(p: torch.Tensor, name: str, width: int, device: torch.device) -> None:
    dtype_code(p, name)
    if p.dim() != 1 or p.shape[0] < width:
        raise ValueError(
            f"{name} has shape {tuple(p.shape)}, and rows of width {width} need a vector at least as long"
        )
    if p.device != device:
        raise ValueError(f"{name} is on {p.device}, and x on {device}")


def _statistics(mean: torch.Tensor, rstd: torch.Tensor, rows: int, device: torch.device) -> None:
    for name, s in (("mean", mean), ("rstd", rstd)):
        if s.dtype != torch.float32 or s.shape != (rows,) or not s.is_contiguous() or s.device != device:
            raise ValueError(
                f"{name} must be the contiguous float32 vector of {rows} rows that the forward pass gave"
            )


def _matrix(x: torch.Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), DTYPE_CODES[x.dtype], x.stride(0)


def _vector(x: torch.Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), DTYPE_CODES[x.dtype], x.stride(0)


def _prepare_forward(x2d, weight, bias, out_dtype, device_type):
    x2d = _check(x2d, "x", device_type)
    rows, width = x2d.shape
    _check_parameter(weight, "weight", width, x2d.device)
    _check_parameter(bias, "bias", width, x2d.device)
    y = x2d.new_empty((rows, width), dtype=out_dtype)  # new_empty: half the time of torch.empty
    dtype_code(y, "out_dtype")
    mean = x2d.new_empty(rows, dtype=torch.float32)
    return x2d, y, mean, mean.new_empty(rows)


def _prepare_backward(dy, x2d, weight, bias, mean, rstd, device_type):
    dy, x2d = _check(dy, "dy", device_type), _check(x2d, "x", device_type)
    if dy.shape != x2d.shape or dy.device != x2d.device:
        raise ValueError(
            f"dy is {tuple(dy.shape)} on {dy.device}, and x {tuple(x2d.shape)} on {x2d.device}: they must "
            "agree"
        )
    rows, width = x2d.shape
    _check_parameter(weight, "weight", width, x2d.device)
    _check_parameter(bias, "bias", weight.shape[0], x2d.device)
    _statistics(mean, rstd, rows, x2d.device)
    full_width = weight.shape[0]  # the gradients are dense even where the parameters are strided
    return dy, x2d, x2d.new_empty((rows, width)), weight.new_empty(full_width), bias.new_empty(full_width)


def cpu_layer_norm_forward(
    x2d: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Partial LayerNorm in C++ (csrc/cpu/layer_norm.cpp).

    Args:
        x2d: rows (M, d), float32, bfloat16 or float16, any row stride.
        weight, bias: (D,), D >= d, of which the first d entries are read.
        eps: added to the variance.
        out_dtype: of y; default x2d's.

    Returns:
        y (M, d), mean (M,) and rstd (M,) in float32.

    Raises:
        ValueError: a wrong device, dtype or shape. GrowtasError: the module was not built.
    """
    module = load("cpu")
    x2d, y, mean, rstd = _prepare_forward(x2d, weight, bias, out_dtype, "cpu")
    module.layer_norm_forward(
        *_matrix(x2d),
        *_vector(weight),
        *_vector(bias),
        *_matrix(y),
        mean.data_ptr(),
        rstd.data_ptr(),
        *x2d.shape,
        eps,
    )
    return y, mean, rstd


def cpu_layer_norm_again(
    x2d: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """What :func:`cpu_layer_norm_forward` returned, from the mean and rstd that it returned beside it.

    Raises:
        ValueError: a wrong device, dtype or shape. GrowtasError: the module was not built.
    """
    module = load("cpu")
    x2d = _check(x2d, "x", "cpu")
    _check_parameter(weight, "weight", x2d.shape[1], x2d.device)
    _check_parameter(bias, "bias", x2d.shape[1], x2d.device)
    _statistics(mean, rstd, x2d.shape[0], x2d.device)
    y = x2d.new_empty(x2d.shape, dtype=out_dtype)
    dtype_code(y, "out_dtype")
    module.layer_norm_again(
        *_matrix(x2d), *_vector(weight), *_vector(bias), *_matrix(y), mean.data_ptr(), rstd.data_ptr(),
        *x2d.shape,
    )  # fmt: skip
    return y


def cpu_layer_norm_backward(
    dy: torch.Tensor,
    x2d: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    dresidual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of partial LayerNorm in C++; bitwise the same for any number of threads.

    Args:
        dy, x2d: (M, d), any row stride.
        weight, bias: (D,); of bias only shape and dtype matter.
        mean, rstd: (M,) of the forward pass.
        dresidual: (M, d) to add to dx: the gradient of a residual stream around the norm.

    Returns:
        dx (M, d) in x2d's dtype; dweight, dbias (D,) in the parameters' dtypes, zero from d on.

    Raises:
        ValueError: a wrong device, dtype or shape. GrowtasError: the module was not built.
    """
    module = load("cpu")
    dy, x2d, dx, dweight, dbias = _prepare_backward(dy, x2d, weight, bias, mean, rstd, "cpu")
    around = (0, 0)
    if dresidual is not None:
        dresidual = _check(dresidual.to(x2d.dtype), "dresidual", "cpu")
        if dresidual.shape != x2d.shape:
            raise ValueError(f"dresidual is {tuple(dresidual.shape)}, and x {tuple(x2d.shape)}")
        around = (dresidual.data_ptr(), dresidual.stride(0))
    module.layer_norm_backward(
        *_matrix(dy), *_matrix(x2d), *_vector(weight), mean.data_ptr(), rstd.data_ptr(), *around,
        dx.data_ptr(), dx.stride(0), *_vector(dweight)[:2], *_vector(dbias)[:2], *x2d.shape, weight.shape[0],
    )  # fmt: skip
    return dx, dweight, dbias


def _cuda_place(x: torch.Tensor) -> tuple[int, int]:
    """Device number and the handle of the stream torch works on there."""
    device = x.device.index
    return device, torch.cuda.current_stream(device).cuda_stream


def cuda_layer_norm_forward(
    x2d: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Partial LayerNorm in CUDA C++ (csrc/cuda/layer_norm.cu); as :func:`cpu_layer_norm_forward`, on a GPU.

    Raises:
        ValueError: a wrong device, dtype or shape. GrowtasError: not built, or the launch failed.
    """
    module = load("cuda")
    x2d, y, mean, rstd = _prepare_forward(x2d, weight, bias, out_dtype, "cuda")
    if x2d.shape[0]:
        with torch.cuda.device(x2d.device), _launching("layer_norm_forward"):
            module.layer_norm_forward(
                *_matrix(x2d), *_vector(weight), *_vector(bias), *_matrix(y), mean.data_ptr(),
                rstd.data_ptr(), *x2d.shape, eps, *_cuda_place(x2d),
            )  # fmt: skip
    return y, mean, rstd


def cuda_layer_norm_backward(
    dy: torch.Tensor,
    x2d: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    dresidual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of partial LayerNorm in CUDA C++, no atomics; as :func:`cpu_layer_norm_backward`, on a GPU.

    Raises:
        ValueError: a wrong device, dtype or shape. GrowtasError: not built, or the launch failed.
    """
    module = load("cuda")
    dy, x2d, dx, dweight, dbias = _prepare_backward(dy, x2d, weight, bias, mean, rstd, "cuda")
    rows, width = x2d.shape
    partial_sums = x2d.new_empty(module.layer_norm_blocks(rows) * 2 * width, dtype=torch.float32)
    with torch.cuda.device(x2d.device), _launching("layer_norm_backward"):
        module.layer_norm_backward(
            *_matrix(dy), *_matrix(x2d), *_vector(weight), mean.data_ptr(), rstd.data_ptr(), dx.data_ptr(),
            dx.stride(0), *_vector(dweight)[:2], *_vector(dbias)[:2], partial_sums.data_ptr(), rows, width,
            weight.shape[0], *_cuda_place(x2d),
        )  # fmt: skip
    return dx if dresidual is None else dx.add_(dresidual), dweight, dbias


class _launching:
    """Turns a failed launch into one sentence."""

    def __init__(self, kernel: str):
        self.kernel = kernel

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, RuntimeError):
            archs = ", ".join(metadata("cuda").get("archs", []))
            raise GrowtasError(
                f"growtas._cuda (built for sm {archs}) could not run {self.kernel}: {error}. If this GPU "
                f"is of another architecture, set GROWTAS_CUDA_ARCHS to it and build again: {INSTALL}."
            ) from error
