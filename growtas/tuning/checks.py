"""The checks that a kernel passes before it may win: results near fp64's, and the same bits every time.

The rule of every kernel test: its error against fp64 is at most twice that of torch's reference in the same
dtype, plus a quarter of that dtype's step. Gradients of parameters are fp32 sums over all M rows: they may
differ by an eighth of fp32's step times sqrt(M) more. Errors are relative, root mean square, tensor by
tensor: the result and all gradients. Outputs are NaN before a kernel writes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from growtas.ops import dispatch
from growtas.tuning.calls import Call

TORCH = dict.fromkeys(dispatch.OPERATIONS, "torch")


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it, memory that torch hands out uninitialised is NaN, so that what nobody writes shows."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that have no deterministic form
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.utils.deterministic.fill_uninitialized_memory = filled


def truth(call: Call) -> list[Tensor]:
    """The result and the gradients in fp64, by torch's reference."""
    with dispatch.assigned(TORCH):
        return call.double().step()


def errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Relative root-mean-square errors, infinite for NaN and wrong shapes."""
    if len(found) != len(expected):
        return [float("inf")] * len(expected)
    return [_error(own, right) for own, right in zip(found, expected, strict=True)]


def _error(own: Tensor, right: Tensor) -> float:
    if own.shape != right.shape:
        return float("inf")
    size = (own.double() - right).norm() / right.norm().clamp_min(1e-30)
    found = size.item()
    return found if found == found else float("inf")


def compare(call: Call, candidate: Callable[[], contextmanager]) -> str:
    """Compare a candidate with fp64.

    Args:
        call: the job on tensors.
        candidate: makes the block within which it is in force.

    Returns:
        Why it fails; empty where it passes.
    """
    expected = truth(call)
    with dispatch.assigned(TORCH):
        yardstick = errors(call.step(), expected)
    with candidate(), poisoned():
        found = errors(call.step(), expected)
    floor = torch.finfo(call.dtype).eps / 4
    summed = torch.finfo(torch.float32).eps / 8 * (call.job.batch * call.job.tokens) ** 0.5
    for name, own, torchs in zip(("result", *call.leaves), found, yardstick, strict=True):
        limit = 2 * torchs + floor + (0.0 if name in ("result", "x") else summed)
        if not own <= limit:
            what = "the result" if name == "result" else f"the gradient of {name}"
            return f"{call.job.name}: the error of {what} against fp64 is {own:.2g}, over {limit:.2g}"
    return ""


def same_bits(call: Call, candidate: Callable[[], contextmanager], repeats: int) -> str:
    """Repeat a candidate on the same tensors; every other time its outputs are NaN before.

    Returns:
        Why it fails; empty where all bits are equal.
    """
    with candidate():
        first = [_bits(x).clone() for x in call.step()]  # outputs may lie in memory used again
        changed = torch.zeros((), dtype=torch.bool, device=first[0].device)
        for turn in range(repeats - 1):
            if turn % 2:
                with poisoned():
                    again = call.step()
            else:
                again = call.step()
            for own, former in zip(map(_bits, again), first, strict=True):
                changed |= (own != former).any()  # read once, at the end
    return f"{call.job.name}: {repeats} runs gave different bits" if changed.item() else ""


def _bits(x: Tensor) -> Tensor:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize]
    return x.contiguous().view(integers)
