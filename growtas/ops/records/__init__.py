"""Tuning records: which backend won on which device, as ``growtas tune`` measured it.

A record is one JSON file for one key: the device, its driver, the versions of torch, Triton and growtas, and
the digest of the kernels. The user's records lie in the cache folder; those beside this module are shipped,
in the same format. A user's record counts for exactly its key. A shipped one counts for its device whatever
the versions; a field that its key lacks fits any device.

    {"format": 1, "key": {...}, "about": "...", "date": "...", "choices": {op: {dtype: {class: choice}}},
     "finished": [...], "measurements": [...]}

A choice is the name of a backend, or ``{"backend": name, "tile": {...}}`` where a tile won as well.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from growtas import atomic, native
from growtas.version import __version__

FORMAT = 1
SHIPPED = Path(__file__).parent

Record = dict[str, Any]


class Found(NamedTuple):
    """A record in force: what it holds, its file, and ``user`` or ``shipped``."""

    record: Record
    path: Path
    source: str


def folder() -> Path:
    """Where the user's records lie."""
    return cache_folder() / "tuning"


def cache_folder() -> Path:
    """Where all that was measured on this machine lies: ``GROWTAS_CACHE``, or in the user's cache folder."""
    own = os.environ.get("GROWTAS_CACHE")
    return Path(own).expanduser() if own else _cache_home() / "growtas"


def _cache_home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home) if home else Path("~/.cache").expanduser()


# -- keys ------------------------------------------------------------------------------------------------


@functools.cache
def key(device: torch.device) -> dict[str, str | None]:
    """All that a measurement depends on.

    Args:
        device: a processor or a GPU.
    """
    versions = {"torch": torch.__version__.split("+")[0], "growtas": __version__}
    if device.type != "cuda":
        return {"type": device.type, **processor(), **versions, "kernels": _native_digest("cpu")}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver(),
        **versions,
        "triton": _version("triton"),
        "kernels": f"{_kernels_digest()}-{_native_digest('cuda')}",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def processor() -> dict[str, str | None]:
    """The processor: its name as the system gives it, its vendor, family and model where those are told."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""

    def field(name: str) -> str | None:
        found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
        return found.group(1).strip() if found else None

    vendor = field("vendor_id") or ("Apple" if platform.system() == "Darwin" else None)
    name = field("model name") or platform.processor() or platform.machine()
    return {"device": name, "vendor": vendor, "family": field("cpu family"), "model": field("model")}


def driver() -> str:
    """The version of the NVIDIA driver, or the CUDA version that it serves."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        text = ""
    found = re.search(r"\b(\d+\.\d+(\.\d+)?)\b", text)
    return found.group(1) if found else f"CUDA {torch._C._cuda_getDriverVersion()}"


@functools.cache
def _kernels_digest() -> str:
    """Of the source of the Triton kernels, found without importing them."""
    spec = importlib.util.find_spec("growtas.kernels")
    digest = hashlib.sha256()
    for place in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(place).rglob("*.py")):
            digest.update(path.relative_to(place).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _native_digest(kind: str) -> str:
    """Of the sources that a native module was built from."""
    return str(native.metadata(kind).get("sources"))[:12] if native.status(kind).ok else "none"


# -- files -----------------------------------------------------------------------------------------------


def path_of(of: dict[str, str | None]) -> Path:
    """The file of the user's record for a key: the device's name, and a digest of the whole key."""
    name = re.sub(r"[^a-z0-9]+", "-", str(of["device"]).lower()).strip("-")
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
    return folder() / f"{name}-{digest}.json"


def read(path: Path) -> Record | None:
    """A record; None where there is none, or none that can be read, which a warning says."""
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or record.get("format") != FORMAT or "choices" not in record:
            raise ValueError(f"it is not a tuning record of format {FORMAT}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"The tuning record {path} is not used: {error}.", stacklevel=2)
        return None
    return record


def write(path: Path, record: Record) -> None:
    """Write a record so that a reader finds the old one or the new one; one measurement a line."""
    atomic.make_folder(path.parent)
    top = {name: value for name, value in record.items() if name != "measurements"}
    lines = ",\n".join(f"  {json.dumps(one)}" for one in record.get("measurements", []))
    text = json.dumps(top, indent=1)[:-2] + f',\n "measurements": [\n{lines}\n ]\n}}\n'
    atomic.write_text(path, text)


def find(device: torch.device) -> Found | None:
    """The record in force on a device: the user's for exactly this key, else the best that we ship."""
    if device.type not in ("cpu", "cuda"):
        return None
    wanted = key(device)
    path = path_of(wanted)
    own = read(path)
    if own is not None and own.get("key") == wanted:
        return Found(own, path, "user")
    fitting = [(score, path, record) for path, record in shipped() if (score := fits(record["key"], wanted))]
    if not fitting:
        return None
    _, path, record = max(fitting, key=lambda one: one[0])
    return Found(record, path, "shipped")


def shipped() -> list[tuple[Path, Record]]:
    """The records that come with growtas."""
    found = ((path, read(path)) for path in sorted(SHIPPED.glob("*.json")))
    return [(path, record) for path, record in found if record is not None]


def fits(own: dict[str, str | None], wanted: dict[str, str | None]) -> int:
    """How well a shipped record's key fits a device: 0 where it does not, more for each thing in common."""
    needed = ("type", "capability") if wanted["type"] == "cuda" else ("type", "vendor")
    if any(own.get(name) not in (None, wanted[name]) for name in needed):
        return 0
    names = (*needed, "device", "family", "model")
    return sum(own.get(name) is not None and own.get(name) == wanted.get(name) for name in names)


def name_of(choice: Any) -> str:
    """The backend that a choice names."""
    return choice if isinstance(choice, str) else choice["backend"]
