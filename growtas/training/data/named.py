"""Data sets that timm knows by name, ``torch/*`` and ``hfds/*``, with their labels checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from growtas.errors import UsageError, nearest
from growtas.training.data.sources import HeldImages, HubImages, ImageSource, PathImages, check_labels

TIMM_NAMES = (
    "torch/cifar10",
    "torch/cifar100",
    "torch/mnist",
    "torch/kmnist",
    "torch/fashion_mnist",
    "torch/qmnist",
    "torch/imagenet",
    "torch/inaturalist",
    "torch/places365",
    "torch/image_folder",
    "hfds/OWNER/NAME",
)
STREAMS = ("tfds", "wds", "hfids")


def check_name(name: str, root: str | None) -> None:
    """Refuse a name that no data set has.

    Args:
        name: as the user wrote it.
        root: the folder that a ``torch/*`` data set is stored in.

    Raises:
        UsageError: the name is unknown (the nearest is named), is a stream, or needs a folder.
    """
    known = ("digits", "glyphs", "typefaces", "folder:PATH", "packed:PATH", *TIMM_NAMES)
    prefix, _, rest = name.partition("/")
    if prefix in STREAMS and rest:
        raise UsageError(
            f"{name!r} is a stream; training needs images by number, to resume in the middle of an epoch. "
            "Use 'hfds/' or 'torch/' data sets, or a folder."
        )
    if prefix == "torch" and name not in TIMM_NAMES or prefix not in ("torch", "hfds") or not rest:
        remedy = f" That is a folder: write folder:{name}." if Path(name).is_dir() else nearest(name, known)
        raise UsageError(f"There is no data set {name!r}.{remedy}")
    if prefix == "torch" and root is None:
        raise UsageError(f"{name!r} needs data_folder=FOLDER, where it is stored or downloaded to.")


def read_named(name: str, root: str | None, download: bool) -> tuple[ImageSource, ImageSource]:
    """The training and the test part of a data set that timm knows.

    Args:
        name: that :func:`check_name` accepts.
        root: the folder that it is stored in; the hub's cache where None.
        download: fetch it into that folder.

    Raises:
        UsageError: it is not there, or its labels are not 0 to the number of classes minus one.
    """
    train = _source(name, "train", root, download)
    try:
        test = _source(name, "validation", root, download)
    except UsageError:
        test = _source(name, "test", root, download)  # hubs call it either way
    check_labels(name, train, test)
    return train, test


def _source(name: str, part: str, root: str | None, download: bool) -> ImageSource:
    dataset = _create(name, part, root, download)
    words = f"{name}, part {part}"
    reader = getattr(dataset, "reader", None)
    if reader is not None:
        if reader.label_key not in reader.dataset.column_names:
            raise UsageError(
                f"{name!r} has no column {reader.label_key!r} of labels, only "
                f"{', '.join(reader.dataset.column_names)}."
            )
        labels = _whole(reader.dataset[reader.label_key], words)
        return HubImages(reader, words, labels, sorted(reader.class_to_idx, key=reader.class_to_idx.get))
    if hasattr(dataset, "all_categories"):  # iNaturalist, which lists its files in no order
        classes, index = dataset.all_categories, sorted(dataset.index)
        files = [(os.path.join(dataset.root, classes[label], file), label) for label, file in index]
    else:
        classes = [each if isinstance(each, str) else ", ".join(each) for each in dataset.classes]
        files = getattr(dataset, "samples", None) or getattr(dataset, "imgs", None)
    if files:  # opened here: torchvision's own reader clips grey of 16 bits
        return PathImages("", [str(path) for path, _ in files], [label for _, label in files], classes)
    targets = dataset.targets
    if getattr(targets, "ndim", 1) == 2:  # QMNIST keeps more than the digit
        targets = targets[:, 0]
    return HeldImages(dataset, words, _whole(targets, words), classes)


def _whole(labels: Iterable[Any], part: str) -> list[int]:
    """Labels as whole numbers; text, nothing, fractions and lists are none."""
    found = []
    for index, label in enumerate(labels):
        label = getattr(label, "item", lambda label=label: label)()
        if isinstance(label, bool) or not isinstance(label, int):
            raise UsageError(
                f"Image {index} of {part} has the label {label!r}; labels must be whole numbers."
            )
        found.append(label)
    return found


def _create(name: str, split: str, root: str | None, download: bool) -> Any:
    from timm.data import create_dataset

    if download:  # only where it is not there yet: torchvision's iNaturalist refuses to fetch it again
        with suppress(UsageError):
            return _create(name, split, root, False)
    try:
        return create_dataset(name, root=root, split=split, download=download or None)
    except ImportError as error:
        raise UsageError(f"{name!r} needs a package that is not installed ({error}).") from error
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"{name!r}, part {split!r}, could not be opened in {root or 'the default folder'}: {reason} "
            "Check data_folder, or pass download=True."
        ) from error
