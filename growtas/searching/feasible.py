"""The set of subnets within limits, of a space of either family. No torch."""

from __future__ import annotations

from growtas.searching.feasible_mobilenet import MobileNetFeasibleSet
from growtas.searching.feasible_vit import ViTFeasibleSet
from growtas.searching.limits import FeasibleSet, Limits
from growtas.space import MobileNetSpace, Space


def feasible_set(space: Space, num_classes: int, limits: Limits) -> FeasibleSet:
    """The subnets of a space that meet the limits.

    Args:
        space: the search space.
        num_classes: outputs of the head, which count as parameters.
        limits: what a subnet may cost.

    Raises:
        UsageError: no subnet meets the limits; the sentence states what the space offers.

    Example:
        >>> small = feasible_set(load_space("digits"), 10, Limits(max_params=40_000))
        >>> small.sample(random.Random(0)) in small
        True
    """
    kind = MobileNetFeasibleSet if isinstance(space, MobileNetSpace) else ViTFeasibleSet
    return kind(space, num_classes, limits)
