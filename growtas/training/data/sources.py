"""Images by number, of files, torchvision and hub data sets. None ever stands in for another."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from growtas.errors import UsageError
from growtas.training.data.decode import content, read_rgb
from growtas.training.data.jpeg import jpeg_pixels

Box = Callable[[int, int], Sequence[int]]  # of height and width: the top, left, height and width of a part


class ImageSource(ABC):
    """Images by number, each with its label.

    Args:
        labels: of every image, 0 to the number of classes minus one.
        classes: names, in the order of the labels; empty where the data has none.
    """

    def __init__(self, labels: Sequence[int], classes: Sequence[str] = ()) -> None:
        self.labels = list(labels)
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """How an error names an image: the path of its file, where it has one."""

    @abstractmethod
    def open(self, index: int) -> str | IO[bytes] | Image.Image:
        """The path of an image's file, its open file, or the image itself."""

    def image(self, index: int) -> Image.Image:
        """One image as 8-bit RGB. Raises: growtas.training.data.decode.UnreadableImage: it is torn."""
        return read_rgb(self.open(index), self.name(index))

    def pixels(self, index: int, box: Box | None = None) -> Tensor:
        """One image as (H, W, 3) uint8, a JPEG by the faster decoder; raises as :meth:`image` does.

        Args:
            index: of the image.
            box: which part of it is wanted, given its height and width; all of it where None.
        """
        opened, pixels = self.open(index), None
        if not isinstance(opened, Image.Image):
            data = content(opened, self.name(index))
            opened, pixels = io.BytesIO(data), jpeg_pixels(data)
        if pixels is None:
            pixels = torch.from_numpy(np.array(read_rgb(opened, self.name(index))))
        if box is None:
            return pixels
        top, left, height, width = box(*pixels.shape[:2])
        return pixels[top : top + height, left : left + width]


def printable(path: str | os.PathLike) -> str:
    """A path in characters that can be printed on one line, whatever its bytes are."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def check_labels(name: str, train: ImageSource, test: ImageSource) -> None:
    """Raises: UsageError: the parts of a data set differ in their classes, or a label is none of them."""
    if train.classes != test.classes:
        raise UsageError(
            f"{name!r} has other classes in its training than in its test part: {len(train.classes):,} and "
            f"{len(test.classes):,}, first {_first_other(train.classes, test.classes)}."
        )
    count = len(train.classes) or max(train.labels, default=-1) + 1
    for part, source in (("training", train), ("test", test)):
        if not source.labels:
            raise UsageError(f"The {part} part of {name!r} holds no images.")
        for index, label in enumerate(source.labels):
            if not 0 <= label < count:
                raise UsageError(
                    f"Image {index} of the {part} part of {name!r} has the label {label}, but the {count} "
                    f"classes are 0 to {count - 1}; a part without labels, often -1, cannot be used."
                )
    if count < 2:
        raise UsageError(f"{name!r} has {count} classes; at least 2 are needed.")


def _first_other(first: Sequence[str], second: Sequence[str]) -> str:
    pairs = zip([*first, None], [*second, None], strict=False)
    return next(f"{one!r} and {other!r}" for one, other in pairs if one != other)


class PathImages(ImageSource):
    """Images of files.

    Args:
        root: folder that the paths are relative to.
        paths: of the files.
        labels, classes: as in :class:`ImageSource`.
    """

    def __init__(
        self, root: str | os.PathLike, paths: Sequence[str], labels: Sequence[int], classes: Sequence[str]
    ) -> None:
        super().__init__(labels, classes)
        self.root = str(Path(root))
        self.paths = list(paths)

    def name(self, index: int) -> str:
        """The path of an image's file, in characters that can be printed."""
        return printable(self.open(index))

    def open(self, index: int) -> str:
        """The path of an image's file."""
        return os.path.join(self.root, self.paths[index])


class HeldImages(ImageSource):
    """Images that a torchvision data set holds in memory.

    Args:
        dataset: of (Pillow image, label), without transforms.
        part: its name, for errors.
        labels, classes: as in :class:`ImageSource`.
    """

    def __init__(self, dataset: Any, part: str, labels: Sequence[int], classes: Sequence[str]) -> None:
        super().__init__(labels, classes)
        self.dataset, self.part = dataset, part

    def name(self, index: int) -> str:
        """The number of an image in the data set."""
        return f"{index} of {self.part}"

    def open(self, index: int) -> Image.Image:
        """The image."""
        return self.dataset[index][0]


class HubImages(ImageSource):
    """Images of a hub's table, through timm's reader.

    Args:
        reader: of timm, which gives (open file, label).
        part: its name, for errors.
        labels, classes: as in :class:`ImageSource`.
    """

    def __init__(self, reader: Any, part: str, labels: Sequence[int], classes: Sequence[str]) -> None:
        super().__init__(labels, classes)
        self.reader, self.part = reader, part

    def name(self, index: int) -> str:
        """The number of an image in the table, and its file's name where the hub tells it."""
        file = self.reader.filename(index)
        return f"{index} of {self.part}{f' ({file})' if file else ''}"

    def open(self, index: int) -> IO[bytes]:
        """The encoded image."""
        return self.reader[index][0]
