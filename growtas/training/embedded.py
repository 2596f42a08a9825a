"""The data that a space's name stands for. No torch."""

from __future__ import annotations

from growtas.errors import UsageError

EMBEDDED = ("digits", "glyphs", "typefaces")
"""Data sets without files. A space is named after one if it is called like it, or like ``digits-wide``."""


def data_for(space: str, data: str | None) -> str:
    """The data of a run: what is given, or the embedded set that the space is named after.

    Args:
        space: its name.
        data: as the user wrote it; None where it is not given.

    Raises:
        UsageError: none is given, and the space is named after none.
    """
    if data is not None:
        return data
    named = space.partition("-")[0]
    if named not in EMBEDDED:
        raise UsageError(
            f"The space {space!r} needs data: give data='folder:PATH' (--data folder:PATH) with "
            "PATH/train/CLASS/image.jpg and PATH/val/CLASS/image.jpg, or a name such as 'torch/cifar10'. "
            f"Only a space named after {', '.join(EMBEDDED[:-1])} or {EMBEDDED[-1]}, such as "
            "digits-mobilenet, brings its own."
        )
    return named
