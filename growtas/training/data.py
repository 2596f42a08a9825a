"""Data by name (``digits``, ``glyphs``, ``folder:PATH`` or timm's), cut into training, search and test split.

The search split is held out of the training images, so that a search never ranks subnets by images they were
trained on (the published code does); the test split is left for the very end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from growtas.errors import UsageError, nearest
from growtas.space import SearchSpace, seeded_rng
from growtas.training.glyphs import PAPER, glyph_images
from growtas.training.images import EVALUATION_CROP, FileImages, MemoryImages

Split = MemoryImages | FileImages

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
TEST_FOLDERS = ("val", "validation", "valid", "eval", "test")

SEARCH_PER_CLASS = 100  # as many per class as the published search looks at
SEARCH_SHARE = 0.1
DIGITS_SEARCH_SHARE = 0.2  # a tenth of the digits would be 14 per class: too few to rank subnets by
DIGITS_TEST_SHARE = 0.2

GLYPH_CLASSES = 62
GLYPHS = 16_000  # training images, unless the name says how many
GLYPH_SEARCH = 20  # per class, rendered beside the training images
GLYPH_TEST = 100  # per class
GLYPH_SEED = 0  # of the pixels; not the run's seed, so that all runs see the same images
GLYPH_MOMENTS = 2048  # training images whose mean and deviation normalise, however many there are


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Args:
        name: as the user wrote it.
        num_classes: labels are 0 to this minus one.
        train: what training draws from.
        search: held out from the training images; what the search ranks subnets by.
        test: touched once, at the end.
    """

    name: str
    num_classes: int
    train: Split
    search: Split
    test: Split

    def summary(self) -> dict[str, int]:
        """Sizes, to recognise the data by when a run is resumed."""
        return {
            "num_classes": self.num_classes,
            "train": len(self.train),
            "search": len(self.search),
            "test": len(self.test),
        }


def load_splits(
    data: str,
    space: SearchSpace,
    seed: int = 0,
    data_folder: str | None = None,
    download: bool = False,
    interpolation: str = "bicubic",
) -> Splits:
    """Load data by name.

    Args:
        data: ``digits``; ``glyphs`` or ``glyphs:COUNT``, rendered characters, with 16000 or COUNT training
            images; ``folder:PATH`` with PATH/train/CLASS/* and PATH/val/CLASS/*; or a timm name such as
            ``torch/cifar10`` or ``hfds/OWNER/NAME``.
        space: gives image size and channels.
        seed: determines which training images are held out for the search. The search split has 100 images of
            each class, or a tenth where there are fewer than 1000; a fifth of the digits; 20 of each class of
            the glyphs.
        data_folder: where timm data sets are stored.
        download: let timm download into ``data_folder``.
        interpolation: of the evaluation's resize.

    Returns:
        The three splits.

    Raises:
        UsageError: the name is unknown (the nearest is named), or the folder is missing, empty or lacks a
            part; the sentence says which.

    Example:
        >>> from growtas.space import load_space
        >>> load_splits("digits", load_space("digits")).summary()
        {'num_classes': 10, 'train': 1151, 'search': 287, 'test': 359}
    """
    if not isinstance(data, str):
        raise UsageError(f"data must be a name such as 'digits' or 'folder:PATH', not {data!r}.")
    if data == "digits":
        return _digits(space, seed)
    if data.partition(":")[0] == "glyphs":
        return _glyphs(data, space, seed)
    if space.in_channels not in (1, 3):
        raise UsageError(
            f"Image files have 3 channels (or 1, their mean), but space {space.name!r} takes "
            f"in_channels={space.in_channels}."
        )
    if data.startswith("folder:"):
        train, test, num_classes = _folder(Path(data.removeprefix("folder:")).expanduser())
    else:
        train, test, num_classes = _timm(data, data_folder, download)
    train_labels, test_labels = _labels(train), _labels(test)
    num_classes = num_classes or max(train_labels) + 1
    kept, held = hold_out(train_labels, seed)
    parts = [
        FileImages(source, indices, [labels[i] for i in indices], space, interpolation)
        for source, labels, indices in (
            (train, train_labels, kept),
            (train, train_labels, held),
            (test, test_labels, range(len(test_labels))),
        )
    ]
    return Splits(data, num_classes, *parts)


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
        num_workers=0 if isinstance(dataset, MemoryImages) else workers,
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
    if name in ("digits", "glyphs"):
        if name == "digits":
            images, _, rest, _ = _digit_images()
            mean, std = images[rest].mean().item(), images[rest].std().item()
        else:
            mean, std = _glyph_moments()
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


