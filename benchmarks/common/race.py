"""Compares rival ways with fp64, then times those that are right, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common import timing
from common.ways import Way

PASSES = ("forward", "backward")
Errors = dict[str, tuple[float, float]]
Truth = tuple[Tensor, Sequence[Tensor]]


class Samples(NamedTuple):
    """Seconds per call, round by round, and how they were taken."""

    seconds: dict[str, list[float]]
    methods: dict[str, str]


@dataclass(frozen=True)
class Race:
    """Rival ways to do one piece of work.

    Args:
        build: makes the way of a name on some inputs.
        active: the context in which a way of that name runs.
        device: where.
        dtype: of the activations, which sets how large an error may be.
    """

    build: Callable[[str, Any], Way]
    active: Callable[[str], AbstractContextManager]
    device: torch.device
    dtype: torch.dtype

    def check(
        self, names: Sequence[str], inputs: Any, truth: Truth, yardstick: str
    ) -> tuple[dict[str, Errors], dict[str, str]]:
        """Compare every way with fp64 before any is timed.

        A way passes with at most twice the error of the yardstick, which is torch's own in the same dtype,
        plus a quarter of the dtype's step; and with exact zeros outside of the slice.

        Args:
            names: of the ways.
            inputs: what they work on.
            truth: the plain output and the plain gradients, in fp64.
            yardstick: the name of the way whose error is the measure.

        Returns:
            RMS and largest relative error by way and pass, of the ways that passed; why the others did not.
        """
        limit = self._errors(yardstick, inputs, truth)
        floor = torch.finfo(self.dtype).eps / 4
        passed, refused = {}, {}
        for name in names:
            try:
                found = self._errors(name, inputs, truth)
            except Exception as error:  # a kernel that cannot run must not end the measurement of the others
                text = str(error).splitlines()
                refused[name] = f"{type(error).__name__}: {text[0] if text else 'no message'}"
                continue
            wrong = [
                f"its {direction} error against fp64 is {found[direction][kind]:.2g}, and "
                f"{yardstick}'s {limit[direction][kind]:.2g}"
                for direction in PASSES
                for kind in (0, 1)
                if not found[direction][kind] <= 2 * limit[direction][kind] + floor
            ]
            if wrong:
                refused[name] = wrong[0]
            else:
                passed[name] = found
        return passed, refused

    def _errors(self, name: str, inputs: Any, truth: Truth) -> Errors:
        with self.active(name):
            way = self.build(name, inputs)
            out = way.run()
            *gradients, rest = way.plain_gradients(way.backward_call()())
        if any(part.numel() and part.abs().max().item() != 0 for part in rest):
            raise ArithmeticError("its gradient is not zero outside of the slice")
        backward = [_error(result, expected) for result, expected in zip(gradients, truth[1], strict=True)]
        worst = max(rms for rms, _ in backward), max(largest for _, largest in backward)
        return {"forward": _error(way.plain_output(out), truth[0]), "backward": worst}

    def run(
        self,
        names: Sequence[str],
        sets: Sequence[Any],
        direction: str,
        *,
        seconds: float,
        rounds: int,
        least: int = 3,
        use_graph: bool = True,
        sample_seconds: float = 2e-3,
    ) -> Samples:
        """Time ways in turns.

        Args:
            names: of the ways.
            sets: inputs to walk through.
            direction: forward or backward.
            seconds, rounds, least: as :func:`common.timing.interleave` takes them.
            use_graph: on a GPU, time CUDA graphs.
            sample_seconds: one sample repeats its call for at least about so long.
        """
        samplers, methods = {}, {}
        for name in names:
            with self.active(name):
                ways = [self.build(name, inputs) for inputs in sets]
                makers = [way.forward_call if direction == "forward" else way.backward_call for way in ways]
                sample, methods[name] = timing.sampler(makers, self.device, sample_seconds, use_graph)
            samplers[name] = self._within(name, sample)
        return Samples(timing.interleave(samplers, seconds=seconds, rounds=rounds, least=least), methods)

    def _within(self, name: str, sample: timing.Sampler) -> timing.Sampler:
        """A sampler inside its way's context, which is entered and left outside of what is timed."""

        def run() -> float:
            with self.active(name):
                return sample()

        return run


def _error(result: Tensor, expected: Tensor) -> tuple[float, float]:
    """RMS and largest error, relative; infinite for NaN, which is never small."""
    difference = result.double() - expected
    rms = (difference.norm() / expected.norm()).item()
    largest = (difference.abs().max() / expected.abs().max()).item()
    return (rms, largest) if rms == rms and largest == largest else (float("inf"), float("inf"))
