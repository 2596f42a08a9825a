"""Data folders with pipes, bombs, loops and damaged shards: refused in a sentence, before anything waits."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from runs import SPACE

import growtas
from growtas import cli
from growtas.errors import GrowtasError, UsageError
from growtas.training.config import TrainConfig
from growtas.training.data import jpeg, load_splits, sources
from growtas.training.data.decode import MOST_PIXELS, NoMemory, UnreadableImage, content
from growtas.training.data.files import read_files
from growtas.training.data.loader import TrainingLoader
from growtas.training.data.packed import FORMER_COLUMNS, table_path
from growtas.training.data.splits import splits_of

RGB = dataclasses.replace(SPACE, name="rgb", in_channels=3, image_size=16)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of three training images, and one test image each; not to be changed."""
    root, noise = tmp_path_factory.mktemp("made") / "images", np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 1)):
        for name in ("ant", "bee", "cat"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture
def folder(images, tmp_path):
    """A copy of them."""
    return shutil.copytree(images, tmp_path / "images")


def load(folder, **settings):
    return load_splits(f"folder:{folder}", RGB, **settings)


# -- what a folder holds -------------------------------------------------------------------------------------


def test_a_class_folder_that_is_a_link_to_nothing_is_no_class_less(folder):
    """It stands for a disk that is not mounted: training on the other two classes is another task."""
    for part in ("train", "val"):
        shutil.rmtree(folder / part / "cat")
        (folder / part / "cat").symlink_to(folder / "unmounted" / "cat")
    with pytest.raises(GrowtasError, match="train/cat is a link to a folder or a file that is not there"):
        load(folder)


@pytest.mark.parametrize("place", ["", "train", "train/cat", "val/cat"])
def test_a_folder_without_permission_is_named(folder, monkeypatch, place):
    scandir = os.scandir

    def refused(path):
        if os.fspath(path) == str(folder / place):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(GrowtasError, match=f"{folder / place} cannot be listed: Permission denied"):
        load(folder)


def test_pipes_sockets_and_devices_are_never_opened(folder):
    os.mkfifo(folder / "train" / "pipe")
    os.mkfifo(folder / "train" / "ant" / "pipe.png")
    (folder / "train" / "ant" / "zero.png").symlink_to("/dev/zero")
    splits = load(folder)
    assert "left out: 2 pipes, sockets or devices, 1 beside the class folders" in str(splits)
    paths = [str(folder / "train" / "ant" / name) for name in ("pipe.png", "zero.png")]
    images = sources.PathImages("", paths, [0, 0], ["ant"])  # as of a torchvision data set, which lists both
    for index in range(2):
        with pytest.raises(
            UnreadableImage, match=r"\.png cannot be read: it is no file, but a folder, a pipe"
        ):
            images.pixels(index)
        with pytest.raises(UnreadableImage, match="it is no file"):
            images.image(index)


def test_links_that_go_round_end(folder):
    classes = [folder / "train" / "ant" / f"{i}" for i in range(9)]
    for place in classes:
        place.mkdir()
    for place in classes:
        for other in classes:
            (place / f"to-{other.name}").symlink_to(other)
    with pytest.raises(GrowtasError, match="links lead to it over 16 times; remove links that go round"):
        load(folder)


def test_folders_too_deep_to_walk(folder):
    os.makedirs(folder / "train" / "ant" / "/".join(["a"] * 120))
    with pytest.raises(GrowtasError, match="101 folders deep"):
        load(folder)


def test_a_test_class_whose_name_is_no_text(folder):
    os.mkdir(os.path.join(os.fsencode(folder / "val"), b"\xff"))
    with pytest.raises(UsageError, match=r"val has a class folder named '\\udcff'; rename it") as error:
        load(folder)
    str(error.value).encode()


def test_names_with_line_breaks_stay_on_one_line(folder):
    torn = folder / "train" / "ant" / "a\nb.png"
    torn.write_bytes(b"torn")
    with pytest.raises(UnreadableImage, match=r"ant/a\\nb.png cannot be read: it is of no format"):
        load(folder).train.source.image(3)
    torn.unlink()
    (folder / "train" / "a\nb").symlink_to("nowhere")
    with pytest.raises(GrowtasError, match=r"train/a\\nb is a link to a folder or a file that is not there"):
        load(folder)


def test_classes_that_differ_in_case_stay_two(folder):
    for part in ("train", "val"):
        shutil.copytree(folder / part / "cat", folder / part / "Cat")
    assert load(folder).classes == ("ant", "bee", "Cat", "cat")


@pytest.mark.parametrize("path", ["~no-such-user/images", "nowhere\0", "n" * 5000])
def test_paths_that_cannot_be(path, tmp_path, capsys):
    for kind in ("folder", "packed"):
        with pytest.raises(GrowtasError) as error:
            read_files(f"{kind}:{path}")
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="names no number of training images from 1 to"):
        load_splits(f"glyphs:{'9' * 5000}", RGB)