def _digit_images() -> tuple[Tensor, Tensor, list[int], list[int]]:
    """scikit-learn's (1797, 1, 8, 8) images in 0 to 1, their labels, and which are not and are for the test.

    The test split, a fifth of each class, is the same for every seed.
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
    return Splits("digits", 10, *parts)


# -- glyphs ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)  # training, search and test of one process ask for the same images
def _rendered(count: int, part: str) -> tuple[Tensor, Tensor]:
    """(n, 1, 28, 28) images in 0 to 1 and their labels; not to be written to."""
    images, labels = glyph_images(count, GLYPH_SEED, part)
    return torch.from_numpy(images).float().div_(255)[:, None], torch.from_numpy(labels)


def _glyph_moments() -> tuple[float, float]:
    images, _ = _rendered(GLYPH_MOMENTS, "train")
    return images.mean(dtype=torch.float64).item(), images.std().item()


def _glyphs(data: str, space: SearchSpace, seed: int) -> Splits:
    """Rendered characters; the test images are of other fonts than those of training and search."""
    _, colon, text = data.partition(":")
    if colon and not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"{data!r} names no number of training images; write 'glyphs:16000', or 'glyphs'.")
    count = int(text) if colon else GLYPHS
    mean, std = _glyph_moments()
    images, labels = _rendered(count + GLYPH_SEARCH * GLYPH_CLASSES, "train")
    kept, held = hold_out(labels.tolist(), seed, 1.0, GLYPH_SEARCH)
    test = _rendered(GLYPH_TEST * GLYPH_CLASSES, "test")
    parts = [
        MemoryImages((images - mean) / std, labels, float((sum(PAPER) / 2 - mean) / std), space)
        for images, labels in ((images[kept], labels[kept]), (images[held], labels[held]), test)
    ]
    return Splits(data, GLYPH_CLASSES, *parts)


# -- folders ---------------------------------------------------------------------------------------------


def _folder(path: Path) -> tuple[Dataset, Dataset, int]:
    """A folder in ImageNet's layout, through timm's reader."""
    from timm.data import create_dataset
    from timm.data.readers.img_extensions import get_img_extensions

    layout = f"Expected {path}/train/CLASS/image.jpg and {path}/val/CLASS/image.jpg."
    if not path.is_dir():
        raise UsageError(f"The data folder {path} does not exist. {layout}")
    train_path = path / "train"
    test_path = next((path / name for name in TEST_FOLDERS if (path / name).is_dir()), None)
    if not any(path.iterdir()):
        raise UsageError(f"The data folder {path} is empty. {layout}")
    if not train_path.is_dir():
        raise UsageError(f"The data folder {path} has no folder 'train'. {layout}")
    if test_path is None:
        raise UsageError(
            f"The data folder {path} has none of the folders {', '.join(TEST_FOLDERS)}, "
            f"which hold the images to test on. {layout}"
        )
    classes = [{entry.name for entry in part.iterdir() if entry.is_dir()} for part in (train_path, test_path)]
    if len(classes[0]) < 2:
        raise UsageError(
            f"{train_path} holds {len(classes[0])} class folders; at least 2 are needed. {layout}"
        )
    unknown = sorted(classes[1] - classes[0])
    if unknown:
        raise UsageError(f"{test_path} has classes that {train_path} lacks: {', '.join(unknown[:5])}.")
    try:
        train = create_dataset("", root=str(train_path), search_split=False)
        names = train.reader.class_to_idx
        test = create_dataset("", root=str(test_path), search_split=False, class_map=names)
    except RuntimeError as error:  # timm's reader found no image
        raise UsageError(
            f"{' '.join(str(error).split())[:200]} {layout}"
            if str(error)
            else f"No images with extension {', '.join(get_img_extensions())} in {path}. {layout}"
        ) from error
    return train, test, len(names)


# -- timm ------------------------------------------------------------------------------------------------


def _timm(name: str, root: str | None, download: bool) -> tuple[Dataset, Dataset, int | None]:
    """A map-style timm data set, its training and its evaluation part."""
    known = ("digits", "glyphs", "folder:PATH", *TIMM_NAMES)
    prefix, _, rest = name.partition("/")
    if prefix in STREAMS and rest:
        raise UsageError(
            f"{name!r} is a stream; training needs images by number, to resume in the middle of an epoch. "
            "Use 'hfds/' or 'torch/' data sets, or a folder."
        )
    if prefix == "torch" and name not in TIMM_NAMES or prefix not in ("torch", "hfds") or not rest:
        raise UsageError(f"There is no data set {name!r}.{nearest(name, known)}")
    if prefix == "torch" and root is None:
        raise UsageError(f"{name!r} needs data_folder=FOLDER, where it is stored or downloaded to.")
    train = _create(name, "train", root, download)
    try:
        test = _create(name, "validation", root, download)
    except UsageError:
        test = _create(name, "test", root, download)  # hubs call it either way
    classes = getattr(train, "classes", None)
    return train, test, len(classes) if classes else None


def _create(name: str, split: str, root: str | None, download: bool) -> Dataset:
    from timm.data import create_dataset

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


def _labels(dataset: Dataset) -> list[int]:
    """The label of every image, without decoding images where the data set knows them."""
    reader = getattr(dataset, "reader", None)
    samples = getattr(reader, "samples", None)
    if samples is not None:
        return [int(label) for _, label in samples]
    if hasattr(reader, "label_key"):  # a hub's table, by column
        return [int(label) for label in reader.dataset[reader.label_key]]
    targets = getattr(dataset, "targets", None)
    if targets is not None:
        return [int(label) for label in targets]
    return [int(dataset[i][1]) for i in range(len(dataset))]
