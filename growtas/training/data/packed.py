"""Images packed into WebDataset shards, read by number.

A part (``train`` or ``val``) is a folder of tar files that any WebDataset reader can read from its beginning,
the ``index.json`` that webdataset's wids reads, and beside each shard a table of where its images lie, so
that training can read any of them, and of an uncompressed one only the rows that it crops. Nothing is written
and no lock is taken: many machines may read one folder.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from growtas.errors import UsageError
from growtas.files import read_json, reading
from growtas.training.data.decode import MOST_BYTES, UnreadableImage
from growtas.training.data.sources import Box, ImageSource

PARTS = ("train", "val")
INDEX = "index.json"
COLUMNS = 6  # of a shard's table: first byte, bytes, height (0: encoded), width, label, CRC-32
FORMER_COLUMNS = 5  # of growtas before it kept checksums
NO_CHECKSUM = -1
MOST_SIDE = 2**20  # pixels; no product of these overflows
PACK_AGAIN = "Copy the folder again, or pack the images again."
OPEN_SHARDS = 512  # at once, in each process


@functools.lru_cache(OPEN_SHARDS)
def _shard(path: str) -> io.FileIO:
    """An open shard; one that is dropped from here is closed."""
    return open(_checked_file(Path(path)), "rb", buffering=0)


def _checked_file(path: Path) -> Path:
    """Raises: FileNotFoundError, OSError: it is a pipe or a device, on which reading would wait."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no file, but a folder, a pipe or a device", str(path))
    return path


def _read_index(folder: Path) -> dict[str, Any]:
    """Raises: FileNotFoundError, GrowtasError: what growtas data pack wrote is damaged."""
    path = folder / INDEX
    with reading(path, "an index of packed images", PACK_AGAIN):
        index = read_json(_checked_file(path))
        shards, classes = index["shardlist"], index["classes"]
        if not (isinstance(shards, list) and shards and isinstance(index["digest"], str)):
            raise ValueError("it names no shards, or no digest")
        for shard in shards:
            name = shard["url"]
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".tar"):
                raise ValueError(f"the shard {name!r:.80} is no file of this folder")
        count = sum(shard["nsamples"] for shard in shards)
        if index.get("images", count) != count:
            raise ValueError(f"its shards have {count:,} images, and {index['images']} were packed")
        if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise ValueError("classes is no list of names")
    return index


def _read_table(folder: Path, shard: Mapping[str, Any]) -> np.ndarray:
    """(images, COLUMNS) of a shard; raises as :func:`_read_index` does."""
    path = table_path(folder / shard["url"])
    with reading(path, "the table of a shard", PACK_AGAIN):
        data = _checked_file(path).read_bytes()
        if shard.get("table", table_digest(data)) != table_digest(data):
            raise ValueError(f"its digest is not the one in {INDEX}")
        try:
            rows = np.load(io.BytesIO(data))
        except MemoryError as error:
            raise ValueError("it claims more rows than it has") from error
        if not isinstance(rows, np.ndarray) or rows.dtype != np.int64 or rows.ndim != 2:
            raise ValueError("it is no table of whole numbers")
        if rows.shape[1] not in (FORMER_COLUMNS, COLUMNS) or len(rows) != shard["nsamples"]:
            raise ValueError(f"it has {len(rows):,} x {rows.shape[1]} numbers for {shard['nsamples']} images")
        first, size, height, width, _ = rows[:, :FORMER_COLUMNS].T
        sides = (height <= MOST_SIDE) & (width <= MOST_SIDE)
        whole = sides & ((height == 0) | (size == 3 * np.where(sides, height * width, 0)))
        if not (whole & (first > 0) & (size > 0) & (size <= MOST_BYTES) & (height >= 0) & (width >= 0)).all():
            raise ValueError("an image has a place or a size that cannot be")
        if rows.shape[1] == FORMER_COLUMNS:
            rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=NO_CHECKSUM)
    return rows


def table_digest(data: bytes) -> str:
    """The digest of a shard's table, for the index. Args: data: the content of its file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class PackedImages(ImageSource):
    """Images of the shards of one part.

    Args:
        folder: of the part.

    Raises:
        UsageError: it holds no packed images, or the packing was not finished.
        GrowtasError: the index or a table is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.index = _read_index(folder)
            tables = [_read_table(folder, shard) for shard in self.index["shardlist"]]
        except FileNotFoundError as error:
            raise UsageError(
                f"{folder} holds no packed images: {error.filename} is missing. Write them, or go on writing "
                "them, with growtas data pack."
            ) from error
        self.shards = [shard["url"] for shard in self.index["shardlist"]]
        self.table = np.concatenate(tables)
        self.shard_of = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        super().__init__(self.table[:, 4].tolist(), self.index["classes"])

    def name(self, index: int) -> str:
        """The key of an image and its shard."""
        return f"{key(index)} of {self._path(index)}"

    def open(self, index: int) -> io.BytesIO | Image.Image:
        """The encoded image, or the image itself."""
        first, size, height, width, *_ = self.table[index].tolist()
        data = self._checked(index, self._read(index, first, size))
        return Image.fromarray(data.reshape(height, width, 3)) if height else io.BytesIO(data)

    def pixels(self, index: int, box: Box | None = None) -> Tensor:
        """As of any source; of an uncompressed image only the rows of the box are read."""
        first, _, height, width, *_ = self.table[index].tolist()
        if not height:
            return super().pixels(index, box)
        top, left, rows, columns = box(height, width) if box else (0, 0, height, width)
        data = self._read(index, first + top * width * 3, rows * width * 3)
        if rows == height:
            self._checked(index, data)
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

    def _checked(self, index: int, data: np.ndarray) -> np.ndarray:
        """The bytes of a whole image. Raises: UnreadableImage: they are not those that were packed."""
        packed = self.table[index, COLUMNS - 1]
        if packed not in (NO_CHECKSUM, zlib.crc32(data)):
            raise self._unreadable(index, "its checksum is wrong")
        return data

    def _unreadable(self, index: int, reason: str) -> UnreadableImage:
        return UnreadableImage(f"The image {self.name(index)} cannot be read: {reason}. {PACK_AGAIN}", reason)


def read_packed(folder: Path) -> tuple[PackedImages, PackedImages]:
    """The training and the test part of a folder that growtas data pack wrote.

    Raises:
        UsageError: it is not there, not finished, or its parts are of two packings.
        GrowtasError: an index or a table is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"The folder {folder} of packed images does not exist.")
    _shard.cache_clear()  # images may have been packed anew since one was opened
    train, test = (PackedImages(folder / part) for part in PARTS)
    if train.index["digest"] != test.index["digest"]:
        raise UsageError(f"The parts {' and '.join(PARTS)} of {folder} are of two packings. {PACK_AGAIN}")
    return train, test


def key(index: int) -> str:
    """The name that an image's members have in its shard, without the ending."""
    return f"{index:09d}"


def table_path(shard: Path) -> Path:
    """The table beside a shard."""
    return shard.with_suffix(".table.npy")
