"""Data by name (embedded, ``folder:PATH`` or timm's), cut into training, search and test split.

The search split is held out of the training images, so that a search never ranks subnets by images they were
trained on (the published code does); the test split is left for the very end.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from growtas.errors import UsageError
from growtas.space import SearchSpace, seeded_rng
from growtas.training.data.files import read_files, unreadable_images
from growtas.training.data.images import EVALUATION_CROP, FileImages, MemoryImages, evaluation_batch
from growtas.training.data.rendered import RENDERED, moments, read_rendered, rendered, short_hash, with_noise

if TYPE_CHECKING:
    from growtas.training.config import TrainConfig

Split = MemoryImages | FileImages

SEARCH_PER_CLASS = 100  # as many per class as the published search looks at
SEARCH_SHARE = 0.1
DIGITS_SEARCH_SHARE = 0.2  # a tenth of the digits would be 14 per class: too few to rank subnets by
DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True, repr=False)
class Splits:
    """The images of a run.

    Args:
        name: as the user wrote it.
        num_classes: labels are 0 to this minus one.
        train: what training draws from.
        search: held out from the training images; what the search ranks subnets by.
        test: touched once, at the end.
        classes: their names, in the order of the labels; empty where the data has none.
        digest: a short hash of the data: of the pixels of embedded sets, else of names, sizes and labels.
        remarks: what else was found, such as what was left out; the end of a sentence.
        shares: whether the images of the search are training images too.
    """

    name: str
    num_classes: int
    train: Split
    search: Split
    test: Split
    classes: tuple[str, ...] = ()
    digest: str = ""
    remarks: str = ""
    shares: bool = False

    def sharing(self) -> Splits:
        """The same splits, but with the search images trained on as well, as the published code does."""
        train, search = copy.copy(self.train), self.search
        if isinstance(train, MemoryImages):
            train.images = torch.cat([train.images, search.images])
            train.labels = torch.cat([train.labels, search.labels])
        else:
            pairs = zip(train.indices + search.indices, train.labels + search.labels, strict=True)
            train.indices, train.labels = map(list, zip(*sorted(pairs), strict=True))
        return dataclasses.replace(self, train=train, shares=True)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in ("train", "search", "test"))
        return f"Splits({self.name!r}: {self.num_classes:,} classes, images {sizes})"

    def summary(self) -> dict[str, int | str]:
        """Sizes and the digest, to recognise the data by when a run is resumed."""
        return {
            "num_classes": self.num_classes,
            "train": len(self.train),
            "search": len(self.search),
            "test": len(self.test),
            "digest": self.digest,
        }

    def __str__(self) -> str:
        """One line that sums up what was found."""
        held = "of which rank subnets in the search too" if self.shares else "held out for the search"
        return (
            f"data {self.name}: {self.num_classes:,} classes; {len(self.train):,} images to train on, "
            f"{len(self.search):,} {held}, {len(self.test):,} to test on{self.remarks}"
        )


def splits_of(config: TrainConfig, space: SearchSpace) -> Splits:
    """The splits that the settings of a run name.

    Raises: as :func:`load_splits`, and UsageError: no image is held out for the search.
    """
    found = load_splits(
        config.data,
        space,
        config.split_seed,
        config.data_folder,
        config.download,
        config.interpolation,
        config.bad_images,
    )
    if not len(found.search):
        raise UsageError(
            f"No image of {config.data!r} can be held out for the search: every class has one training "
            "image. Add some; a tenth of each class is held out, and at least one of two images."
        )
    return found.sharing() if config.search_images == "shared" else found


def load_splits(
    data: str,
    space: SearchSpace,
    seed: int = 0,
    data_folder: str | None = None,
    download: bool = False,
    interpolation: str = "bicubic",
    bad_images: str = "error",
) -> Splits:
    """Load data by name.

    Args:
        data: ``digits``; ``glyphs`` or ``typefaces``, rendered characters, also with ``:COUNT`` (16000
            training images where it is not given) and ``label_noise``, such as
            ``glyphs:8000,label_noise=0.2``; ``folder:PATH`` with PATH/train/CLASS/* and PATH/val/CLASS/*;
            ``packed:PATH``, which :func:`growtas.data_pack` wrote; or a timm name such as ``torch/cifar10``
            or ``hfds/OWNER/NAME``.
        space: gives image size and channels.
        seed: determines which training images are held out for the search. The search split has 100 images of
            each class, or a tenth where there are fewer than 1000; a fifth of the digits; 20 of each class of
            the glyphs, 60 of the typefaces.
        data_folder: where timm data sets are stored.
        download: let timm download into ``data_folder``.
        interpolation: of the evaluation's resize.
        bad_images: ``error``, or ``skip`` to leave out those that cannot be read. The other images are
            divided as they are without it.

    Returns:
        The three splits.

    Raises:
        UsageError: the name is unknown (the nearest is named), or the data is missing, empty, lacks a part or
            is ambiguous; the sentence says which.
        GrowtasError: an image is seen to be unreadable, and ``bad_images`` is ``error``.

    Example:
        >>> from growtas.space import load_space
        >>> print(load_splits("digits", load_space("digits")))
        data digits: 10 classes; 1,151 images to train on, 287 held out for the search, 359 to test on
    """
    if not isinstance(data, str):
        raise UsageError(f"data must be a name such as 'digits' or 'folder:PATH', not {data!r}.")
    if data == "digits":
        return _digits(space, seed)
    if data.partition(":")[0] in RENDERED:
        return _rendered_splits(data, space, seed)
    if space.in_channels not in (1, 3):
        raise UsageError(
            f"Image files have 3 channels (or 1, their mean), but space {space.name!r} takes "
            f"in_channels={space.in_channels}."
        )
    files = read_files(data, data_folder, download)
    bad = unreadable_images(files, bad_images)
    kept, held = hold_out(files.train.labels, seed)
    parts = []
    for part, source, indices in (
        ("train", files.train, kept),
        ("train", files.train, held),
        ("test", files.test, range(len(files.test))),
    ):
        good = [index for index in indices if (part, index) not in bad] if bad else indices
        parts.append(FileImages(source, good, [source.labels[i] for i in good], space, interpolation))
    lost = sorted(set(files.train.labels) - set(parts[0].labels))
    if lost or not len(parts[2]):
        where = f"class {files.class_name(lost[0])}" if lost else "test part"
        raise UsageError(f"The {where} of {data!r} has no image left that can be read; repair some of them.")
    digest = short_hash(files.digest, sorted(bad)) if bad else files.digest
    return Splits(data, files.num_classes, *parts, files.train.classes, digest, files.remarks(bad))


def hold_out(
    labels: Sequence[int], seed: int, share: float = SEARCH_SHARE, most: int | None = SEARCH_PER_CLASS
) -> tuple[list[int], list[int]]:
    """Divide images class by class.

    Args:
        labels: of every image.
        seed: determines which images are held out.
        share: of each class to hold out; at least one image of a class that has two.
        most: images held out per class at most; any number where None.

    Returns:
        Ascending numbers of the images that stay and of those held out; together all, none twice.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(int(label), []).append(index)
    held: list[int] = []
    for label in sorted(by_class):
        members = by_class[label]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        if most is not None:
            count = min(count, most)
        held += seeded_rng("hold out", seed, label).sample(members, count)
    kept = sorted(set(range(len(labels))) - set(held))
    return kept, sorted(held)


def evaluation_loader(dataset: Dataset, batch_size: int, workers: int = 0) -> DataLoader:
    """Every image of a split once, in order, without augmentation.

    Args:
        dataset: of (image (C, S, S), label).
        batch_size: images per batch; the last batch may be smaller.
        workers: processes that load images; embedded data needs none.

    Returns:
        An iterable of (images (B, C, S, S) float32, labels (B,) int64).
    """
    return DataLoader(
        dataset,
        batch_size,
        num_workers=0 if isinstance(dataset, MemoryImages) else min(workers, -(-len(dataset) // batch_size)),
        collate_fn=evaluation_batch,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of its own, or reading images would move on the global one
    )


def preprocessing(data: str, space: SearchSpace, interpolation: str = "bicubic") -> dict[str, Any]:
    """How evaluation prepares an image of pixels in 0 to 1, in timm's terms.

    Args:
        data: the name, as in :func:`load_splits`.
        space: gives the channels.
        interpolation: of the evaluation's resize.

    Returns:
        ``mean`` and ``std`` per channel, ``interpolation`` and ``crop_pct``.
    """
    name = data.partition(":")[0]
    if name in ("digits", *RENDERED):
        if name == "digits":
            images, _, rest, _ = _digit_images()
            mean, std = images[rest].mean().item(), images[rest].std().item()
        else:
            mean, std = moments(RENDERED[name])
        channels = space.in_channels
        return {
            "mean": (mean,) * channels,
            "std": (std,) * channels,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if space.in_channels == 1:  # the mean of three normalised channels, for a grey image
        scale = sum(1 / s for s in std)
        mean, std = (sum(m / s for m, s in zip(mean, std, strict=True)) / scale,), (len(std) / scale,)
    return {
        "mean": mean,
        "std": std,
        "interpolation": "bilinear" if interpolation == "random" else interpolation,
        "crop_pct": EVALUATION_CROP,
    }


# -- digits ----------------------------------------------------------------------------------------------


@functools.cache  # parsing scikit-learn's text file takes as long as a training step
def _digit_images() -> tuple[Tensor, Tensor, list[int], list[int]]:
    """scikit-learn's (1797, 1, 8, 8) images in 0 to 1, their labels, and which are not and are for the test.

    The test split, a fifth of each class, is the same for every seed. None of it is to be written to.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div_(16)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    return images, labels, *hold_out(labels.tolist(), 0, DIGITS_TEST_SHARE, None)


def _digits(space: SearchSpace, seed: int) -> Splits:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, normalised by the training images."""
    images, labels, rest, test = _digit_images()
    kept, held = hold_out(labels[rest].tolist(), seed, DIGITS_SEARCH_SHARE, None)
    mean, std = images[rest].mean(), images[rest].std()
    parts = [
        MemoryImages((images[part] - mean) / std, labels[part], float(-mean / std), space)
        for part in ([rest[i] for i in kept], [rest[i] for i in held], test)
    ]
    digest = short_hash((images * 16).byte().numpy(), labels.numpy())
    return Splits("digits", 10, *parts, tuple("0123456789"), digest)


# -- rendered characters ---------------------------------------------------------------------------------


def _rendered_splits(data: str, space: SearchSpace, seed: int) -> Splits:
    """Rendered characters. Only the labels that are trained on may be noisy, not those that rank subnets."""
    how, count, noise = read_rendered(data)
    mean, std = moments(how)
    images, labels, digest = rendered(how, count + how.search_per_class * len(how.classes), "train")
    kept, held = hold_out(labels.tolist(), seed, 1.0, how.search_per_class)
    *test, test_digest = rendered(how, how.test_per_class * len(how.classes), "test")
    taught = with_noise(labels[kept], kept, noise, how)
    parts = [
        MemoryImages((images - mean) / std, labels, float((sum(how.paper) / 2 - mean) / std), space)
        for images, labels in ((images[kept], taught), (images[held], labels[held]), test)
    ]
    digest = short_hash(digest, test_digest, *([noise] if noise else []))
    return Splits(data, len(how.classes), *parts, how.classes, digest)
