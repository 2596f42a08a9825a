"""``growtas.latency``: the latency table of a space on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from growtas.bounds import BATCH, SOME_PROCESSES, Bound, bounded
from growtas.errors import UsageError
from growtas.space import MobileNetSpace, SearchSpace, load_space
from growtas.timing import targets
from growtas.timing.table import LatencyTable
from growtas.training.run import Run


@bounded(batch=BATCH, threads=SOME_PROCESSES, validate=Bound(0, 10_000))
def latency(
    space: Any,
    on: str = "cpu",
    batch: int = 1,
    threads: int | None = None,
    validate: int = 30,
) -> LatencyTable:
    """Measure the latency of a space's subnets on this machine, as the plain models that are extracted.

    The pieces of the models (patch embedding, blocks, head) are measured, and the latency of any subnet is
    predicted from these. Then random subnets are measured end to end, to see how good the predictions are.
    All times are kept in the user's cache folder: an interrupted measurement goes on where it stopped, and a
    finished one is read.

    Args:
        space: a training run or its folder, a search space, the name of a preset or a YAML file.
        on: cpu or cuda (plain PyTorch), cpu-compiled or cuda-compiled (torch.compile, block by block), or
            onnxruntime (ONNX Runtime on the CPU); in float32.
        batch: images of one call.
        threads: of the processor; as many as torch takes where None.
        validate: subnets that are measured end to end; 0 for none.

    Raises:
        UsageError: the target is unknown or missing here, a number makes no sense, or one of several
            processes (torchrun) finds no finished table.

    Example:
        >>> table = growtas.latency("runs/tiny", on="onnxruntime", threads=1)  # doctest: +SKIP
        >>> table.predict(subnet)  # doctest: +SKIP
        7.31
        >>> found = growtas.search("runs/tiny", max_latency_ms=8, latency=table)  # doctest: +SKIP
    """
    targets.check(on)
    threads = torch.get_num_threads() if threads is None else threads
    for name, value, least in (("batch", batch, 1), ("threads", threads, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name}={value!r} must be a whole number of {least} or more.")
    if validate != 0 and validate < 3:
        raise UsageError(f"validate={validate!r}: give 3 subnets or more, or 0 for none.")
    space, num_classes = _space_of(space)
    table = LatencyTable(space, num_classes, on, batch, threads)
    complete = table.finished and (table.validation or not validate)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several and not complete:
        raise UsageError(
            "Several processes would disturb each other's measurement: measure first, by growtas latency "
            f"with --on {on} --batch {batch} --threads {threads}."
        )
    if several and table.direct:
        raise UsageError(
            "Predictions are not good enough here, and several processes would disturb each other's "
            "measurement of its subnets: search in one process."
        )
    table.finish()
    if validate:
        table.validate(validate)
    return table


def _space_of(space: Any) -> tuple[Any, int]:
    """The space and the number of classes."""
    num_classes = 1000
    if isinstance(space, str | os.PathLike) and Path(space).is_dir():
        space = Run.open(space)
    if hasattr(space, "num_classes"):
        space, num_classes = space.space, space.num_classes
    if isinstance(space, str | os.PathLike):
        space = load_space(space)
    if not isinstance(space, SearchSpace | MobileNetSpace):
        raise UsageError(f"{space} has no subnets; give a supernet's run or a search space.")
    return space, num_classes
