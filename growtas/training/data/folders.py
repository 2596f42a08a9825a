"""Class folders in ImageNet's layout, listed in full: every image, and what was left out and why.

Why not timm's or torchvision's reader: the one merges nested folders by their last name and drops classes
without images, the other makes a class of a hidden folder and numbers each part on its own.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growtas.errors import GrowtasError, UsageError
from growtas.progress import track
from growtas.training.data.sources import PathImages, printable

TEST_FOLDERS = ("val", "validation", "valid", "eval", "test")
ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .gif .ppm .pgm .pbm .pnm .avif .jp2".split()
)
LITTER = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
"""Folders that systems make, hidden on their own."""

MOST_DEPTH, MOST_VISITS = 100, 16  # of folders in folders; of one folder, by links
THREADS = 16  # they wait for the disk, or for a network's


@dataclass
class Listing:
    """The images of one part, ``train`` or ``val``, in their order.

    Args:
        folder: of the part.
        classes: names of its class folders, in the order of the labels.
        paths: of the images, relative to the folder.
        labels: the class of each.
        stamps: size in bytes and time of change in ns of each.
        left_out: how many entries were left out, by the reason.
        unreadable: reasons of images that cannot be read as the folder's entries show, by path.
    """

    folder: Path
    classes: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    stamps: list[tuple[int, int]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)

    def images(self) -> PathImages:
        """The images by number."""
        return PathImages(self.folder, self.paths, self.labels, self.classes)


def read_folder(path: Path, plain: bool = False) -> tuple[Listing, Listing]:
    """List PATH/train/CLASS/** and PATH/val/CLASS/**, and check that they make one data set.

    The class is the folder right below the part; images in folders below it belong to it too. Labels follow
    the natural order of the class names (``class2`` before ``class10``).

    Args:
        path: of the data set; the test part is the first of :data:`TEST_FOLDERS`.
        plain: order names letter by letter, as torchvision's reader does (``class10`` before ``class2``).

    Returns:
        The training and the test part.

    Raises:
        UsageError: a folder is missing or empty, a class has no training image, or the class lists differ.
        GrowtasError: a folder cannot be listed.
    """
    try:
        return _read_folder(path, plain)
    except OSError as error:
        raise GrowtasError(
            f"{printable(error.filename or path)} cannot be listed: {error.strerror}."
        ) from error


def _read_folder(path: Path, plain: bool) -> tuple[Listing, Listing]:
    layout = f"Expected {path}/train/CLASS/image.jpg and {path}/val/CLASS/image.jpg."
    if not path.is_dir():
        raise UsageError(f"The data folder {path} does not exist. {layout}")
    if not any(path.iterdir()):
        raise UsageError(f"The data folder {path} is empty. {layout}")
    if not (path / "train").is_dir():
        raise UsageError(f"The data folder {path} has no folder 'train'. {layout}")
    tests = [path / name for name in TEST_FOLDERS if (path / name).is_dir()]
    if not tests:
        raise UsageError(
            f"The data folder {path} has none of the folders {', '.join(TEST_FOLDERS)}, "
            f"which hold the images to test on. {layout}"
        )
    train, test = (_list_part(part, _plain if plain else _natural) for part in (path / "train", tests[0]))
    _check_classes(train, test, layout)
    for other in tests[1:]:
        test.left_out[f"unused folder ({other.name})"] += 1
    return train, test


def digest(parts: Sequence[Listing], times: bool = False) -> str:
    """A short hash of what a data set holds.

    Args:
        parts: their paths, sizes in bytes and labels enter.
        times: let the times of change enter too, which a copy of the folder may not keep.
    """
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        for path, label, (size, time) in zip(part.paths, part.labels, part.stamps, strict=True):
            found.update(b"%s\0%d\0%d\0%d\0" % (os.fsencode(path), label, size, time if times else 0))
        found.update(b"\0")
    return found.hexdigest()


def _list_part(folder: Path, order: Callable[[str], Any]) -> Listing:
    part = Listing(folder)
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if _hidden(entry.name):
            part.left_out["hidden"] += 1
        elif entry.is_dir():
            part.classes.append(entry.name)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            raise GrowtasError(
                f"{printable(entry.path)} is a link to a folder or a file that is not there. Without it a "
                "class may be missing: put it back, or remove the link."
            )
        else:
            part.left_out["beside the class folders"] += 1
    part.classes.sort(key=order)
    with ThreadPoolExecutor(THREADS) as threads:
        walks = threads.map(lambda name: _Walk(folder, name), part.classes)
        walks = track(walks, f"list {folder.name}", "class", len(part.classes))
        found = [
            (order(path), path, label, stamp)
            for label, walk in enumerate(walks)
            for path, stamp in _taken(part, walk)
        ]
    found.sort(key=lambda image: image[0])
    part.paths, part.labels, part.stamps = ([image[i] for image in found] for i in (1, 2, 3))
    return part


def _taken(part: Listing, walk: _Walk) -> list[tuple[str, tuple[int, int]]]:
    part.left_out += walk.left_out
    part.unreadable |= walk.unreadable
    return walk.images


class _Walk:
    """One class folder with all below it: (path, (size, time of change)) of its images, in no order."""

    def __init__(self, folder: Path, name: str) -> None:
        self.images: list[tuple[str, tuple[int, int]]] = []
        self.left_out: Counter[str] = Counter()
        self.unreadable: dict[str, str] = {}
        self.visits: Counter[tuple[int, int]] = Counter()
        self._enter(str(folder), name, frozenset(map(_place, (folder, *folder.resolve().parents))))

    def _enter(self, root: str, inner: str, above: frozenset[tuple[int, int]]) -> None:
        place = _place(os.path.join(root, inner))
        above |= {place}
        self.visits[place] += 1
        if self.visits[place] > MOST_VISITS or inner.count("/") > MOST_DEPTH:
            raise GrowtasError(
                f"{printable(os.path.join(root, inner))} is {inner.count('/'):,} folders deep, or links lead "
                f"to it over {MOST_VISITS} times; remove links that go round."
            )
        with os.scandir(os.path.join(root, inner)) as entries:
            for entry in entries:
                path = f"{inner}/{entry.name}"
                ending = os.path.splitext(entry.name)[1].lower()
                if _hidden(entry.name):
                    self.left_out["hidden"] += 1
                elif entry.is_dir():
                    if _place(entry.path) in above:
                        self.left_out["links to a folder above"] += 1
                    else:
                        self._enter(root, path, above)
                elif ending not in ENDINGS:
                    self.left_out[f"of ending {ending}" if ending else "without ending"] += 1
                elif entry.is_file():
                    state = entry.stat()
                    self.images.append((path, (state.st_size, state.st_mtime_ns)))
                    if not state.st_size:
                        self.unreadable[path] = "it is empty"
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    self.images.append((path, (0, 0)))
                    self.unreadable[path] = "it is a link to a file that is not there"
                else:
                    self.left_out["pipes, sockets or devices"] += 1


def _place(path: str | Path) -> tuple[int, int]:
    """The identity of a folder, the same for every link to it."""
    state = os.stat(path)
    return state.st_dev, state.st_ino


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def _natural(name: str) -> tuple[list, str]:
    """Natural order, as timm's reader sorts, then the name: ``a`` ties with ``A``, ``1`` with ``01``."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name.lower())], name


def _plain(path: str) -> tuple[str, str, str]:
    return path.partition("/")[0], *os.path.split(path)


def _check_classes(train: Listing, test: Listing, layout: str) -> None:
    if len(train.classes) < 2:
        beside = train.left_out["beside the class folders"]
        files = f" (and {beside:,} files beside them)" if beside else ""
        raise UsageError(
            f"{train.folder} holds {len(train.classes)} class folders{files}; at least 2 are needed. {layout}"
        )
    for part in (train, test):
        for name in part.classes:
            if not name.isprintable():
                raise UsageError(
                    f"{part.folder} has a class folder named {name!r}; rename it to printable text."
                )
    for part, other in ((test, train), (train, test)):
        known = set(other.classes)
        unknown = [name for name in part.classes if name not in known]
        if unknown:
            raise UsageError(
                f"{part.folder} has {listed(unknown)}, which {other.folder} lacks. Both need the same class "
                f"folders; one without images may stand in {test.folder}, empty."
            )
    if not test.paths:
        raise UsageError(f"{test.folder} holds no images. {layout}")
    counts = Counter(train.labels)
    empty = [name for label, name in enumerate(train.classes) if not counts[label]]
    if empty:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in train.left_out.items())
        raise UsageError(
            f"{train.folder} has no images in {listed(empty)}{f' (left out: {reasons})' if reasons else ''}. "
            "A class needs training images: add some, or remove its folder from both parts."
        )


def listed(names: Sequence[str]) -> str:
    """``the classes a, b``, five at most. Args: names: of classes."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return f"the class{'es' if len(names) > 1 else ''} {', '.join(names[:5])}{more}"
