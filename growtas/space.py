"""Search spaces of every family by name, file or plain values, and private random streams. No torch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas import plain_yaml
from growtas.errors import UsageError, nearest, quoted
from growtas.spaces.choices import listed
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.spaces.model import ModelSpace
from growtas.spaces.vit import SearchSpace
from growtas.subnet import Subnet

__all__ = [
    "MobileNetSpace",
    "ModelSpace",
    "SearchSpace",
    "Space",
    "Subnet",
    "load_space",
    "preset_names",
    "seeded_rng",
    "space_from_dict",
]

PRESET_FOLDER = Path(__file__).parent / "presets"
Space = SearchSpace | MobileNetSpace  # of either family
FAMILIES: dict[str, type[SearchSpace] | type[MobileNetSpace]] = {
    "vit": SearchSpace,
    "mobilenetv3": MobileNetSpace,
}


def preset_names() -> tuple[str, ...]:
    """Names of the spaces that come with growtas."""
    return tuple(sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml")))


def space_from_dict(data: Mapping[str, Any]) -> Space:
    """Build and check a space of the family that its values name (``vit`` where they name none).

    A run that fine-tunes one model has a :class:`ModelSpace` in the place of a space.

    Args:
        data: plain values, as a YAML file or ``space.to_dict()`` gives them.

    Raises:
        UsageError: the family is unknown, or its space refuses the values.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"A space is given by its fields, not by {quoted(data)}.")
    family = data.get("family", "vit")
    if family == ModelSpace.family:
        return ModelSpace.from_dict(data)
    if not isinstance(family, str) or family not in FAMILIES:
        raise UsageError(f"There is no family {quoted(family)} of spaces.{nearest(str(family), FAMILIES)}")
    return FAMILIES[family].from_dict(data)


def load_space(space: str | Path | Space) -> Space:
    """Load a search space.

    Args:
        space: the name of a preset (:func:`preset_names`), the path of a YAML file, or a space.

    Returns:
        The checked space.

    Raises:
        UsageError: no such preset or file, or the file does not describe a space.

    Example:
        >>> load_space("autoformer-tiny").count()
        1056964608
    """
    if isinstance(space, Space):
        return space
    path = PRESET_FOLDER / f"{space}.yaml"
    if str(space) not in preset_names():
        path = Path(space)
        if not path.suffix and not path.exists():
            raise UsageError(f"There is no space {str(space)!r}.{nearest(str(space), preset_names())}")
        if not path.is_file():
            raise UsageError(f"The space file {path} does not exist. Presets: {listed(preset_names())}.")
    try:
        data = plain_yaml.read(path)
    except plain_yaml.NotPlain as error:
        raise UsageError(f"{path} {error}.") from error
    except OSError as error:
        raise UsageError(f"The space file {path} cannot be read ({error.strerror}).") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold the fields of a space, one per line, such as 'embed_dim: [192]'.")
    return space_from_dict({"name": path.stem, **data})


def seeded_rng(*key: object) -> random.Random:
    """A private generator that depends on the key alone: the same on every rank, run and platform.

    Args:
        key: values whose ``repr`` identifies the stream, such as a purpose, a seed and a step.
    """
    return random.Random(repr(key))  # seeding with text goes through SHA-512: no hash randomisation
