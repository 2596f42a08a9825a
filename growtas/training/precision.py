"""The precision of a run as an autocast region."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def precision(amp: str, device: torch.device) -> AbstractContextManager:
    """The autocast region that ``amp`` names. Args: amp: none or bfloat16; device: to compute on."""
    return torch.autocast(device.type, torch.bfloat16) if amp == "bfloat16" else nullcontext()
