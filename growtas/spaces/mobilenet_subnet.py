"""A subnet of a MobileNetV3 space: one architecture, as a frozen value with text and JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growtas.errors import UsageError, brief, quoted
from growtas.spaces.base import json_fields

FIELDS = ("kernel", "expand", "depth")


@dataclass(frozen=True)
class MobileNetSubnet:
    """One architecture of a MobileNetV3 space.

    The entries of blocks that a stage's depth leaves out are there too, so that block ``i`` of stage ``s``
    stands at ``s * slots + i``. Make subnets by :meth:`growtas.spaces.mobilenet.MobileNetSpace.subnet`,
    which sets the entries left out to the smallest choice: then equal networks are equal values.

    Args:
        kernel: side of each block's depthwise kernel, ``stages * slots`` entries.
        expand: middle width of each block over its input's, as many entries.
        depth: blocks of each stage.

    Raises:
        UsageError: the lengths do not fit, or a number is not positive and whole.

    Example:
        >>> str(MobileNetSubnet((3, 5, 7, 3), (3, 6, 4, 3), (2, 1)))
        'k3,5,7,3-e3,6,4,3-d2,1'
    """

    kernel: tuple[int, ...]
    expand: tuple[int, ...]
    depth: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in FIELDS:
            values = getattr(self, name)
            try:
                whole = tuple(int(value) for value in values)
            except (TypeError, ValueError, OverflowError) as error:
                raise UsageError(
                    f"{name} of a subnet is a list of whole numbers, not {quoted(values)}."
                ) from error
            if not whole or min(whole) < 1 or any(a != b for a, b in zip(whole, values, strict=True)):
                raise UsageError(f"{name} of a subnet holds positive whole numbers, not {quoted(values)}.")
            object.__setattr__(self, name, whole)
        if len(self.kernel) != len(self.expand) or len(self.kernel) % len(self.depth):
            raise UsageError(
                f"A subnet of {len(self.depth)} stages needs the same number of blocks in each and as many "
                f"entries in kernel as in expand; {len(self.kernel)} and {len(self.expand)} were given."
            )
        if max(self.depth) > self.slots:
            raise UsageError(
                f"A subnet with {self.slots} places per stage cannot hold depth={max(self.depth)}."
            )

    @property
    def slots(self) -> int:
        """Places for blocks in each stage; the first ``depth[stage]`` of them are active."""
        return len(self.kernel) // len(self.depth)

    @property
    def active(self) -> tuple[int, ...]:
        """The places of the active blocks in ``kernel`` and ``expand``, in order."""
        return tuple(s * self.slots + i for s, depth in enumerate(self.depth) for i in range(depth))

    def __str__(self) -> str:
        return "-".join(f"{name[0]}{','.join(map(str, getattr(self, name)))}" for name in FIELDS)

    @classmethod
    def parse(cls, text: str) -> MobileNetSubnet:
        """Read the compact form that ``str(subnet)`` writes.

        Args:
            text: such as ``"k3,5,7,3-e3,6,4,3-d2,1"``.

        Raises:
            UsageError: the text does not have that form.
        """
        try:
            parts = {part[0]: part[1:] for part in text.strip().split("-")}
            if sorted(parts) != ["d", "e", "k"]:
                raise ValueError("the parts k, e and d are needed")
            return cls(*(tuple(int(n) for n in parts[name[0]].split(",")) for name in FIELDS))
        except UsageError:
            raise
        except (ValueError, IndexError) as error:
            raise UsageError(
                f"{quoted(text)} is not a subnet of a MobileNetV3 space ({brief(str(error), 100)}). Write "
                "kernels and expand ratios per block and depths per stage, such as k3,5,7,3-e3,6,4,3-d2,1."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """A dictionary of lists of numbers; :meth:`from_json` reads it."""
        return {name: list(getattr(self, name)) for name in FIELDS}

    @classmethod
    def from_json(cls, data: str | Mapping[str, Any]) -> MobileNetSubnet:
        """Read what :meth:`to_json` gave, as a dictionary or as JSON text.

        Raises:
            UsageError: a field is missing or unknown, or the text is not JSON.
        """
        return cls(**json_fields(cls, data, "A subnet of a MobileNetV3 space"))
