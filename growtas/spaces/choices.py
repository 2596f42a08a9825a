"""Checks of choices and of groups that all families of search spaces share, as sentences. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growtas.bounds import COST
from growtas.errors import UsageError, quoted

MOST_SIZE = 65_536  # of a width or of an image's side
MOST_CHOICES = 64  # of one list
MOST_LAYERS = 256
MOST_NAME = 200  # characters


def listed(values: Sequence) -> str:
    """Values as they stand in a sentence."""
    return ", ".join(str(value) for value in values)


def adjacent(choices: Sequence[float], value: float) -> list:
    """The next smaller and the next larger choice, where there is one."""
    index = choices.index(value)
    return [choices[i] for i in (index - 1, index + 1) if 0 <= i < len(choices)]


def outside(space: str, name: str, value: Any, choices: Sequence, where: str = "") -> str:
    """The sentence about a choice that a space does not offer; ``where`` such as ``" of layer 3"``."""
    return f"{name}={quoted(value)}{where} is outside space {space!r}, which offers {listed(choices)}."


def check_name(title: str, name: Any, field: str = "name") -> None:
    """Check the name of a space. Raises: UsageError: it is no text, or too long for a table."""
    if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME or "\0" in name:
        raise UsageError(
            f"The {field} of {title} must be text of 1 to {MOST_NAME} characters, not {quoted(name)}."
        )


def check_choices(space: str, name: str, choices: Any, most: int = MOST_SIZE) -> None:
    """Check one list of choices of a space.

    Raises:
        UsageError: it is no list, empty, too long, not ascending, or holds something but numbers above 0 up
            to ``most``.
    """
    if not isinstance(choices, list | tuple) or not choices:
        raise UsageError(f"{name} of space {space!r} must be a list of choices, not {quoted(choices)}.")
    if len(choices) > MOST_CHOICES:
        raise UsageError(
            f"{name} of space {space!r} offers {len(choices):,} choices; give at most {MOST_CHOICES}."
        )
    if not all(isinstance(c, int | float) and not isinstance(c, bool) and c > 0 for c in choices):
        raise UsageError(f"{name} of space {space!r} must hold positive numbers, not {quoted(choices)}.")
    if not max(choices) <= most:
        raise UsageError(
            f"{name} of space {space!r} must hold numbers up to {most:,}, not {quoted(max(choices))}."
        )
    if list(choices) != sorted(set(choices)):
        raise UsageError(f"{name} of space {space!r} must ascend without repeats: {quoted(tuple(choices))}.")


def check_whole(space: str, name: str, choices: Sequence[float]) -> None:
    """Check that choices are whole. Raises: UsageError if one is not."""
    if any(c != int(c) for c in choices):
        raise UsageError(f"{name} of space {space!r} must hold whole numbers, not {quoted(list(choices))}.")


def check_size(space: str, name: str, value: Any, most: int = MOST_SIZE) -> None:
    """Check one size of a space. Raises: UsageError unless it is a whole number from 1 to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} of space {space!r} must be a positive whole number, not {quoted(value)}.")
    if value > most:
        raise UsageError(
            f"{name}={quoted(value)} of space {space!r} is over {most:,}, the most that is possible."
        )


def check_optional_count(space: str, name: str, value: Any) -> None:
    """Check a number of parameters. Raises: UsageError unless it is None or a positive number."""
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= COST.most
    ):
        raise UsageError(f"{name} of space {space!r} must be a positive number or null, not {quoted(value)}.")


def check_stages(space: str, name: str, values: Any, count: int) -> None:
    """Check that a list has one entry per stage. Raises: UsageError if not."""
    if not isinstance(values, list | tuple) or not values:
        raise UsageError(
            f"{name} of space {space!r} must be a list with one entry per stage, not {quoted(values)}."
        )
    if len(values) != count:
        raise UsageError(
            f"{name} of space {space!r} has {len(values)} entries for {count} stages: each needs one."
        )


def check_groups(space: str, groups: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The numbers of the wanted groups, ascending; all where None.

    Args:
        space: its name.
        groups: what the caller asked for.
        count: how many groups the space has.

    Raises:
        UsageError: a group does not exist, or none was asked for.
    """
    if groups is None:
        return tuple(range(count))
    for group in groups:
        if not 0 <= group < count:
            raise UsageError(
                f"Group {group} does not exist: space {space!r} has the groups 0 to {count - 1}."
            )
    if not groups:
        raise UsageError("At least one group is needed to choose a subnet from.")
    return tuple(sorted(set(groups)))


def entries(space: str, name: str, value: Any, count: int) -> tuple:
    """One entry per place, of a number for all places or of a list.

    Args:
        space: its name, for the sentence.
        name: of the choice.
        value: a number, or ``count`` numbers.
        count: how many places there are.

    Raises:
        UsageError: the list has another length, or it is no number and no list.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value,) * count
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UsageError(f"{name} of a subnet of {space!r} is a number or a list, not {quoted(value)}.")
    if len(value) != count:
        raise UsageError(
            f"{name} of a subnet of {space!r} needs one number, or {count} of them; {len(value)} were given."
        )
    return tuple(value)
