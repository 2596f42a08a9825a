"""The table of search spaces that ``growtas spaces`` prints. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from growtas import bounds, cost
from growtas.space import Space, load_space, preset_names

# Of the data that a preset is for; 1000 for the others.
CLASSES = {"digits": 10, "digits-mobilenet": 10, "glyphs": 62, "typefaces": 21}
COLUMNS = {  # what the families choose, and its column's title, by the choice that groups their subnets
    "embed_dim": {
        "embed_dim": "embed_dim",
        "num_heads": "heads",
        "mlp_ratio": "MLP ratio",
        "depth": "depth",
        "image_size": "image, px",
        "patch_size": "patch, px",
    },
    "expand": {
        "kernel": "kernel",
        "expand": "expand",
        "depth": "depth of a stage",
        "widths": "widths",
        "image_size": "image, px",
    },
}


@bounds.bounded(num_classes=bounds.CLASSES)
def spaces(space: str | None = None, num_classes: int | None = None) -> None:
    """The search spaces that come with growtas, or one space or YAML file in detail.

    Args:
        space: a preset or the path of a YAML file; all presets where not given.
        num_classes: outputs of the head, which count as parameters (1000; digits 10, glyphs 62,
            typefaces 21).
    """
    tables: dict[str, list[tuple[str, ...]]] = {}  # by family: the first choice tells it
    for name in [space] if space else preset_names():
        found = load_space(name)
        choices = COLUMNS[found.group_axis]
        header = ("space", "subnets", "parameters", *choices.values())
        tables.setdefault(found.group_axis, [header]).append(_space_row(found, list(choices), num_classes))
    for number, rows in enumerate(tables.values()):
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        print("\n" * bool(number), end="")
        for row in rows:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _space_row(space: Space, choices: Sequence[str], num_classes: int | None) -> tuple[str, ...]:
    classes = num_classes or CLASSES.get(space.name, 1000)
    low, high = cost.parameter_range(space, classes)
    values = (getattr(space, name) for name in choices)
    listed = (", ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)
    return (space.name, f"{space.count():,}", f"{low:,} to {high:,} ({classes} classes)", *listed)
