"""A Griffe extension that reads two habits of growtas' docstrings.

- ``first, second: text`` under Args describes each of the names.
- ``:func:`name` `` and the other roles of Sphinx are shown as code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(?:Args|Attributes):\n(?:(?: .*)?(?:\n|\Z))+", re.MULTILINE)
_JOINT = re.compile(r"^( +)(\w+(?:,\s+\w+)+): (.*(?:\n\1 .*)*)", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(`[^`]+`)")


def plain(docstring: str) -> str:
    """The docstring in the form that Griffe parses and Markdown shows."""
    docstring = _SECTION.sub(lambda section: _JOINT.sub(_entries, section[0]), docstring)
    return _ROLE.sub(r"\1", docstring)


def _entries(entry: re.Match) -> str:
    indent, text = entry[1], entry[3]
    first, *others = re.split(r",\s+", entry[2])
    return f"{indent}{first}: {text}" + "".join(f"\n{indent}{name}: see `{first}`." for name in others)


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
