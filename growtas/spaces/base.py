"""Conversion to plain values that spaces and subnets of all families share. No torch."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from growtas.errors import UsageError, brief, nearest, quoted
from growtas.spaces.choices import listed


class PlainSpace(ABC):
    """A space that is a frozen dataclass of plain values. Each family's adds what may be chosen.

    Attributes:
        family: as a YAML file names it; ``""`` for the one that needs no name.
        required: fields that every file must hold.
        title: how sentences call such a space.
    """

    family: ClassVar[str] = ""
    required: ClassVar[tuple[str, ...]] = ()
    title: ClassVar[str] = "A space"

    @abstractmethod
    def validate(self, subnet: Any) -> None:
        """Check that a subnet belongs to the space. Raises: UsageError: the sentence says what does not."""

    def __contains__(self, subnet: object) -> bool:
        try:
            self.validate(subnet)
        except UsageError:
            return False
        return True

    def to_dict(self) -> dict[str, Any]:
        """The space as plain values, as a YAML file holds it."""
        data = {"family": self.family} if self.family else {}
        data |= dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build and check a space from plain values.

        Raises:
            UsageError: a field is missing or unknown (the nearest known one is named), or does not fit.
        """
        if not isinstance(data, Mapping):
            raise UsageError(f"{cls.title} is given by its fields, not by {quoted(data)}.")
        data = {key: value for key, value in data.items() if key != "family"}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in data:
            if key not in fields:
                raise UsageError(f"{cls.title} has no field {quoted(key)}.{nearest(str(key), fields)}")
        missing = [name for name in ("name", *cls.required) if name not in data]
        if missing:
            raise UsageError(f"The space lacks {listed(missing)}.")
        return cls(**data)


def json_fields(kind: type, data: str | Mapping[str, Any], title: str) -> Mapping[str, Any]:
    """The fields of a dataclass from a dictionary or JSON text.

    Args:
        kind: the dataclass.
        data: what was written.
        title: how sentences call what it is of.

    Raises:
        UsageError: the text is not JSON, or a field is missing or unknown.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"This is not the JSON of a subnet: {brief(str(error), 100)}.") from error
    if not isinstance(data, Mapping) or set(data) != set(names):
        given = quoted(sorted(map(str, data))) if isinstance(data, Mapping) else type(data).__name__
        raise UsageError(f"{title} has the fields {', '.join(names[:-1])} and {names[-1]}, not {given}.")
    return data
