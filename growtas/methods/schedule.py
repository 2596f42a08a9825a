"""Stages and transition epochs: which groups of subnets are trained when. No torch.

Stage k is active while ``epoch < T_k`` (epochs count from 0). The two rules for T_k, the neighbourhood-aware
stages and the published numbers stand in GrowTAS (supplement, "Why We Set K = 2" and "Dynamic Transition
Scheduling"): T = 500 gives T_1 = 250 by the midpoint rule and 244, 227, 200 for AutoFormer-T, -S, -B by the
size-aware one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from growtas import cost
from growtas.errors import UsageError, brief, nearest, quoted
from growtas.space import SearchSpace

FIXED = ("size-aware", "midpoint")
PLATEAU = "plateau"  # decided during the run, see growtas.methods.transition
RULES = (*FIXED, PLATEAU)
MAX_PARAMS = 75e6  # C_max: the largest supernet of the paper, AutoFormer-B, as the paper rounds it
BETA_SHARE = 0.1  # the paper's beta is 50 epochs of 500
LEAST_SHARE, LEAST_LAST_SHARE = 1 / 8, 1 / 4  # of the run, for a stage and the last one of the plateau rule


@dataclass(frozen=True)
class Stage:
    """A span of training.

    Args:
        groups: the groups whose subnets are drawn, ascending, counted from 0.
        first_epoch: the epoch, from 0, at which the stage begins; it lasts until the next one begins.
    """

    groups: tuple[int, ...]
    first_epoch: int


def stage_groups(stages: int | str | Sequence[Sequence[int]], num_groups: int) -> tuple[tuple[int, ...], ...]:
    """The groups of each stage.

    Args:
        stages: the number of stages K, or the groups of each stage: ``[[0, 1], [0, 1, 2]]`` or
            ``"0,1/0,1,2"``. K = 1 trains everything always (AutoFormer). K = 2, the published default, is
            neighbourhood-aware: a stage takes a group together with its next neighbour, so the first stage
            holds groups 0 and 1. K equal to the number of groups starts with group 0 alone. Whatever K, the
            last stage holds every group.
        num_groups: groups of the space.

    Returns:
        One ascending tuple of group numbers per stage.

    Raises:
        UsageError: K is not between 1 and the number of groups, a stage is empty or names a group that does
            not exist, or two neighbouring stages are the same.

    Source:
        GrowTAS, supplement, "Why We Set K = 2".

    Example:
        >>> stage_groups(2, 3)
        ((0, 1), (0, 1, 2))
        >>> stage_groups("0/1/2", 3)
        ((0,), (1,), (2,))
    """
    if isinstance(stages, str):
        stages = _parse_stages(stages)
    if isinstance(stages, int) and not isinstance(stages, bool):
        return _grown(stages, num_groups)
    if not isinstance(stages, list | tuple) or not stages:
        raise UsageError(
            f"stages must be a number or the groups of each stage, such as '0,1/0,1,2', not {quoted(stages)}."
        )
    listed = []
    for position, groups in enumerate(stages):
        if not isinstance(groups, list | tuple) or not groups:
            raise UsageError(f"Stage {position + 1} must be a list of at least one group, not {groups!r}.")
        for group in groups:
            if not isinstance(group, int) or isinstance(group, bool) or not 0 <= group < num_groups:
                raise UsageError(
                    f"Stage {position + 1} names group {group!r}, but the space has the groups "
                    f"0 to {num_groups - 1}."
                )
        listed.append(tuple(sorted(set(groups))))
    for position, (before, after) in enumerate(zip(listed, listed[1:], strict=False)):
        if before == after:
            raise UsageError(
                f"Stages {position + 1} and {position + 2} hold the same groups {before}; drop one."
            )
    return tuple(listed)


def _parse_stages(text: str) -> int | list[list[int]]:
    try:
        if text.strip().isdecimal():
            return int(text)
        return [[int(group) for group in part.split(",")] for part in text.split("/")]
    except ValueError as error:
        raise UsageError(
            f"stages={quoted(text)} is neither a number nor groups per stage. Separate the groups of a "
            "stage with commas and stages with slashes, such as '0,1/0,1,2'."
        ) from error


def _grown(count: int, num_groups: int) -> tuple[tuple[int, ...], ...]:
    if not 1 <= count <= num_groups:
        raise UsageError(
            f"stages={quoted(count)} is not possible: a space of {num_groups} groups can be trained in 1 to "
            f"{num_groups} stages."
        )
    if count == 1:
        return (tuple(range(num_groups)),)
    first = 1 if count == num_groups else 2
    sizes = [first + math.ceil((num_groups - first) * k / (count - 1)) for k in range(count)]
    return tuple(tuple(range(size)) for size in sizes)


def transition_epochs(
    rule: str | Sequence[int],
    stages: int,
    epochs: int,
    params: float = 0.0,
    max_params: float = MAX_PARAMS,
    beta: float | None = None,
) -> tuple[int, ...]:
    """The epochs T_1 < T_2 < ... at which stages 2, 3, ... begin.

    The recursion runs unrounded, T_1 = T/2 - o and T_k = T_{k-1} + (T - T_{k-1})/2 - o, where the offset o is
    0 for the midpoint rule and beta * params / max_params for the size-aware one; the results are rounded at
    the end, halves upwards. The plateau rule decides during the run; its epochs are the latest that are
    possible.

    Args:
        rule: ``"size-aware"``, ``"midpoint"``, ``"plateau"``, or the epochs themselves, as numbers or as text
            such as ``"250,375"``.
        stages: number of stages K; K - 1 epochs are returned.
        epochs: epochs T of the whole run.
        params: size C of the space in parameters; only the size-aware rule reads it.
        max_params: size C_max, in parameters, at which the whole beta is taken off.
        beta: offset in epochs at C = C_max; a tenth of ``epochs`` where None, the paper's 50 of 500.

    Raises:
        UsageError: 0 < T_1 < ... < T does not hold, the number of epochs given does not fit the stages, or
            the rule is unknown.

    Source:
        GrowTAS, supplement, equations 1 and 2.

    Example:
        >>> transition_epochs("size-aware", stages=3, epochs=500, params=34e6)
        (227, 341)
    """
    given = _parse_transition(rule)
    if given is not None:
        if len(given) != stages - 1:
            raise UsageError(
                f"{stages} stages have {stages - 1} transitions, but {len(given)} epochs were given: "
                f"{_listed(given)}."
            )
        found = given
        remedy = "Give ascending epochs inside the run."
    elif rule == PLATEAU:
        return latest_epochs(stages, epochs)
    else:
        offset = 0.0
        if rule == "size-aware":
            offset = (BETA_SHARE * epochs if beta is None else beta) * params / max_params
        exact, previous = [], 0.0
        for _ in range(stages - 1):
            previous = previous + (epochs - previous) / 2 - offset
            exact.append(previous)
        found = tuple(math.floor(value + 0.5) for value in exact)
        remedy = "Train for more epochs, use fewer stages, or give the transition epochs."
    bounds = (0, *found, epochs)
    if any(not earlier < later for earlier, later in zip(bounds, bounds[1:], strict=False)):
        raise UsageError(
            f"The transitions {_listed(found)} of {stages} stages in {epochs} epochs do not satisfy "
            f"0 < T_1 < ... < {epochs}. {remedy}"
        )
    return found


def least_epochs(epochs: int) -> int:
    """How long every stage lasts at least under the plateau rule: an eighth of the run, our own choice."""
    return math.ceil(LEAST_SHARE * epochs)


def latest_epochs(stages: int, epochs: int) -> tuple[int, ...]:
    """The latest epochs at which the plateau rule begins stages 2, 3, ...

    The last stage lasts a quarter of the run or more, the others an eighth; both are our own choice.

    Args:
        stages: their number.
        epochs: of the whole run.

    Raises:
        UsageError: they leave the first stage less than an eighth.
    """
    least, last = least_epochs(epochs), epochs - math.ceil(LEAST_LAST_SHARE * epochs)
    found = tuple(last - least * (stages - 1 - k) for k in range(1, stages))
    if found and found[0] < least:
        raise UsageError(
            f"{stages} stages do not fit into {epochs} epochs with transition={PLATEAU!r}: each lasts "
            f"{least} or more, the last {epochs - last}. Train for more epochs or use fewer stages."
        )
    return found


def _parse_transition(rule: str | Sequence[int]) -> tuple[int, ...] | None:
    """The epochs that were given, or None where a rule was named."""
    if isinstance(rule, str):
        if rule in RULES:
            return None
        try:
            return tuple(int(part) for part in rule.replace(",", " ").split())
        except ValueError:
            raise UsageError(
                f"There is no transition rule {quoted(rule)}.{nearest(rule, RULES)} "
                "Or give the epochs, such as '250,375'."
            ) from None
    if isinstance(rule, int) and not isinstance(rule, bool):
        return (rule,)
    if not isinstance(rule, list | tuple) or not all(isinstance(e, int) and e is not True for e in rule):
        raise UsageError(f"Transition epochs must be whole numbers, not {rule!r}.")
    return tuple(rule)


def _listed(values: Sequence) -> str:
    return brief(", ".join(map(str, values)), 200) or "(none)"


def plan(
    space: SearchSpace,
    epochs: int,
    stages: int | str | Sequence[Sequence[int]] = 2,
    transition: str | Sequence[int] = "size-aware",
    num_classes: int = 1000,
    params: float | None = None,
    max_params: float = MAX_PARAMS,
    beta: float | None = None,
) -> tuple[Stage, ...]:
    """The stages of a run, with their first epochs.

    Args:
        space: gives the groups, and the size C where ``params`` is None: its ``schedule_params`` if set (the
            AutoFormer presets carry the paper's 9, 34 and 75 million), else its largest subnet's parameters.
        epochs: epochs of the whole run.
        stages: as :func:`stage_groups`.
        transition: as :func:`transition_epochs`.
        num_classes: outputs of the head, counted in C.
        params, max_params, beta: as :func:`transition_epochs`.

    Raises:
        UsageError: as :func:`stage_groups` and :func:`transition_epochs`.

    Example:
        >>> from growtas.space import load_space
        >>> plan(load_space("autoformer-base"), epochs=500)
        (Stage(groups=(0, 1), first_epoch=0), Stage(groups=(0, 1, 2), first_epoch=200))
    """
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise UsageError(f"epochs must be a positive whole number, not {epochs!r}.")
    groups = stage_groups(stages, len(space.groups))
    if params is None:
        params = space.schedule_params or cost.parameters(space.largest(), space, num_classes)
    if len(groups) == 1:  # nothing to place, whatever rule was named; a wrong name is still an error
        given = _parse_transition(transition)
        if given:
            raise UsageError(f"One stage has no transition, but the epochs {_listed(given)} were given.")
        return (Stage(groups[0], 0),)
    starts = transition_epochs(transition, len(groups), epochs, params, max_params, beta)
    return tuple(Stage(g, e) for g, e in zip(groups, (0, *starts), strict=True))


def stage_at(stages: Sequence[Stage], epoch: int) -> int:
    """The number, from 0, of the stage that is active in an epoch."""
    return max(k for k, stage in enumerate(stages) if stage.first_epoch <= epoch)
