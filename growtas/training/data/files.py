"""Data of image files by name: what there is, what was left out, and which images cannot be read."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import PIL
import torch
from torch.utils.data import DataLoader, Dataset

from growtas import atomic
from growtas.errors import GrowtasError, UsageError, command, quoted
from growtas.progress import Progress
from growtas.training.data import folders
from growtas.training.data.decode import UnreadableImage
from growtas.training.data.named import check_name, read_named
from growtas.training.data.packed import read_packed
from growtas.training.data.sources import ImageSource, check_labels
from growtas.training.data.workers import begin_loading, cores

BATCH = 64  # images that a checking process reports on at once


@dataclass
class FileData:
    """The two parts of a data set on disk.

    Args:
        name: as the user wrote it.
        train, test: every image, readable or not.
        digest: of names, sizes and labels; it tells changed data.
        key: as the digest, with the times of change: what a check's result is kept under.
        left_out: how many entries were left out, by the reason.
        unreadable: (part, number) of images that are known to be unreadable, with the reason.
    """

    name: str
    train: ImageSource
    test: ImageSource
    digest: str
    key: str
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: dict[tuple[str, int], str] = field(default_factory=dict)

    def parts(self) -> dict[str, ImageSource]:
        """Both, by name."""
        return {"train": self.train, "test": self.test}

    @property
    def num_classes(self) -> int:
        """Labels are 0 to this minus one."""
        return len(self.train.classes) or max(self.train.labels) + 1

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where the data has no names."""
        return self.train.classes[label] if self.train.classes else str(label)

    def remarks(self, bad: Sequence[tuple[str, int]] = ()) -> str:
        """Classes without test images, and what was left out. Args: bad: (part, number) of images."""
        tested = set(self.test.labels)
        untested = [self.class_name(label) for label in range(self.num_classes) if label not in tested]
        counts = sorted(self.left_out.items(), key=lambda pair: (-pair[1], pair[0]))
        left = [f"{count:,} {reason}" for reason, count in counts]
        left += [f"{len(bad):,} unreadable"] * bool(bad)
        found = f"; no test images of {folders.listed(untested)}" if untested else ""
        return f"{found}; left out: {', '.join(left)}" if left else f"{found}; nothing left out"


def read_files(data: str, data_folder: str | None = None, download: bool = False) -> FileData:
    """List a data set without decoding its images.

    Args:
        data: ``folder:PATH``, ``packed:PATH``, ``torch/NAME`` or ``hfds/OWNER/NAME``.
        data_folder: where the named ones are stored.
        download: let timm fetch it.

    Raises:
        UsageError, GrowtasError: as :func:`growtas.training.data.folders.read_folder` and
            :func:`growtas.training.data.named.read_named`.
    """
    if data.startswith("folder:"):
        return _folder(data, folders.read_folder(_path(data.removeprefix("folder:"))))
    if data.startswith("packed:"):
        train, test = read_packed(_path(data.removeprefix("packed:")))
        check_labels(data, train, test)
        digest = hashlib.blake2b(train.index["digest"].encode(), digest_size=8).hexdigest()
        return FileData(data, train, test, digest, digest)
    check_name(data, data_folder)
    if data == "torch/image_folder":
        return _folder(data, folders.read_folder(_path(data_folder), plain=True))
    train, test = read_named(data, data_folder, download)
    found = hashlib.blake2b(digest_size=8)
    for source in (train, test):
        names = getattr(source, "paths", ())
        found.update(repr([source.labels, [os.path.basename(path) for path in names]]).encode())
    return FileData(data, train, test, found.hexdigest(), f"{found.hexdigest()}-{data_folder}")


def _path(text: str) -> Path:
    """Raises: UsageError: a path cannot name a folder."""
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # for the readers to tell
            os.stat(path)
        return path
    except (RuntimeError, ValueError, OSError) as error:  # an unknown user; a null byte; too long a name
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UsageError(f"The folder {quoted(text)} cannot be: {reason}.") from error


