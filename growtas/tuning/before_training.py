"""A run on a GPU that has no tuning record tunes first: for lack of one it would run on torch."""

from __future__ import annotations

import warnings

import torch

from growtas.errors import GrowtasError
from growtas.ops import dispatch, records
from growtas.space import Space
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.tuning.driver import plan, rivals, tune

SECONDS = 90.0


def tune_before_training(
    space: Space, device: torch.device, amp: str, batch: int, mode: str
) -> records.Found | None:
    """Tune where a GPU has no record of what a run needs.

    Args:
        space: of the run.
        device: of the run.
        amp: ``bfloat16``, ``float16`` or ``none``.
        batch: images per device.
        mode: ``auto`` or ``off``.

    Returns:
        The record in force, for other ranks to follow; None where there is none or nothing was asked.
    """
    if mode == "off" or device.type != "cuda" or isinstance(space, MobileNetSpace):
        return None
    if dispatch.requested() != "auto" or dispatch.interpreted():
        return None
    dtype = "float32" if amp == "none" else amp
    missing = _missing(space, device, dtype, batch)
    if missing:
        key = records.key(device)
        print(
            f"{key['device']} has no tuning record for {missing} classes of {space.name} in {dtype}: racing "
            f"backends first, about {SECONDS:.0f} s and the time to compile, once (--tune off skips it); "
            f"the record: {records.path_of(key)}",
            flush=True,
        )
        try:
            tune(space, str(device), (dtype,), SECONDS, batch)
        except (GrowtasError, OSError, RuntimeError) as error:
            warnings.warn(f"Tuning failed ({error}); what has no record runs on torch.", stacklevel=2)
    return dispatch.record(device)


def _missing(space: Space, device: torch.device, dtype: str, batch: int) -> int:
    """How many classes with a rival to torch the record in force does not know."""
    _, place, wanted = plan(space, str(device), (dtype,), batch)
    found = dispatch.record(place)
    exact = found is not None and (found.source == "user" or found.record["key"] == records.key(place))
    finished = found.record["finished"] if exact else []
    known = {(one["op"], one["dtype"], one["class"]) for one in finished}
    todo = [case for case in wanted if (case.op, case.dtype, case.width_class) not in known]
    return sum(bool(rivals(case, place)) for case in todo)
