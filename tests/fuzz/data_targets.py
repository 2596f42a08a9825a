"""Images, folders of them, labels and packed images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from harness import INPUT, Target
from model_targets import texts
from mutators import in_bytes, json_text, one_of
from PIL import Image
from torch import Tensor

import growtas
from growtas.space import load_space
from growtas.training.data import load_splits, named
from growtas.training.data.files import read_files
from growtas.training.data.sources import PathImages

RGB = dataclasses.replace(load_space("digits"), name="rgb", in_channels=3, image_size=16, patch_size=4)


# -- images --------------------------------------------------------------------------------------------------

FORMATS = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "P", "LA", "I;16", "1"),
    "GIF": ("P",),
    "BMP": ("RGB",),
    "TIFF": ("RGB", "I;16", "F"),
    "WEBP": ("RGB",),
    "PPM": ("RGB",),
}


@functools.cache
def _images() -> Sequence[bytes]:
    noise = np.random.default_rng(0)
    found = []
    for form, modes in FORMATS.items():
        for mode in modes:
            if mode == "F":
                continue  # is refused as it is
            pixels = noise.integers(0, 255, (9, 11, 3), dtype=np.uint8)
            image = (
                Image.fromarray(pixels)
                if mode != "I;16"
                else Image.fromarray(pixels[..., 0].astype(np.uint16))
            )
            buffer = io.BytesIO()
            image.convert(mode).save(buffer, form)
            found.append(buffer.getvalue())
    return found


def _in_sizes(rng: random.Random, data: bytes) -> bytes:
    """The first numbers of 9 or 11 become others: widths and heights, among other things."""
    for _ in range(rng.randint(1, 2)):
        sides = [at for at, byte in enumerate(data) if byte in (9, 11)] or [0]
        at = sides[min(len(sides) - 1, int(rng.expovariate(0.5)))]
        start = max(0, at - rng.randint(0, 2))
        data = data[:start] + rng.randbytes(rng.randint(1, 3)) + data[at + 1 :]
    return data


def _read_image(folder: Path) -> None:
    source = PathImages(folder, [INPUT], [0], ["a"])
    with warnings.catch_warnings(action="ignore"):
        pixels = source.pixels(0)
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.numel()


# -- folders of images ---------------------------------------------------------------------------------------


def _make_folder(rng: random.Random, root: Path) -> None:
    """Two classes of three images and one to test on each, and then up to five changes."""
    image = next(data for data in _images() if data.startswith(b"\x89PNG"))
    for part, count in (("train", 3), ("val", 1)):
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                (root / part / name / f"{i}.png").write_bytes(image)
    for number in range(rng.choice((0, 1, 1, 2, 3, 5))):
        places = [
            root,
            *(path for path in sorted(root.rglob("*")) if path.is_dir() and not path.is_symlink()),
        ]
        names = ("x.png", "Ant", "cat", "val", "test", ".hidden", "0.PNG", "a\nb", "deep", f"{number}.jpg")
        name = rng.choice([*map(os.fsencode, names), b"\xff.png", b"\xff"])
        new = os.path.join(os.fsencode(rng.choice(places)), name)
        with contextlib.suppress(OSError, shutil.Error):
            _edit(rng, rng.choice([*sorted(root.rglob("*")), root]), new, image)


def _edit(rng: random.Random, old: Path, new: bytes, image: bytes) -> None:
    """Make something new in a folder, or change or remove something old."""
    rng.choice(
        (
            lambda: os.mkdir(new),
            lambda: os.mkfifo(new),
            lambda: os.mknod(new),
            lambda: os.symlink(old, new),
            lambda: os.symlink(rng.choice(("nowhere", "/dev/zero", "..", ".")), new),
            lambda: Path(os.fsdecode(new)).write_bytes(rng.choice((b"", image, image[:60], b"text"))),
            lambda: shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(),
            lambda: os.rename(old, new),
            lambda: _copy(old, Path(os.fsdecode(new))),
            lambda: os.truncate(old, rng.choice((0, 20, 2**32))),
        )
    )()


def _copy(old: Path, new: Path) -> None:
    if not old.is_symlink() and old not in new.parents:
        shutil.copytree(old, new, symlinks=True)


def _read_image_folder(folder: Path) -> None:
    """Read every image of a folder that the input determines; none may stand in for another."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "images"
        _make_folder(random.Random((folder / INPUT).read_text()), root)
        splits = load_splits(f"folder:{root}", RGB)
        for split in (splits.train, splits.search, splits.test):
            for index in range(len(split)):
                split.pixels(index)
                path = split.source.paths[split.indices[index]]
                assert splits.classes[split.labels[index]] == path.split("/")[0], "another class"


