"""Writes a data set of images as WebDataset shards of small images, once, to be read fast ever after."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from growtas import atomic
from growtas.bounds import IMAGES, PIXELS, PROCESSES, bounded
from growtas.errors import UsageError, nearest
from growtas.files import read_json, reading
from growtas.locks import locked
from growtas.progress import Progress
from growtas.training.data.files import read_files, unreadable_images
from growtas.training.data.packed import COLUMNS, INDEX, PARTS, key, table_digest, table_path
from growtas.training.data.resize import resized
from growtas.training.data.sources import ImageSource
from growtas.training.data.workers import begin_loading, worker_count

FORMATS = ("raw", "jpeg")
JPEG_QUALITY = 95
SHARD_IMAGES = 2048
SETTINGS, LOCK = "packing.json", ".lock"


@bounded(size=PIXELS, workers=PROCESSES, shard_images=IMAGES)
def data_pack(
    data: str | Path,
    out: str | Path,
    size: int = 256,
    format: str = "raw",
    bad_images: str = "error",
    workers: int | None = None,
    shard_images: int = SHARD_IMAGES,
) -> Path:
    """Pack the images of a data set into WebDataset shards, for ``data="packed:OUT"``.

    An image whose shorter side is longer than ``size`` is shrunk to it; a smaller one stays as it is. Images
    keep their order and classes their numbers, so training holds out the same images as from the folder. A
    shard is written whole or not at all; the same call goes on after an interruption.

    Args:
        data: a folder with train/CLASS/* and val/CLASS/*, or a name such as ``folder:PATH``.
        out: folder to write.
        size: of the shorter side in pixels; the evaluation at 224 pixels crops out of 256.
        format: ``raw`` stores the bytes of the pixels, as .npy (about 0.26 MB per photograph at 256 pixels,
            350 GB for ImageNet); ``jpeg`` encodes them with quality 95, to be decoded at each use.
        bad_images: ``error``, or ``skip`` to leave out those that cannot be read.
        workers: processes; all cores where None.
        shard_images: images of each shard.

    Returns:
        The folder written.

    Raises:
        UsageError: the data or a setting makes no sense, or ``out`` holds other images.
        UnreadableImage: an image cannot be read, and ``bad_images`` is ``error``.
        DeviceFull: no space is left; free some and repeat the call.
    """
    if format not in FORMATS:
        raise UsageError(f"format={format!r} is unknown.{nearest(str(format), FORMATS)}")
    for name, value in (("size", size), ("shard_images", shard_images)):
        if value < 1:
            raise UsageError(f"{name}={value} is not possible; it must be 1 or more.")
    out = Path(out).expanduser()
    data = f"folder:{data}" if isinstance(data, Path) or Path(data).expanduser().is_dir() else data
    files = read_files(data)
    bad = unreadable_images(files, bad_images)
    settings = {"digest": files.digest, "size": size, "format": format, "left_out": len(bad)}
    settings["shard_images"] = shard_images
    _check_free(out, settings)
    with locked(out / LOCK, f"Another process is packing images into {out}; wait for it.", remove=True):
        if not _check_free(out, settings):
            atomic.write_text(out / SETTINGS, json.dumps(settings))
        for part, source in zip(PARTS, (files.train, files.test), strict=True):
            which = "train" if part == "train" else "test"
            numbers = [number for number in range(len(source)) if (which, number) not in bad]
            atomic.make_folder(out / part)
            shards = _Shards(out / part, source, numbers, size, format, shard_images)
            _write(shards, part, worker_count(workers))
            lines = {
                "wids_version": 1,
                "name": f"{out.name} {part}",
                "shardlist": shards.listing(),
                "images": len(numbers),
                "classes": list(source.classes or files.train.classes),
                "digest": f"{files.digest} {size} {format} {len(bad)}",
            }
            atomic.write_text(out / part / INDEX, json.dumps(lines, indent=1))
    return out


def _check_free(out: Path, settings: dict) -> bool:
    """Return whether a folder was begun for the same. Raises: UsageError: it holds something else."""
    path = out / SETTINGS
    if path.exists():
        with reading(path, "the settings of a packing", "Choose another folder, or delete it."):
            begun = read_json(path)
        other = next((name for name in settings if begun.get(name) != settings[name]), None)
        if other:
            raise UsageError(
                f"{out} holds images that were packed with {other}={begun.get(other)!r} and not "
                f"{settings[other]!r}; choose another folder, or delete it."
            )
        return True
    if out.exists() and any(each.name != LOCK for each in out.iterdir()):
        raise UsageError(f"{out} holds other files; choose a new folder for the packed images.")
    return False


def _write(shards: _Shards, part: str, workers: int) -> None:
    for unfinished in shards.folder.glob(".*.tmp"):  # of a process that was killed
        with suppress(OSError):
            unfinished.unlink()
    loader = DataLoader(
        shards,
        batch_size=None,
        num_workers=0 if len(shards) == 1 else min(workers, len(shards)),
        worker_init_fn=begin_loading,
        generator=torch.Generator(),  # of its own, or packing would move on the global one
    )
    with Progress(len(shards.numbers), f"pack {part}", "image", images=1) as progress:
        for count in loader:
            progress.update(count)


class _Shards(Dataset):
    """Taking an item writes that shard, where it is not there yet, and gives its number of images."""

    def __init__(
        self, folder: Path, source: ImageSource, numbers: list[int], size: int, format: str, each: int
    ) -> None:
        self.folder, self.source, self.numbers = folder, source, numbers
        self.size, self.format, self.each = size, format, each

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.each)

    def name(self, shard: int) -> str:
        return f"{shard:06d}.tar"

    def listing(self) -> list[dict]:
        tables = (table_path(self.folder / self.name(i)).read_bytes() for i in range(len(self)))
        return [
            {"url": self.name(i), "nsamples": len(self.members(i)), "table": table_digest(table)}
            for i, table in enumerate(tables)
        ]

    def members(self, shard: int) -> range:
        return range(shard * self.each, min((shard + 1) * self.each, len(self.numbers)))

    def __getitem__(self, shard: int) -> int:
        path, members = self.folder / self.name(shard), self.members(shard)
        if not table_path(path).exists():
            with atomic.replace(path) as file, tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
                rows = np.array([self._add(tar, member) for member in members], np.int64)
            with atomic.replace(table_path(path)) as temporary, open(temporary, "wb") as file:
                np.save(file, rows.reshape(-1, COLUMNS))
        return len(members)

    def _add(self, tar: tarfile.TarFile, member: int) -> tuple[int, ...]:
        """Write one image and its label. Returns: its row of the table."""
        number = self.numbers[member]
        pixels = self.source.pixels(number)
        height, width = pixels.shape[:2]
        if min(height, width) > self.size:
            scale = self.size / min(height, width)
            height, width = (round(length * scale) for length in (height, width))
            pixels = resized(pixels, height, width, "bicubic")
        image = np.ascontiguousarray(pixels.numpy())
        label = self.source.labels[number]
        file = io.BytesIO()
        if self.format == "raw":
            np.save(file, image)
        else:
            Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
        data = file.getvalue()
        end = self._member(tar, f"{key(member)}.{'npy' if self.format == 'raw' else 'jpg'}", data)
        self._member(tar, f"{key(member)}.cls", str(label).encode())
        if self.format == "raw":
            return end - image.nbytes, image.nbytes, height, width, label, zlib.crc32(image)
        return end - len(data), len(data), 0, 0, label, zlib.crc32(data)

    def _member(self, tar: tarfile.TarFile, name: str, data: bytes) -> int:
        """Returns: the place after the last of its bytes."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        first = tar.offset + tarfile.BLOCKSIZE  # its header is one block
        tar.addfile(info, io.BytesIO(data))
        return first + len(data)
