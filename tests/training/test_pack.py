"""Packed images are those of the folder, in shards that other tools read, written whole and resumed."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import growtas
from growtas import cli
from growtas.errors import UsageError
from growtas.space import load_space
from growtas.training.config import TrainConfig
from growtas.training.data import load_splits, pack
from growtas.training.data.decode import UnreadableImage
from growtas.training.data.loader import TrainingLoader

RGB = dataclasses.replace(load_space("digits"), image_size=16, patch_size=4, in_channels=3)


@pytest.fixture(scope="module")
def packed(image_folder, tmp_path_factory):
    """The folder of images in shards of 16, raw and as JPEG; not to be changed."""
    out = tmp_path_factory.mktemp("packed")
    return {
        kind: growtas.data_pack(image_folder, out / kind, format=kind, workers=0, shard_images=16)
        for kind in ("raw", "jpeg")
    }


def loaded(path, **given):
    return load_splits(f"packed:{path}", RGB, **given)


def test_raw_images_are_those_of_the_folder(image_folder, packed):
    ours, folder = loaded(packed["raw"]), load_splits(f"folder:{image_folder}", RGB)
    assert ours.classes == folder.classes == ("ant", "bee", "cat")
    sizes = [{**splits.summary(), "digest": ""} for splits in (ours, folder)]
    assert sizes[0] == sizes[1] and ours.summary()["digest"]
    for part in ("train", "search", "test"):
        mine, theirs = getattr(ours, part), getattr(folder, part)
        assert mine.indices == theirs.indices and mine.labels == theirs.labels
        for index in range(len(mine)):
            assert torch.equal(mine[index][0], theirs[index][0])


def test_training_reads_the_same_batches(image_folder, packed):
    given = {"batch_size": 8, "epochs": 1, "workers": 0}
    batches = []
    for data in (f"packed:{packed['raw']}", f"folder:{image_folder}"):
        config = TrainConfig("digits", data=data, **given).resolved()
        batches.append(list(TrainingLoader(load_splits(data, RGB).train, config).batches(0)))
    assert len(batches[0]) == 6
    for (images, labels), (others, their_labels) in zip(*batches, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, their_labels)


def test_jpeg_images_are_close(image_folder, packed):
    ours, folder = loaded(packed["jpeg"]).test, load_splits(f"folder:{image_folder}", RGB).test
    away = torch.stack([(ours[i][0] - folder[i][0]).abs().mean() for i in range(len(ours))])
    assert 0 < away.mean() < 0.4  # noise is what JPEG keeps worst


@pytest.mark.parametrize(("kind", "ending"), [("raw", "npy"), ("jpeg", "jpg")])
def test_shards_are_webdataset(packed, kind, ending):
    index = json.loads((packed[kind] / "train" / "index.json").read_text())
    assert index["wids_version"] == 1 and index["classes"] == ["ant", "bee", "cat"]
    assert [shard["nsamples"] for shard in index["shardlist"]] == [16, 16, 16, 12]
    names = []
    for shard in index["shardlist"]:
        with tarfile.open(packed[kind] / "train" / shard["url"]) as tar:
            names += tar.getnames()
    assert names == [f"{i:09d}.{end}" for i in range(60) for end in (ending, "cls")]


def test_members_are_the_images(image_folder, packed):
    with tarfile.open(packed["raw"] / "val" / "000000.tar") as tar:
        pixels = np.load(io.BytesIO(tar.extractfile("000000005.npy").read()))
        label = tar.extractfile("000000005.cls").read()
    expected = Image.open(image_folder / "val" / "bee" / "1.png").convert("RGB")
    assert label == b"1" and np.array_equal(pixels, np.array(expected))


def test_large_images_are_shrunk(image_folder, tmp_path):
    out = growtas.data_pack(image_folder, tmp_path / "out", size=20, workers=0)
    source = loaded(out).train.source
    shapes = {tuple(source.pixels(i).shape) for i in range(len(source))}
    assert (20, 20, 3) in {(min(s[:2]), min(s[:2]), 3) for s in shapes}
    assert max(min(shape[:2]) for shape in shapes) == 20
    assert (20, 32, 3) in shapes  # of 24 x 38


def test_packing_goes_on_where_it_was_interrupted(image_folder, packed, tmp_path, monkeypatch):
    written, add = [], pack._Shards._add

    def interrupted(shards, tar, member):
        written.append(member)
        if len(written) == 40:
            raise KeyboardInterrupt
        return add(shards, tar, member)

    monkeypatch.setattr(pack._Shards, "_add", interrupted)
    given = {"workers": 0, "shard_images": 16}
    with pytest.raises(KeyboardInterrupt):
        growtas.data_pack(image_folder, tmp_path / "out", **given)
    with pytest.raises(UsageError, match="index.json is missing. Write them, or go on"):
        loaded(tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.tar"))) == 2
    (tmp_path / "out" / "train" / ".000002.tar.x.tmp").write_text("of a killed process")
    growtas.data_pack(image_folder, tmp_path / "out", **given)
    assert written[40:] == [*range(32, 60), *range(12)]
    assert not list((tmp_path / "out").rglob("*.tmp"))
    for path in packed["raw"].rglob("*.tar"):
        assert (tmp_path / "out" / path.relative_to(packed["raw"])).read_bytes() == path.read_bytes()
    with pytest.raises(UsageError, match="packed with size=256 and not 128"):
        growtas.data_pack(image_folder, tmp_path / "out", size=128, **given)


def test_bad_images(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GROWTAS_CACHE", str(tmp_path / "cache"))
    shutil.copytree(image_folder, tmp_path / "spoilt")
    spoilt = tmp_path / "spoilt" / "train" / "ant" / "7.png"
    spoilt.write_bytes(spoilt.read_bytes()[:90])
    with pytest.raises(UnreadableImage, match="7.png"):
        growtas.data_pack(tmp_path / "spoilt", tmp_path / "out", workers=0)
    out = growtas.data_pack(tmp_path / "spoilt", tmp_path / "skipped", bad_images="skip", workers=0)
    assert len(loaded(out).train.source) == 59


def test_damaged_shards(image_folder, tmp_path):
    out = growtas.data_pack(image_folder, tmp_path / "out", workers=0)
    shard = out / "val" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:9000])
    splits = loaded(out)
    splits.test[0]
    with pytest.raises(UnreadableImage, match="000000011 of .*000000.tar cannot be read: the file is cut"):
        splits.test[11]
    (out / "val" / "000000.table.npy").unlink()
    with pytest.raises(UsageError, match="000000.table.npy is missing"):
        loaded(out)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"format": "jpg"}, "Did you mean 'jpeg'"),
        ({"size": 0}, "size=0 is not possible"),
        ({}, "other files"),
    ],
)
def test_bad_packing(image_folder, tmp_path, given, sentence):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UsageError, match=sentence):
        growtas.data_pack(image_folder, tmp_path, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_the_command_packs_in_several_processes(image_folder, packed, tmp_path, capfd):
    out = tmp_path / "out"
    options = ["--workers", "2", "--shard-images", "16"]
    assert not cli.main(["data", "pack", str(image_folder), str(out), *options])
    assert f"Train on it with --data packed:{out}" in capfd.readouterr().out
    for path in packed["raw"].rglob("*.tar"):
        assert (out / path.relative_to(packed["raw"])).read_bytes() == path.read_bytes()


def test_no_packed_images(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        loaded(tmp_path / "nowhere")
