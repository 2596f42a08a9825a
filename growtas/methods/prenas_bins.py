"""Bins of parameters from which PreNAS takes one subnet each: as published, or as the user says. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from growtas import cost
from growtas.errors import UsageError
from growtas.space import SearchSpace, Subnet

DEFAULT_BINS = 6  # of a space without published bins; as many as AutoFormer-T fills


@dataclass(frozen=True)
class Bins:
    """Equal, half-open ranges of parameters: [low, low + width), [low + width, low + 2 width), ...

    Only whole bins count: what lies beyond the last that fits below ``high`` belongs to none.

    Args:
        low: lower end of the first bin, in parameters.
        high: no bin reaches beyond.
        width: of every bin, in parameters.

    Raises:
        UsageError: no bin fits.
    """

    low: int
    high: int
    width: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.low < 0 or self.count < 1:
            raise UsageError(
                f"Bins from {self.low:,} to {self.high:,} parameters in steps of {self.width:,} hold no "
                "whole bin; write them as low-high/step, such as 5e6-12e6/1e6."
            )

    @property
    def count(self) -> int:
        """How many whole bins there are."""
        return (self.high - self.low) // self.width

    def index(self, params: int) -> int | None:
        """The number of the bin, from 0, that a count of parameters falls into; None outside of all."""
        number = (params - self.low) // self.width
        return number if 0 <= number < self.count else None

    def limits(self, number: int) -> tuple[int, int]:
        """Parameters at which a bin begins (inclusive) and ends (exclusive)."""
        low = self.low + number * self.width
        return low, low + self.width

    def __str__(self) -> str:
        return f"{self.low:,}-{self.high:,}/{self.width:,}"


# What the authors' launch scripts set, by preset. B's last bin would reach 78 million, so three are whole.
PUBLISHED_BINS = {
    "autoformer-tiny": Bins(5_000_000, 12_000_000, 1_000_000),
    "autoformer-small": Bins(13_000_000, 33_000_000, 5_000_000),
    "autoformer-base": Bins(30_000_000, 70_000_000, 12_000_000),
}
PUBLISHED_DEPTHS = {"autoformer-small": (13, 14)}


def parse_bins(text: str, space: SearchSpace, num_classes: int, depths: Sequence[int]) -> Bins:
    """The bins of a run.

    Args:
        text: ``"5e6-12e6/1e6"`` (low, high and step in parameters); a number of equal bins between the
            smallest and the largest subnet; or empty for the published bins of a preset, else six equal ones.
        space: that is divided.
        num_classes: outputs of the head, counted in the parameters.
        depths: that candidates may have; they bound the equal bins.

    Raises:
        UsageError: the text has neither form, or no whole bin fits.

    Source:
        PreNAS (Wang et al., ICML 2023), launch scripts of AutoFormer-T, -S and -B; equal bins are our choice.
    """
    if not text and space.name in PUBLISHED_BINS:
        return PUBLISHED_BINS[space.name]
    text = text or str(DEFAULT_BINS)
    limits, slash, step = text.partition("/")
    try:
        if slash:
            low, high = limits.split("-")
            return Bins(_whole(low), _whole(high), _whole(step))
        number = int(text)
    except UsageError:
        raise
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"bins={text!r} is neither a number of bins nor low-high/step in parameters, "
            "such as 5e6-12e6/1e6."
        ) from error
    if number < 1:
        raise UsageError(f"bins={number} is not possible; at least one bin is needed.")
    low = min(cost.parameters(_uniform(space, 0, depth), space, num_classes) for depth in depths)
    high = max(cost.parameters(_uniform(space, -1, depth), space, num_classes) for depth in depths)
    width = math.ceil((high - low + 1) / number)  # the largest subnet belongs to the last bin
    return Bins(low, low + number * width, width)


def parse_depths(text: str, space: SearchSpace) -> tuple[int, ...]:
    """The depths that candidates may have, ascending.

    Args:
        text: such as ``"13,14"``; empty for the published ones of a preset (13 and 14 of AutoFormer-S), else
            every depth of the space.
        space: that must offer them.

    Raises:
        UsageError: the text is no list of numbers, or the space lacks one.
    """
    if not text:
        return PUBLISHED_DEPTHS.get(space.name, space.depth)
    try:
        depths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UsageError(f"depths={text!r} is no list of whole numbers, such as 13,14.") from error
    for depth in depths:
        if depth not in space.depth:
            offered = ", ".join(map(str, space.depth))
            raise UsageError(f"depths={text!r}: space {space.name!r} has no depth {depth}, only {offered}.")
    return depths


def _uniform(space: SearchSpace, which: int, depth: int) -> Subnet:
    heads, ratio = space.num_heads[which], space.mlp_ratio[which]
    return Subnet(space.embed_dim[which], depth, (heads,) * depth, (ratio,) * depth)


def _whole(text: str) -> int:
    number = float(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)