def _folder(name: str, parts: tuple[folders.Listing, folders.Listing]) -> FileData:
    unreadable = {
        (part, number): listing.unreadable[path]
        for part, listing in zip(("train", "test"), parts, strict=True)
        if listing.unreadable
        for number, path in enumerate(listing.paths)
        if path in listing.unreadable
    }
    left_out = parts[0].left_out + parts[1].left_out
    sums = folders.digest(parts), folders.digest(parts, times=True)
    return FileData(name, *(part.images() for part in parts), *sums, left_out, unreadable)


# -- unreadable images -----------------------------------------------------------------------------------


def unreadable_images(files: FileData, mode: str) -> dict[tuple[str, int], str]:
    """The images to leave out: those that cannot be read.

    Args:
        files: the data.
        mode: ``error`` allows none and decodes none; ``skip`` decodes every image once and keeps the result
            in the user's cache, under the names, sizes and times of change of all files.

    Raises:
        UnreadableImage: mode ``error``, and the listing shows an image to be unreadable.
    """
    if mode == "skip":
        kept = _kept(files)
        if kept is None:
            kept = {place: reason for place, _, reason in decoded(files) if reason}
            keep(files, kept)
        return kept
    for (part, number), reason in files.unreadable.items():
        more = len(files.unreadable) - 1
        raise UnreadableImage(
            f"The image {files.parts()[part].name(number)} cannot be read: {reason}"
            f"{f', and {more:,} more are like it' if more else ''}. Repair or remove them, or leave them out "
            f"with bad_images='skip'; {command('data', 'check', files.name)} names all."
        )
    return {}


def decoded(
    files: FileData, workers: int | None = None
) -> Iterator[tuple[tuple[str, int], tuple[int, int], str]]:
    """Decode every image of both parts, in processes, behind a progress bar.

    Args:
        files: the data.
        workers: processes; as many as there are cores where None.

    Yields:
        (part, number), (width, height) in pixels, and why it cannot be read, empty where it can.
    """
    if workers is None:
        workers = min(cores(), (len(files.train) + len(files.test)) // (4 * BATCH))
    images = _Decoded(files)
    loader = DataLoader(
        images,
        BATCH,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=begin_loading,
        generator=torch.Generator(),  # of its own, or checking images would move on the global one
    )
    with Progress(len(images), "decode", "image", images=1) as progress:
        for batch in loader:
            yield from batch
            progress.update(len(batch))


class _Decoded(Dataset):
    def __init__(self, files: FileData) -> None:
        self.parts, self.known = files.parts(), files.unreadable

    def __len__(self) -> int:
        return sum(len(source) for source in self.parts.values())

    def __getitem__(self, index: int) -> tuple[tuple[str, int], tuple[int, int], str]:
        part = "train" if index < len(self.parts["train"]) else "test"
        number = index - (part == "test") * len(self.parts["train"])
        if (part, number) in self.known:
            return (part, number), (0, 0), self.known[part, number]
        try:
            height, width, _ = self.parts[part].pixels(number).shape
            return (part, number), (width, height), ""
        except UnreadableImage as error:
            return (part, number), (0, 0), error.reason


def _kept_path(files: FileData) -> Path:
    own = os.environ.get("GROWTAS_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = Path(own or f"{home}/growtas").expanduser()
    key = hashlib.blake2b(f"{files.key} Pillow {PIL.__version__}".encode(), digest_size=16)
    return base / "images" / f"{key.hexdigest()}.json"


def _kept(files: FileData) -> dict[tuple[str, int], str] | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        rows = json.loads(_kept_path(files).read_text())
        kept = {(part, number): str(reason) for part, number, reason in rows}
        if all(number in range(len(files.parts()[part])) for part, number in kept):
            return kept
    return None


def keep(files: FileData, unreadable: dict[tuple[str, int], str]) -> None:
    """Keep a check's result in the user's cache, for ``bad_images="skip"``.

    Raises:
        GrowtasError: it cannot be written there.
    """
    path = _kept_path(files)
    try:
        atomic.make_folder(path.parent)
        rows = [[*place, reason] for place, reason in unreadable.items()]
        atomic.write_text(path, json.dumps(rows, indent=0))
    except atomic.NotWritten as error:
        raise GrowtasError(
            f"The result of the check cannot be kept as {path}: {error.__cause__.strerror}. Set "
            "GROWTAS_CACHE to a folder that can be written to."
        ) from error