# -- labels and packed images --------------------------------------------------------------------------------

LABELS = (
    b'{"train": [0, 1, 1, 0], "test": [0, 1], "names": ["a", "b"]}',
    b'{"train": [0, 1, 2], "test": [2], "names": []}',
)


def _in_labels(rng: random.Random, data: bytes) -> bytes:
    """Other labels and names, in other numbers."""
    table = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        values = table[rng.choice(list(table))]
        new = rng.choice((-1, 2, 1.0, 0.5, True, None, "a", "0", "", [], [0], 2**70, 1e999))
        edit = rng.randrange(3)
        if edit == 0 and values:
            values.pop()
        elif edit == 1 and values:
            values[rng.randrange(len(values))] = new
        else:
            values.append(new)
    return json.dumps(table).encode()


def _read_labels(folder: Path) -> None:
    """Read a hub's table of these labels."""
    given = json.loads((folder / INPUT).read_bytes())
    train, test = given["train"], given["test"]
    numbers = {str(name): i for i, name in enumerate(given["names"])}

    class Column(list):
        column_names = ("image", "label")

        def __getitem__(self, key: object) -> list:
            return list(self)

    def create(name: str, root: object, split: str, download: object) -> SimpleNamespace:
        table = Column(train if split == "train" else test)
        return SimpleNamespace(reader=SimpleNamespace(label_key="label", dataset=table, class_to_idx=numbers))

    with mock.patch("timm.data.create_dataset", create):
        found = named.read_named("hfds/a/b", None, False)
    assert [found[0].labels, found[1].labels] == [train, test], "other labels"
    count = len(found[0].classes) or max(found[0].labels) + 1
    assert all(0 <= label < count for source in found for label in source.labels)


@functools.cache
def _packed() -> dict[str, bytes]:
    """The files of packed images, by their paths."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "images"
        _make_folder(SimpleNamespace(choice=lambda options: options[0]), root)
        files = {}
        for form in ("raw", "jpeg"):
            out = growtas.data_pack(root, Path(made) / form, format=form, workers=0, shard_images=4)
            files |= {
                str(path.relative_to(made)): path.read_bytes() for path in out.rglob("*") if path.is_file()
            }
    return files


@functools.cache
def _packed_pixels(form: str) -> list[tuple[int, Tensor]]:
    with tempfile.TemporaryDirectory() as made:
        _write_packed(form, Path(made))
        return _all_pixels(Path(made))


def _all_pixels(folder: Path) -> list[tuple[int, Tensor]]:
    parts = read_files(f"packed:{folder}").parts().values()
    return [(source.labels[i], source.pixels(i)) for source in parts for i in range(len(source))]


def _write_packed(form: str, folder: Path, changed: str = "", data: bytes = b"") -> None:
    for name, content in _packed().items():
        kind, _, path = name.partition("/")
        if kind == form:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data if name == changed else content)


def _place_packed(data: bytes, folder: Path) -> None:
    name, _, content = data.partition(b"\0")
    name = name.decode()
    _write_packed(name.partition("/")[0], folder, name, content)
    (folder / "which").write_text(name.partition("/")[0])


def _in_packed(rng: random.Random, data: bytes) -> bytes:
    name, _, content = data.partition(b"\0")
    return name + b"\0" + (json_text if name.endswith(b".json") else in_bytes)(rng, content)


def _read_packed(folder: Path) -> None:
    """Read every packed image: they are all as they were, or one is refused."""
    form = (folder / "which").read_text()
    with warnings.catch_warnings(action="ignore"):
        found, expected = _all_pixels(folder), _packed_pixels(form)
    same = all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(found, expected, strict=True))
    assert same and len(found) == len(expected), "other images"


TARGETS = (
    Target("image", _images, one_of(in_bytes, in_bytes, _in_sizes), _read_image, share=3),
    Target(
        "image-folder",
        texts("0"),
        lambda rng, data: b"%d" % rng.getrandbits(64),
        _read_image_folder,
    ),
    Target("labels", lambda: LABELS, _in_labels, _read_labels),
    Target(
        "packed-images",
        lambda: [name.encode() + b"\0" + data for name, data in _packed().items()],
        _in_packed,
        _read_packed,
        _place_packed,
    ),
)
