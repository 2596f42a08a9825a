"""Checks of the fields of a MobileNetV3 space, as sentences. No torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from growtas.errors import UsageError, nearest, quoted
from growtas.spaces.choices import (
    MOST_LAYERS,
    MOST_SIZE,
    check_choices,
    check_name,
    check_optional_count,
    check_size,
    check_stages,
    check_whole,
)
from growtas.spaces.mobilenet_block import make_divisible
from growtas.spaces.mobilenet_subnet import FIELDS

ACTIVATIONS = ("relu", "h-swish")
_MOST = {"kernel": 63, "expand": 64, "depth": MOST_LAYERS, "strides": 16, "stem_stride": 16}
_STAGES = ("widths", "strides", "activations", "squeeze_excite")
_SIZES = (
    *("stem_width", "first_width", "final_width", "feature_width"),
    *("stem_stride", "image_size", "in_channels"),
)


def check_fields(space: Any) -> None:
    """Check every field of a :class:`growtas.spaces.mobilenet.MobileNetSpace` as it was given.

    Raises:
        UsageError: the first that does not fit.
    """
    check_name("a space", space.name)
    for name in FIELDS:
        check_choices(space.name, name, getattr(space, name), _MOST[name])
        check_whole(space.name, name, getattr(space, name))
    if any(kernel % 2 == 0 for kernel in space.kernel):
        raise UsageError(
            f"kernel of space {space.name!r} must hold odd numbers, not {quoted(tuple(space.kernel))}."
        )
    for name in _SIZES:
        check_size(space.name, name, getattr(space, name), _MOST.get(name, MOST_SIZE))
    check_optional_count(space.name, "schedule_params", space.schedule_params)
    stages = len(space.widths) if isinstance(space.widths, list | tuple) else 0
    for name in _STAGES:
        check_stages(space.name, name, getattr(space, name), stages)
    blocks = stages * int(space.depth[-1])
    if blocks > MOST_LAYERS:
        raise UsageError(
            f"Space {space.name!r} has {blocks:,} blocks in {stages} stages; {MOST_LAYERS} is the most that "
            "is possible."
        )
    for name in ("widths", "strides"):
        for value in getattr(space, name):
            check_size(space.name, name, value, _MOST.get(name, MOST_SIZE))
    for activation in space.activations:
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise UsageError(
                f"activations of space {space.name!r} cannot hold {quoted(activation)}."
                f"{nearest(str(activation), ACTIVATIONS)}"
            )
    if not all(isinstance(value, bool) for value in space.squeeze_excite):
        raise UsageError(
            f"squeeze_excite of space {space.name!r} holds true or false per stage, "
            f"not {quoted(space.squeeze_excite)}."
        )
    dropout = space.dropout
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UsageError(f"dropout={quoted(dropout)} of space {space.name!r} must lie from 0 to below 1.")
    _check_middle_widths(space)


def _check_middle_widths(space: Any) -> None:
    """Two expand ratios of one middle width would make two subnets of one network."""
    for width in (space.first_width, *space.widths):
        for low, high in pairwise(space.expand):
            middle = make_divisible(width * low)
            if middle == make_divisible(width * high):
                raise UsageError(
                    f"expand={low} and expand={high} of space {space.name!r} both make {middle} channels of "
                    f"{width}, because middle widths are multiples of 8; drop one or widen the stage."
                )
