"""The two kinds of error a user sees, and the suggestion of a near name."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from typing import Any

MOST_CHARACTERS = 2000  # of a message: a value that somebody else wrote may be of any length


def brief(text: str, most: int) -> str:
    """A text whose middle is left out where it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} [...] {text[len(text) - most // 3 :]}"


def quoted(value: Any, most: int = 80) -> str:
    """A value as it stands in a sentence: its repr, shortened."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write one of 4,300 digits
        return f"a number of about {value.bit_length() * 30103 // 100_000:,} digits"
    try:
        return brief(repr(value), most)
    except (ValueError, RecursionError):  # such a number within a list
        return f"a {type(value).__name__}"


class GrowtasError(Exception):
    """Something went wrong that is not the fault of the call; the command line exits with status 1."""

    exit_status = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(brief(arg, MOST_CHARACTERS - 6) if isinstance(arg, str) else arg for arg in args))


class UsageError(GrowtasError, ValueError):
    """The call asked for something that cannot be; the command line exits with status 2."""

    exit_status = 2


MOST_NAMED = 40  # names in a sentence; timm has a thousand


def command(*words: object) -> str:
    """A command line of growtas as it can be pasted into a shell: paths with spaces are quoted."""
    return shlex.join(["growtas", *map(str, words)])


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error sentence about an unknown name.

    Args:
        name: what the user wrote.
        names: what would have been known.

    Returns:
        ``" Did you mean 'x'?"`` where a name is close, and the list of the known names, 40 at most.
    """
    known = sorted(names)
    close = difflib.get_close_matches(name[:200], known, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    more = f" and {len(known) - MOST_NAMED:,} more" if len(known) > MOST_NAMED else ""
    return f"{hint} Known: {', '.join(known[:MOST_NAMED])}{more}."
