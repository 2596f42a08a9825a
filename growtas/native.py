"""Loads the compiled modules growtas._cpu and growtas._cuda, and says why one is missing."""

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
INSTALL = "`pip install -e .` in the checkout (or `pip install --force-reinstall --no-deps growtas`)"
REBUILD = f"Build growtas again: {INSTALL}."


class Status(NamedTuple):
    """Usability of a native module; where it cannot be used, the reason and the remedy."""

    ok: bool
    reason: str
    remedy: str


def metadata(kind: str) -> dict[str, Any]:
    """Read the notes that the build wrote beside a native module.

    Args:
        kind: "cpu" or "cuda".

    Returns:
        version, build_id, compiler, flags, ...; empty where there is no such file.
    """
    path = Path(__file__).parent / f"_build_{kind}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _why_missing(kind: str) -> Status:
    """Why there is no binary for this interpreter beside the package."""
    folder = Path(__file__).parent
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
    """Return whether a native module loads.

    Args:
        kind: "cpu" or "cuda".

    Returns:
        ok, the reason if not, the remedy if not. "cuda" asks for no device here: see ops.available.
    """
    found = _try_load(kind)
    return found if isinstance(found, Status) else Status(True, "", "")


def cuda_place(x: torch.Tensor) -> tuple[int, int]:
    """Device number of a tensor, and the handle of the stream torch works on there."""
    device = x.device.index
    return device, torch.cuda.current_stream(device).cuda_stream


class launching:
    """Turns a failed launch of growtas._cuda into one sentence."""

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
