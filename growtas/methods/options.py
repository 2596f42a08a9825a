"""A method's own options: a frozen dataclass, read from text such as ``"data=train,images=64"``. No torch."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from growtas.errors import UsageError, nearest, quoted

Options = TypeVar("Options")

_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class NoOptions:
    """Of a method that has none."""


def split_pairs(text: str, owner: str) -> dict[str, str]:
    """The keys and values of ``"key=value,key=value"``.

    A piece without an equals sign belongs to the value before it, so that a value may hold commas:
    ``"depths=13,14,data=train"``.

    Args:
        text: possibly empty.
        owner: what the options belong to, for the error sentence.

    Raises:
        UsageError: the text does not begin with a key, or gives one twice.
    """
    pairs: dict[str, str] = {}
    key = None
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = piece.partition("=")
        if equals:
            key = name.strip().replace("-", "_")
            if key in pairs:
                raise UsageError(f"The options of {owner} give {key} twice: {text!r}.")
            pairs[key] = value.strip()
        elif key is None:
            raise UsageError(f"The options of {owner} are written key=value,key=value, not {text!r}.")
        else:
            pairs[key] += f",{piece}"
    return pairs


def parse_options(kind: type[Options], text: str, owner: str) -> Options:
    """Read options.

    Args:
        kind: a frozen dataclass whose fields all have defaults and plain types.
        text: ``"key=value,key=value"``; what is not given keeps its default.
        owner: such as ``"method 'prenas'"``, for the error sentences.

    Raises:
        UsageError: an option is unknown (the nearest is named) or its value has another type, or the
            dataclass refuses it.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    values = {}
    for name, value in split_pairs(text, owner).items():
        if name not in names:
            known = nearest(name, names) if names else " It has none."
            raise UsageError(f"{owner[0].upper()}{owner[1:]} has no option {name!r}.{known}")
        values[name] = _value(name, value, hints[name], owner)
    return kind(**values)


def _value(name: str, text: str, hint: Any, owner: str) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    word = text.lower()
    if word in _WORDS and type(_WORDS[word]) in allowed:
        return _WORDS[word]
    for kind in (int, float):
        if kind in allowed:
            try:
                return kind(text) if kind is float or "e" not in word else _whole(text)
            except (ValueError, OverflowError):
                continue
    if str in allowed:
        return text
    kinds = " or ".join(_KINDS[kind] for kind in allowed)
    raise UsageError(f"{name}={quoted(text)} of {owner} is not possible; it must be {kinds}.")


def _whole(text: str) -> int:
    """1e6 as a whole number. Raises: ValueError: it is none."""
    number = float(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)
