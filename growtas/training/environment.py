"""The surroundings of a run that its last bits depend on, besides its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from growtas.ops import dispatch

_NAMES = {"ranks": "the number of ranks", "threads": "the number of threads", "tuning": "the tuning record"}


def environment(device: torch.device) -> dict[str, Any]:
    """The device, threads and backend of a run as plain values, for its checkpoint."""
    found = dispatch.record(device)
    choices = json.dumps(found.record["choices"], sort_keys=True) if found else ""
    on_cpu = device.type == "cpu"
    return {
        "device": f"cpu with {torch.backends.cpu.get_cpu_capability()}"
        if on_cpu
        else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads() if on_cpu else None,
        "backend": dispatch.requested(),
        "tuning": hashlib.sha256(choices.encode()).hexdigest()[:12] if choices else "none",
    }


def changes(state: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A sentence on what differs from when a checkpoint was written; empty where nothing does.

    Args:
        state: the checkpoint; one of an older version lacks some of it.
        now: its entries ``ranks``, ``environment`` and ``versions`` as they would be written now.
    """
    before = {"ranks": state.get("ranks", now["ranks"]), **state.get("environment", {}), **state["versions"]}
    after = {"ranks": now["ranks"], **now["environment"], **now["versions"]}
    differing = [
        f"{_NAMES.get(name, name)} changed from {before[name]} to {value}"
        for name, value in after.items()
        if name in before and before[name] != value
    ]
    if not differing:
        return ""
    told = ", ".join(differing)
    return (
        f"{told[0].upper()}{told[1:]}: the result will be as good as that of an undisturbed run, but may not "
        "be the same bit for bit."
    )