def test_one_image_per_class_is_refused_before_a_run_is_written(folder, tmp_path):
    for name in ("ant", "bee", "cat"):
        for i in (1, 2):
            (folder / "train" / name / f"{i}.png").unlink()
    for search_images in ("held_out", "shared"):
        config = TrainConfig("rgb", data=f"folder:{folder}", search_images=search_images).resolved()
        with pytest.raises(
            UsageError, match="can be held out for the search: every class has one training image"
        ):
            splits_of(config, RGB)
    assert len(load(folder).test) == 3  # a model may still be evaluated on it


# -- images --------------------------------------------------------------------------------------------------


def claimed_png(width, height):
    """A PNG of a few bytes that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def claimed_jpeg(tmp_path, width, height):
    """A JPEG of a few bytes that claims a size."""
    Image.new("RGB", (8, 8)).save(tmp_path / "small.jpg")
    data = bytearray((tmp_path / "small.jpg").read_bytes())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_400_megapixels_is_named_with_the_limit_and_the_remedy(
    folder, tmp_path, kind, monkeypatch
):
    data = claimed_png(20_000, 20_000) if kind == "png" else claimed_jpeg(tmp_path, 20_000, 20_000)
    path = folder / "val" / "ant" / f"0.{kind}"
    path.write_bytes(data)
    if jpeg.simplejpeg:
        monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", None)  # it is not decoded
    with pytest.raises(UnreadableImage) as error:
        load(folder).test.pixels(0)
    assert f"The image {path} cannot be read: it " in str(error.value)
    assert f"{MOST_PIXELS:,}" in str(error.value) and "shrink it" in str(error.value)
    assert "bad_images='skip'" in str(error.value)


def test_too_little_memory_names_the_image_and_skips_none(folder, monkeypatch):
    def full(image):
        raise MemoryError

    monkeypatch.setattr("growtas.training.data.decode._rgb", full)
    with pytest.raises(NoMemory, match=f"memory left to decode the image {folder}/val/ant/0.png: use fewer"):
        load(folder).test.pixels(0)
    with pytest.raises(NoMemory):
        load(folder, bad_images="skip")


def test_a_loading_process_hands_on_the_sentence_about_memory(folder, monkeypatch):
    monkeypatch.setattr(
        "growtas.training.data.decode._rgb", lambda image: [].__sizeof__() and bytearray(2**62)
    )
    config = TrainConfig("rgb", data=f"folder:{folder}", epochs=1, batch_size=4, workers=1).resolved()
    with pytest.raises(NoMemory) as error:
        list(TrainingLoader(load(folder).train, config).batches(0))
    assert str(error.value).startswith("There is no memory left to decode the image ") and "\n" not in str(
        error.value
    )


def test_a_file_of_two_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "x.jpg", "wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(UnreadableImage, match="it has 2,147,483,649 bytes"):
        content(tmp_path / "x.jpg", "x.jpg")


# -- packed images -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packings(images, tmp_path_factory):
    """The images packed, as they are and as JPEG; not to be changed."""
    root = tmp_path_factory.mktemp("packings")
    for kind in ("raw", "jpeg"):
        growtas.data_pack(images, root / kind, format=kind, workers=0, shard_images=4)
    return root


@pytest.fixture
def packed(packings, tmp_path):
    """Copies of them."""
    return {kind: shutil.copytree(packings / kind, tmp_path / kind) for kind in ("raw", "jpeg")}


def change_index(folder, change):
    path = folder / "train" / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def change_table(folder, change, known=True):
    """Change a shard's table, and what the index says of it where it is not ``known``."""
    path = folder / "train" / "000000.table.npy"
    np.save(path, change(np.load(path)))
    if not known:
        change_index(folder, lambda index: [shard.pop("table") for shard in index["shardlist"]])


