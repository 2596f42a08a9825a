"""The machine, the versions and the commit that a result belongs to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CACHE_WHERE_UNKNOWN = 32 * 2**20


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one; ``cpu`` and ``cuda`` are themselves.

    Raises:
        SystemExit: a GPU was asked for and none is visible.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            "No CUDA device is visible: run on a machine with an NVIDIA GPU, or with --device cpu."
        )
    # With an index: growtas' kernels and the current device then agree.
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_processors() -> int:
    """How many processors look idle by the load of the last minute; at least one.

    More threads than that wait for each other's turns, and time the scheduler instead of the work.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, round(processors() - load))


def cpu_name() -> str:
    """The processor's model name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def result_folder(device: torch.device) -> Path:
    """Where results of this device go: benchmarks/results/<name in lower case, with dashes>."""
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", device_name(device).lower())).strip("-")
    return RESULTS / slug


def cache_bytes(device: torch.device) -> int:
    """The last-level cache: L2 of a GPU, the largest cache of the processor."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", CACHE_WHERE_UNKNOWN)
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KMG])", path.read_text().strip())
        if found:
            sizes.append(int(found.group(1)) * {"K": 2**10, "M": 2**20, "G": 2**30}[found.group(2)])
    return max(sizes, default=CACHE_WHERE_UNKNOWN)


def commit() -> str:
    """The commit; ``-dirty`` where operations, kernels or benchmarks differ; ``unknown`` without git."""
    measured = [
        "growtas/ops",
        "kernels",
        "csrc",
        "benchmarks",
        ":!benchmarks/results",
        ":!growtas/ops/records/*.json",
    ]
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("-dirty" if _git("status", "--porcelain", "--", *measured) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def growtas_version() -> str:
    """growtas' version, read from its file: gpu.py's process cannot import what it has just installed."""
    return re.search(r'__version__ = "(.+?)"', (ROOT / "growtas" / "version.py").read_text()).group(1)


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, versions and commit that a reader of a result needs to repeat it."""
    machine: dict[str, Any] = {
        "device": device_name(device),
        "cpu": cpu_name(),
        "processors": processors(),
        "threads": torch.get_num_threads(),
        "cache_mib": round(cache_bytes(device) / 2**20, 1),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }
    else:
        machine["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    packages = {name: version(name) for name in ("torch", "triton", "numpy")}
    return {
        "machine": machine,
        "versions": {
            "growtas": growtas_version(),
            "python": platform.python_version(),
            **packages,
            "cuda": torch.version.cuda if device.type == "cuda" else None,
        },
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
