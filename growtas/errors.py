"""The two kinds of error a user sees, and the suggestion of a near name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GrowtasError(Exception):
    """Something went wrong that is not the fault of the call; the command line exits with status 1."""

    exit_status = 1


class UsageError(GrowtasError, ValueError):
    """The call asked for something that cannot be; the command line exits with status 2."""

    exit_status = 2


MOST_NAMED = 40  # names in a sentence; timm has a thousand


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error sentence about an unknown name.

    Args:
        name: what the user wrote.
        names: what would have been known.

    Returns:
        ``" Did you mean 'x'?"`` where a name is close, and the list of the known names, 40 at most.
    """
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    more = f" and {len(known) - MOST_NAMED:,} more" if len(known) > MOST_NAMED else ""
    return f"{hint} Known: {', '.join(known[:MOST_NAMED])}{more}."
