"""Reads YAML that strangers write: plain values alone, and no more than a file can hold. No torch.

A few hundred bytes of YAML can mean a value of any size (aliases of aliases), an endless one, or an object of
Python's. What growtas writes and documents needs none of that, so aliases, tags and dates are refused, and
size, depth and numbers are bounded before a value is made.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from growtas.errors import brief

MOST_BYTES = 4 << 20  # the names of a hundred thousand classes
MOST_DEPTH = 32
MOST_DIGITS = 40  # of a number; Python takes seconds for one of a million
PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_Safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a thousand class names take Python 0.2 s


class _Loader(_Safe):
    """Makes plain values and refuses everything else."""

    yaml_constructors: dict = {}  # those of tags as dates, sets and bytes are left out
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in PLAIN]
        for first, resolvers in _Safe.yaml_implicit_resolvers.items()
    }

    def refuse(self, node: yaml.Node) -> None:
        """Raises: ConstructorError: the tag is not one of plain values."""
        self.wrong(node, f"the tag {brief(str(node.tag), 60)} is not read")

    def wrong(self, node: yaml.Node, problem: str) -> None:
        """Raises: ConstructorError: with the place."""
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def scalar(self, node: yaml.Node) -> Any:
        """A word or a number."""
        kind = node.tag.rpartition(":")[2]
        if not isinstance(node, yaml.ScalarNode):
            self.wrong(node, f"a list or mapping is no {kind}")
        if kind in ("int", "float") and len(node.value) > MOST_DIGITS:
            self.wrong(node, f"a number of {len(node.value):,} characters is too long; {MOST_DIGITS} is most")
        if kind == "int" and ":" in node.value:  # YAML 1.1 reads 1:30 as 90
            self.wrong(node, f"{node.value!r} is no int")
        try:
            value = getattr(self, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError):
            self.wrong(node, f"{brief(node.value, 60)!r} is no {kind}")
        if isinstance(value, float) and not math.isfinite(value):
            self.wrong(node, f"{brief(node.value, 60)} is not a finite number")
        return value

    def sequence(self, node: yaml.Node) -> list:
        """A list."""
        return self.construct_sequence(node, deep=True)

    def mapping(self, node: yaml.Node) -> dict:
        """A mapping from words."""
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, "this is no mapping")
        found = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                self.wrong(key_node, f"the key {brief(repr(key), 60)} is no word")
            if key in found:
                self.wrong(key_node, f"the key {brief(key, 60)!r} stands there twice")
            found[key] = self.construct_object(value_node, deep=True)
        return found


for _kind in ("null", "bool", "int", "float", "str"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.scalar)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.sequence)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.mapping)
_Loader.add_constructor(None, _Loader.refuse)


class NotPlain(ValueError):
    """The end of a sentence that begins with the file: it is too large, or no YAML of plain values."""


def read(path: Path) -> Any:
    """Read a file of plain values.

    Args:
        path: an existing file.

    Returns:
        Dictionaries with words as keys, lists, text, finite numbers, true, false and None.

    Raises:
        NotPlain: it holds something else, or too much; the message says where.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise NotPlain(f"is larger than {MOST_BYTES >> 20} MiB, the most that is read of YAML")
    try:
        text = data.decode()
        _check_events(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - plain values alone
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", line', "in line").split())
        raise NotPlain(f"is not YAML of plain values: {brief(reason, 300)}") from error


def _check_events(text: str) -> None:
    """Raises: YAMLError: the nesting is too deep, or there is an alias. Nothing is built for this."""
    depth = 0
    for event in yaml.parse(text, Loader=_Safe):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                None, None, "an alias such as *name is not read: write the value itself", event.start_mark
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(
                None, None, f"lists and mappings lie more than {MOST_DEPTH} deep", event.start_mark
            )
