"""Images packed into WebDataset shards, read by number.

A part (``train`` or ``val``) is a folder of tar files that any WebDataset reader can read from its beginning,
the ``index.json`` that webdataset's wids reads, and beside each shard a table of where its images lie, so
that training can read any of them, and of an uncompressed one only the rows that it crops. Nothing is written
and no lock is taken: many machines may read one folder.
"""

from __future__ import annotations

import functools
import io
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from growtas.errors import GrowtasError, UsageError
from growtas.training.data.decode import UnreadableImage
from growtas.training.data.sources import Box, ImageSource

PARTS = ("train", "val")
INDEX = "index.json"
COLUMNS = 5  # of a shard's table: first byte, bytes, height, width, label; height 0 of an encoded image
OPEN_SHARDS = 512  # at once, in each process


@functools.lru_cache(OPEN_SHARDS)
def _shard(path: str) -> io.FileIO:
    """An open shard; one that is dropped from here is closed."""
    return open(path, "rb", buffering=0)


class PackedImages(ImageSource):
    """Images of the shards of one part.

    Args:
        folder: of the part.

    Raises:
        UsageError: it holds no packed images, or the packing was not finished.
        GrowtasError: a table does not fit its shard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.index = json.loads((folder / INDEX).read_text())
            self.shards = [entry["url"] for entry in self.index["shardlist"]]
            tables = [np.load(table_path(folder / shard)) for shard in self.shards]
            classes = self.index["classes"]
        except FileNotFoundError as error:
            raise UsageError(
                f"{folder} holds no packed images: {error.filename} is missing. Write them, or go on writing "
                "them, with growtas data pack."
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GrowtasError(
                f"The index of {folder} cannot be read ({error}); pack the images again."
            ) from error
        self.table = np.concatenate(tables)
        self.shard_of = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        super().__init__(self.table[:, 4].tolist(), classes)

    def name(self, index: int) -> str:
        """The key of an image and its shard."""
        return f"{key(index)} of {self._path(index)}"

    def open(self, index: int) -> io.BytesIO | Image.Image:
        """The encoded image, or the image itself."""
        first, size, height, width, _ = self.table[index].tolist()
        data = self._read(index, first, size)
        return Image.fromarray(data.reshape(height, width, 3)) if height else io.BytesIO(data)

    def pixels(self, index: int, box: Box | None = None) -> Tensor:
        """As of any source; of an uncompressed image only the rows of the box are read."""
        first, _, height, width, _ = self.table[index].tolist()
        if not height:
            return super().pixels(index, box)
        top, left, rows, columns = box(height, width) if box else (0, 0, height, width)
        data = self._read(index, first + top * width * 3, rows * width * 3)
        return torch.from_numpy(data.reshape(rows, width, 3)[:, left : left + columns])

    def _path(self, index: int) -> str:
        return os.path.join(self.folder, self.shards[self.shard_of[index]])

    def _read(self, index: int, first: int, size: int) -> np.ndarray:
        data = np.empty(size, np.uint8)
        try:
            count = os.preadv(_shard(self._path(index)).fileno(), [data], first)
        except OSError as error:
            raise self._unreadable(index, error.strerror) from error
        if count != size:
            raise self._unreadable(index, "the file is cut off")
        return data

    def _unreadable(self, index: int, reason: str) -> UnreadableImage:
        remedy = "Copy the shard again, or pack the images again."
        return UnreadableImage(f"The image {self.name(index)} cannot be read: {reason}. {remedy}", reason)


def read_packed(folder: Path) -> tuple[PackedImages, PackedImages]:
    """The training and the test part of a folder that growtas data pack wrote.

    Raises:
        UsageError: it is not there, or not finished.
    """
    if not folder.is_dir():
        raise UsageError(f"The folder {folder} of packed images does not exist.")
    train, test = (PackedImages(folder / part) for part in PARTS)
    return train, test


def key(index: int) -> str:
    """The name that an image's members have in its shard, without the ending."""
    return f"{index:09d}"


def table_path(shard: Path) -> Path:
    """The table beside a shard."""
    return shard.with_suffix(".table.npy")
