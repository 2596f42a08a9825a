"""Memory and disk space that is free for this process, so that images are kept where they fit."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or this process's share of the free memory of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _host_bytes() // _local_ranks()


def free_disk(folder: str | os.PathLike) -> int:
    """This process's share of the free space of a folder's disk."""
    return shutil.disk_usage(folder).free // _local_ranks()


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's ranks on this machine


def _host_bytes() -> int:
    """Available memory of the machine, or the rest of the limit that a container or a job scheduler set."""
    limits = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    if not limits:
        with suppress(ValueError, OSError, AttributeError):
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _cgroups():
        with suppress(OSError, ValueError, StopIteration):  # memory.max says "max" where there is no limit
            most, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
            stat = (folder / "memory.stat").read_text().splitlines()
            cached = int(next(line for line in stat if line.startswith("inactive_file ")).split()[1])
            limits.append(max(0, most - used + cached))  # the cache of files is given up on demand
    return min(limits, default=0)


def _cgroups() -> list[Path]:
    """The folders of this process's control group (version 2) and of those above it."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = Path(next(line for line in lines if line.startswith("0::")).removeprefix("0::/"))
        return [CGROUPS / part for part in (own, *own.parents)]
    return []
