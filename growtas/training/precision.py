"""The precision of a run: autocast, and TF32 where it is on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from growtas.ops import dispatch
from growtas.space import ModelSpace, Space

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_CAPABILITY = (8, 0)  # older GPUs have no bfloat16 GEMMs


def resolved(amp: str, device: torch.device) -> str:
    """Resolve ``auto`` for a device. Args: amp: of the settings. Returns: none, bfloat16 or float16."""
    if amp != "auto":
        return amp
    if device.type != "cuda":
        return "none"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY else "float16"


def precision(amp: str, device: torch.device) -> AbstractContextManager:
    """The autocast region that ``amp`` names. Args: amp: of the settings; device: to compute on."""
    amp = resolved(amp, device)
    return nullcontext() if amp == "none" else torch.autocast(device.type, DTYPES[amp])


def described(amp: str, device: torch.device) -> str:
    """The precision of a run in words, for its user."""
    if amp == "none":
        return f"{device}, float32"
    scaled = " with a gradient scaler" if amp == "float16" else ""
    return f"{device}, {amp} autocast{scaled}" + (", TF32 for the rest" if device.type == "cuda" else "")


def announced(space: Space, amp: str, device: torch.device) -> list[str]:
    """The lines that a run begins with: its device and precision, and kernels that cannot run there.

    Args:
        space: of the run; a model that is plain PyTorch has no kernels of ours.
        amp: of the settings.
        device: to train on.
    """
    kernels = missing_kernels(space, device)
    return [f"training on {described(amp, device)}", *([kernels] if kernels else [])]


def missing_kernels(space: Space | None, device: torch.device) -> str:
    """Kernels that cannot run on a device, and so make it slower, in sentences; empty where none.

    Args:
        space: of the network; a model that is plain PyTorch has no kernels of ours.
        device: to compute on.
    """
    return "" if isinstance(space, ModelSpace) else dispatch.missing(device)


@contextmanager
def tf32(amp: str, device: torch.device) -> Iterator[None]:
    """Inside, GEMMs that stay in float32 on a GPU take TF32, unless ``amp`` is ``none``."""
    before = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    try:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("highest" if amp == "none" else "high")
            torch.backends.cudnn.allow_tf32 = amp != "none"
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