def with_value(column, value):
    def change(table):
        table[1, column] = value
        return table

    return change


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_flipped_bit_of_a_packed_image_is_noticed(packed, kind, capsys):
    path = packed[kind] / "train" / "000001.tar"
    data, table = bytearray(path.read_bytes()), np.load(table_path(path))
    data[table[2, 0] + table[2, 1] // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        UnreadableImage, match="000000006 of .*000001.tar cannot be read: its checksum is wrong"
    ):
        read_files(f"packed:{packed[kind]}").train.pixels(6)
    assert cli.main(["data", "check", f"packed:{packed[kind]}"]) == 1
    assert "1 of them unreadable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "value"), [(0, -1), (0, 600), (1, 2**40), (2, -3), (2, 2**33), (3, 2**62), (4, 3), (4, -1)]
)
@pytest.mark.parametrize("known", [True, False])
def test_a_changed_table_is_noticed(packed, column, value, known):
    change_table(packed["raw"], with_value(column, value), known)
    told = "is damaged or not the table of a shard|has the label|cannot be read: its checksum"
    with pytest.raises(GrowtasError, match="its digest is not the one" if known else told):
        splits = load_splits(f"packed:{packed['raw']}", RGB)
        for index in range(len(splits.train.source)):
            splits.train.source.pixels(index)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table[:-1],
        lambda table: table[:, :3],
        lambda table: table[0],
        lambda table: table.astype(float),
        lambda table: table.astype(object),
        lambda table: table.astype([("a", "i8")]),
    ],
)
def test_what_is_no_table(packed, change):
    change_table(packed["raw"], change, known=False)
    with pytest.raises(GrowtasError, match="000000.table.npy is damaged or not the table of a shard"):
        read_files(f"packed:{packed['raw']}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda i: i["shardlist"][0].update(url="../../train/000000.tar"), "is no file of this folder"),
        (lambda i: i["shardlist"][0].update(url="/etc/passwd"), "is no file of this folder"),
        (lambda i: i["shardlist"][0].update(url=3), "is no file of this folder"),
        (lambda i: i["shardlist"].pop(), "its shards have 8 images, and 9 were packed"),
        (lambda i: i.update(shardlist=[]), "it names no shards"),
        (lambda i: i.update(classes=["ant", "bee"]), "other classes in its training"),
        (lambda i: i.update(classes=[1, 2, 3]), "classes is no list of names"),
        (lambda i: i.pop("digest"), "'digest' is missing"),
        (lambda i: i.update(digest="another"), "are of two packings"),
    ],
)
def test_a_changed_index_is_noticed(packed, change, told):
    change_index(packed["raw"], change)
    with pytest.raises(GrowtasError, match=told):
        read_files(f"packed:{packed['raw']}")


@pytest.mark.parametrize("name", ["index.json", "000000.table.npy", "000000.tar"])
def test_a_pipe_among_the_shards_does_not_wait(packed, name):
    path = packed["raw"] / "train" / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(GrowtasError, match=f"{name} cannot be read.*it is no file, but"):
        read_files(f"packed:{packed['raw']}").train.pixels(0)


def test_images_packed_before_there_were_checksums_are_read(packed, folder):
    for part in ("train", "val"):
        for path in (packed["raw"] / part).glob("*.npy"):
            np.save(path, np.load(path)[:, :FORMER_COLUMNS])
        index = json.loads((packed["raw"] / part / "index.json").read_text())
        for shard in index["shardlist"]:
            del shard["table"]
        (packed["raw"] / part / "index.json").write_text(json.dumps(index))
    ours, theirs = read_files(f"packed:{packed['raw']}").train, read_files(f"folder:{folder}").train
    assert all(torch.equal(ours.pixels(index), theirs.pixels(index)) for index in range(9))
