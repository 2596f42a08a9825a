"""A subnet of a transformer space: one architecture, frozen, with a text and a JSON form. No torch."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growtas.errors import UsageError, brief, quoted
from growtas.spaces.base import json_fields


def whole(name: str, value: Any) -> int:
    """A size as an int. Raises: UsageError: it is not whole, such as 2.9; 36.0 is 36."""
    if type(value) is int:  # most are, and a search makes millions of subnets
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value // 1:
        raise UsageError(f"{name}={quoted(value)} of a subnet is no whole number.")
    return int(value)


def plain_number(value: float) -> int | float:
    """3.0 as 3, 3.5 as 3.5: so that strings and JSON are short and equal values look equal.

    Raises: TypeError, ValueError, OverflowError: it is no finite number.
    """
    if not isinstance(value, int | float | numbers.Real):
        raise TypeError(f"{quoted(value)} is none")
    return int(value) if value == int(value) else float(value)


@dataclass(frozen=True)
class Subnet:
    """One architecture of a space.

    Args:
        embed_dim: channels of the residual stream.
        depth: number of blocks.
        num_heads: attention heads of each block, ``depth`` entries.
        mlp_ratio: hidden width of each MLP over embed_dim, ``depth`` entries.

    Raises:
        UsageError: the per-layer lists do not have ``depth`` entries, or a number is not positive.

    Example:
        >>> str(Subnet(216, 2, (3, 4), (3.5, 4)))
        'd216-h3,4-r3.5,4'
    """

    embed_dim: int
    depth: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]

    def __post_init__(self) -> None:
        try:
            for name in ("embed_dim", "depth"):
                object.__setattr__(self, name, whole(name, getattr(self, name)))
            object.__setattr__(self, "num_heads", tuple(whole("num_heads", h) for h in self.num_heads))
            object.__setattr__(self, "mlp_ratio", tuple(plain_number(r) for r in self.mlp_ratio))
        except UsageError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"num_heads and mlp_ratio of a subnet are lists of numbers: {error}.") from error
        for name in ("num_heads", "mlp_ratio"):
            if len(getattr(self, name)) != self.depth:
                raise UsageError(
                    f"A subnet of depth {quoted(self.depth)} needs {quoted(self.depth)} entries in {name}, "
                    f"but {len(getattr(self, name))} were given."
                )
        if min(self.embed_dim, self.depth, *self.num_heads, *self.mlp_ratio) <= 0:
            raise UsageError(
                f"Every size of a subnet must be positive, but {brief(str(self), 200)} was given."
            )

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """MLP width of each block: ``int(embed_dim * mlp_ratio)``, as the published code rounds."""
        return tuple(int(self.embed_dim * ratio) for ratio in self.mlp_ratio)

    def __str__(self) -> str:
        heads = ",".join(str(h) for h in self.num_heads)
        ratios = ",".join(str(r) for r in self.mlp_ratio)
        return f"d{self.embed_dim}-h{heads}-r{ratios}"

    @classmethod
    def parse(cls, text: str) -> Subnet:
        """Read the compact form that ``str(subnet)`` writes.

        Args:
            text: such as ``"d216-h3,4-r3.5,4"``.

        Raises:
            UsageError: the text does not have that form.
        """
        try:
            parts = {part[0]: part[1:] for part in text.strip().split("-")}
            if sorted(parts) != ["d", "h", "r"]:
                raise ValueError("the parts d, h and r are needed")
            heads = tuple(int(h) for h in parts["h"].split(","))
            ratios = tuple(float(r) for r in parts["r"].split(","))
            return cls(int(parts["d"]), len(heads), heads, ratios)
        except UsageError:
            raise
        except (ValueError, IndexError, OverflowError) as error:
            raise UsageError(
                f"{quoted(text)} is not a subnet ({brief(str(error), 100)}). "
                "Write embed_dim, heads and MLP ratios per layer, such as d216-h3,4-r3.5,4."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain numbers and lists; :meth:`from_json` reads it."""
        return {
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": list(self.num_heads),
            "mlp_ratio": list(self.mlp_ratio),
        }

    @classmethod
    def from_json(cls, data: str | Mapping[str, Any]) -> Subnet:
        """Read what :meth:`to_json` gave, as a dictionary or as JSON text.

        Raises:
            UsageError: a field is missing or unknown, or the text is not JSON.
        """
        return cls(**json_fields(cls, data, "A subnet"))
