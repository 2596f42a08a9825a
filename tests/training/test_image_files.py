"""Folders of images as people have them: read truthfully, or refused in a sentence; never another image."""

from __future__ import annotations

import dataclasses
import os
import shutil
import types

import numpy as np
import pytest
import torch
from PIL import Image
from runs import SPACE

from growtas.errors import GrowtasError, UsageError
from growtas.training.data import load_splits
from growtas.training.data.decode import UnreadableImage, read_rgb
from growtas.training.data.folders import digest, read_folder
from growtas.training.data.loader import TrainingLoader
from growtas.training.data.named import read_named

RGB = dataclasses.replace(SPACE, name="rgb", in_channels=3, image_size=16)


def save(path, colour=(200, 100, 50), size=(4, 3), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of three training images, and one test image each."""
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        for i in range(3):
            save(root / "train" / name / f"{i}.png")
        save(root / "val" / name / "0.png")
    return root


def load(folder, **settings):
    return load_splits(f"folder:{folder}", RGB, **settings)


def paths(split):
    return sorted(split.source.paths[i] for i in split.indices)


# -- what a folder holds -------------------------------------------------------------------------------------


def test_the_class_is_the_first_folder_below_the_part(folder):
    for name in ("cat", "dog"):
        save(folder / "train" / name / "a" / "deep" / "x.png")
    train, _ = read_folder(folder)
    assert train.classes == ["cat", "dog"] and train.paths[3] == "cat/a/deep/x.png"
    assert train.labels == [0] * 4 + [1] * 4


def test_what_is_no_image_is_left_out_and_counted(folder):
    train = folder / "train"
    save(train / ".ipynb_checkpoints" / "0-checkpoint.png")
    save(train / "cat" / "@eaDir" / "thumbnail.png")
    save(train / "cat" / "._0.png")
    save(train / "stray.png")
    for name in ("cat/notes.txt", "cat/a.TXT", "dog/LICENSE"):
        (train / name).write_text("text")
    (train / "dog" / "again").symlink_to(train)
    os.mkfifo(train / "dog" / "pipe.jpg")
    splits = load(folder)
    assert sorted(paths(splits.train) + paths(splits.search)) == sorted(
        f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)
    )
    assert str(splits) == (
        f"data folder:{folder}: 2 classes; 4 images to train on, 2 held out for the search, 2 to test on; "
        "left out: 3 hidden, 2 of ending .txt, 1 beside the class folders, 1 links to a folder above, "
        "1 pipes, sockets or devices, 1 without ending"
    )


@pytest.mark.parametrize(
    "name", ["a.webp", "a.tif", "a.TIFF", "a.JPG", "a.Jpeg", "a.bmp", "a.gif", "a.ppm", "link.png"]
)
def test_every_usual_ending_is_read(folder, name):
    path = folder / "train" / "cat" / name
    if name == "link.png":
        path.symlink_to("0.png")
    else:
        save(path)
    splits = load(folder)
    assert f"cat/{name}" in paths(splits.train) + paths(splits.search)
    assert read_rgb(path, "it").size == (4, 3)


def test_labels_follow_the_natural_order_of_names(tmp_path):
    for part in ("train", "val"):
        for name in ("class10", "class2", "B", "a", "01", "1"):
            save(tmp_path / part / name / "x.png")
    assert read_folder(tmp_path)[0].classes == ["01", "1", "a", "B", "class2", "class10"]
    plain = load_splits("torch/image_folder", RGB, data_folder=str(tmp_path))
    assert plain.classes == ("01", "1", "B", "a", "class10", "class2")


def test_a_class_without_test_images_keeps_its_label(folder):
    (folder / "val" / "cat" / "0.png").unlink()
    splits = load(folder)
    assert splits.test.labels == [1] and splits.classes == ("cat", "dog")
    assert "no test images of the class cat" in str(splits)


def remove(folder, name):
    shutil.rmtree(folder / name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda f: (f / "train/owl").mkdir() or (f / "val/owl").mkdir(),
            "train has no images in the class owl",
        ),
        (lambda f: save(f / "val/owl/0.png"), "val has the class owl, which .*train lacks"),
        (lambda f: remove(f, "val/dog"), "train has the class dog, which .*val lacks"),
        (lambda f: remove(f, "train/dog"), "holds 1 class folders"),
        (lambda f: remove(f, "train/dog") or save(f / "train/x.png"), r"and 1 files beside them"),
        (lambda f: (f / "train/a\nb").mkdir() or (f / "val/a\nb").mkdir(), r"named 'a\\nb'"),
    ],
)
def test_ambiguous_folders(folder, change, sentence):
    change(folder)
    with pytest.raises(UsageError, match=sentence):
        load(folder)


def test_a_class_of_other_files_alone_says_so(folder):
    for name in ("train", "val"):
        (folder / name / "owl").mkdir()
        (folder / name / "owl" / "x.heic").write_bytes(b"heic")
    with pytest.raises(UsageError, match=r"class owl \(left out: 1 of ending .heic\)"):
        load(folder)


def test_the_first_test_folder_counts_and_the_others_are_named(folder):
    shutil.copytree(folder / "val", folder / "test")
    save(folder / "test" / "cat" / "1.png")
    splits = load(folder)
    assert len(splits.test) == 2 and "left out: 1 unused folder (test)" in str(splits)


def test_plain_folders_are_in_the_order_of_timms_reader(folder):
    """Runs from before keep their labels and splits."""
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    for part in ("train", "val"):
        for name in ("cat10/a2", "cat10/a10", "cat9/B1", "cat9/b0", "Ant/x", "cat/11", "cat/1e3"):
            save(folder / part / f"{name}.png")
    for mine, part in zip(read_folder(folder), ("train", "val"), strict=True):
        theirs = ReaderImageFolder(str(folder / part))
        assert {name: i for i, name in enumerate(mine.classes)} == theirs.class_to_idx
        assert [(mine.images().name(i), mine.labels[i]) for i in range(len(mine.paths))] == theirs.samples


def test_a_name_that_is_no_text_is_read_and_printed(folder):
    path = os.path.join(os.fsencode(folder / "train" / "cat"), b"\xff.png")
    shutil.copy(os.fsencode(folder / "train" / "cat" / "0.png"), path)
    images = read_folder(folder)[0].images()
    names = [images.name(i) for i in range(len(images)) if images.image(i)]
    assert sum(name.endswith(r"/\xff.png") for name in names) == 1 and all(map(str.isprintable, names))
    with open(path, "wb"):
        pass
    with pytest.raises(UnreadableImage, match=r"/\\xff.png cannot be read: it is empty"):
        load(folder)


def test_the_digest_tells_changed_data(folder):
    before = load(folder).digest
    path = folder / "train" / "cat" / "0.png"
    os.utime(path, (1, 1))
    assert load(folder).digest == before  # a copy of the folder is the same data
    with open(path, "ab") as file:
        file.write(b"\0")
    larger = load(folder).digest
    path.rename(path.with_name("9.png"))
    assert len({before, larger, load(folder).digest}) == 3
    parts = read_folder(folder)
    assert digest(parts) != digest(parts, times=True)


# -- pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path, ending):
    deep = np.array([[0, 128, 129, 257], [1000, 49344, 65407, 65535]], dtype=np.uint16)
    path = tmp_path / f"deep.{ending}"
    if ending == "pgm":
        path.write_bytes(b"P5 4 2 65535\n" + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(path)
    pixels = np.asarray(read_rgb(path, "it"))
    assert pixels.shape == (2, 4, 3)
    assert pixels[..., 0].tolist() == [[0, 0, 1, 1], [4, 192, 255, 255]]  # value / 257, rounded


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_of_known_range_is_read(mode):
    source = Image.new("RGB", (1, 1), (255, 255, 255))
    image = (
        source.convert("LA").convert("La")
        if mode == "La"
        else (
            source.convert("P").convert("PA")
            if mode == "PA"
            else source.convert("RGBA").convert("RGBa")
            if mode == "RGBa"
            else source.convert(mode)
        )
    )
    assert image.mode == mode
    found = read_rgb(image, "it")
    assert found.mode == "RGB" and min(found.getpixel((0, 0))) >= 254


def test_a_palette_with_transparency_keeps_its_colours(tmp_path, recwarn):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=b"\x00\x80")
    found = read_rgb(tmp_path / "p.png", "it")
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]
    assert not recwarn.list


def test_an_animation_gives_its_first_picture_and_exif_does_not_turn(tmp_path):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_rgb(tmp_path / "a.gif", "it").getpixel((0, 0)) == (255, 0, 0)
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    frames[0].save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg", "it").size == (3, 2)


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int32)])
def test_pixels_without_a_known_range_are_refused(tmp_path, array):
    Image.fromarray(array).save(tmp_path / "odd.tif")
    with pytest.raises(UnreadableImage, match=r"odd.tif cannot be read: its pixels are .*white is unknown"):
        read_rgb(tmp_path / "odd.tif", tmp_path / "odd.tif")


# -- images that cannot be read ------------------------------------------------------------------------------


def spoil(path, how):
    """Make a file unreadable as disks and downloads do."""
    whole = path.read_bytes()
    path.unlink()
    if how == "missing":
        path.symlink_to("nowhere")
    else:
        path.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2], "text": b"<html>404</html>"}[how])


@pytest.fixture
def jpegs(tmp_path):
    """Two classes of 12 JPEG images with 2 test images each, all different."""
    noise, root = np.random.default_rng(0), tmp_path / "jpegs"
    for part, count in (("train", 12), ("val", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 255, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.jpg")
    return root


@pytest.mark.parametrize("how", ["torn", "text"])
def test_an_unreadable_image_is_an_error_that_names_its_file(jpegs, how):
    path = jpegs / "val" / "cat" / "1.jpg"
    spoil(path, how)
    test = load(jpegs).test
    assert torch.isfinite(test[0][0]).all()
    with pytest.raises(UnreadableImage, match=f"The image {path} cannot be read: .* bad_images='skip'.$"):
        test[1]


@pytest.mark.parametrize(
    ("how", "reason"), [("empty", "it is empty"), ("missing", "it is a link to a file that is not there")]
)
def test_what_the_listing_shows_is_refused_before_training(jpegs, how, reason):
    for number in (3, 4):
        spoil(jpegs / "train" / "dog" / f"{number}.jpg", how)
    with pytest.raises(GrowtasError, match=f"dog/3.jpg cannot be read: {reason}.*1 more.*growtas data check"):
        load(jpegs)


def test_a_loading_process_hands_on_the_sentence(jpegs):
    from growtas.training.config import TrainConfig

    path = jpegs / "train" / "cat" / "0.jpg"
    spoil(path, "torn")
    config = TrainConfig("rgb", data=f"folder:{jpegs}", epochs=1, batch_size=20, workers=1).resolved()
    with pytest.raises(UnreadableImage) as error:
        list(TrainingLoader(load(jpegs).train, config).batches(0))
    assert str(error.value).startswith(f"The image {path} cannot be read: ") and "\n" not in str(error.value)


def test_skip_leaves_unreadable_images_out_and_the_others_where_they_were(jpegs):
    whole = load(jpegs, bad_images="skip")
    assert "nothing left out" in str(whole)
    spoil(jpegs / "train" / "cat" / "0.jpg", "torn")
    spoil(jpegs / "train" / "dog" / "3.jpg", "missing")
    spoil(jpegs / "val" / "dog" / "1.jpg", "text")
    first = load(jpegs, bad_images="skip")
    bad = {"cat/0.jpg", "dog/3.jpg"}
    assert paths(first.train) == sorted(set(paths(whole.train)) - bad)
    assert paths(first.search) == sorted(set(paths(whole.search)) - bad)
    assert paths(first.test) == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg"]
    assert str(first).endswith("left out: 3 unreadable") and first.digest != whole.digest
    for split in (first.train, first.search, first.test):
        assert all(split[i][1] == split.labels[i] for i in range(len(split)))


def test_the_check_of_skip_is_kept_until_a_file_changes(jpegs, monkeypatch):
    from growtas.training.data import files

    calls = []
    decoded = files.decoded
    monkeypatch.setattr(files, "decoded", lambda *given: calls.append(0) or decoded(*given))
    spoil(jpegs / "train" / "cat" / "0.jpg", "torn")
    first, second = load(jpegs, bad_images="skip"), load(jpegs, bad_images="skip")
    assert len(calls) == 1 and first.summary() == second.summary()
    spoil(jpegs / "train" / "cat" / "1.jpg", "torn")
    assert "2 unreadable" in str(load(jpegs, bad_images="skip")) and len(calls) == 2


def test_images_that_turn_bad_without_a_change_of_size_are_noticed(jpegs):
    first, second = (jpegs / "train" / "cat" / f"{i}.jpg" for i in (0, 1))
    whole, digests = first.read_bytes(), [load(jpegs, bad_images="skip").digest]
    for path, other in ((first, None), (second, first)):
        path.write_bytes(bytes(path.stat().st_size))
        if other is not None:
            other.write_bytes(whole)
        digests.append(load(jpegs, bad_images="skip").digest)
    assert len(set(digests)) == 3


def test_a_class_that_loses_all_its_images_is_refused(folder):
    for i in range(3):
        spoil(folder / "train" / "dog" / f"{i}.png", "torn")
    with pytest.raises(UsageError, match="class dog .* has no image left"):
        load(folder, bad_images="skip")


# -- named data sets -----------------------------------------------------------------------------------------


class Column(list):
    column_names = ("image", "label")

    def __getitem__(self, key):
        return list(self) if isinstance(key, str) else super().__getitem__(key)


class Reader(types.SimpleNamespace):
    """timm's reader of a hub's table."""

    def __getitem__(self, index):
        return self.images[index], self.dataset["label"][index]

    def filename(self, index):
        return ("cat.png", None)[index]


def hub(monkeypatch, train, test, names=("cat", "dog"), images=None):
    """A hub's data set of these labels, as timm opens it."""
    import timm.data

    def create(name, root, split, download):
        table = Column(train if split == "train" else test)
        numbers = {name: i for i, name in enumerate(names)}
        reader = Reader(label_key="label", dataset=table, class_to_idx=numbers, images=images)
        return types.SimpleNamespace(reader=reader)

    monkeypatch.setattr(timm.data, "create_dataset", create)


@pytest.mark.parametrize(
    ("train", "test", "names", "sentence"),
    [
        (
            [0, 1, -1],
            [0, 1],
            ("a", "b"),
            "Image 2 of the training part .* label -1, but the 2 classes are 0 to 1",
        ),
        ([0, 1], [-1, -1], ("a", "b"), "Image 0 of the test part .* label -1"),
        ([0, 1], [0, 2], (), "Image 1 of the test part .* label 2, but the 2 classes"),
        ([0, 2], [0, 1], ("a", "b"), "Image 1 of the training part .* label 2"),
        ([0, None], [0, 1], ("a", "b"), "label None; labels must be whole numbers"),
        (["x", "y"], [0, 1], (), "label 'x'; labels must be whole numbers"),
        ([[0, 1], [1]], [0, 1], (), r"label \[0, 1\]; labels must be whole numbers"),
    ],
)
def test_labels_beyond_the_classes(monkeypatch, train, test, names, sentence):
    hub(monkeypatch, train, test, names)
    with pytest.raises(UsageError, match=sentence):
        read_named("hfds/a/b", None, False)


def test_an_unreadable_image_of_a_hub_is_an_error_too(monkeypatch, folder, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes((folder / "train/cat/0.png").read_bytes()[:40])
    hub(monkeypatch, [0, 1], [0, 1], images=[folder / "train/cat/0.png", torn])
    splits = load_splits("hfds/a/b", RGB)
    assert splits.classes == ("cat", "dog") and splits.test[0][0].shape == (3, 16, 16)
    with pytest.raises(UnreadableImage, match="The image 1 of hfds/a/b, part validation cannot be read"):
        splits.test[1]


def test_a_hub_without_the_label_column(monkeypatch):
    hub(monkeypatch, [0], [0])
    monkeypatch.setattr(Column, "column_names", ("image", "fine_label"))
    with pytest.raises(UsageError, match="no column 'label' of labels, only image, fine_label"):
        read_named("hfds/a/b", None, False)


def test_inaturalists_files_are_in_order_and_opened_here(tmp_path):
    for part in ("2021_train", "2021_valid"):
        for number, name in enumerate(("ant", "bee")):
            for file in "cab":
                save(tmp_path / part / f"{number:05d}_k_p_c_o_f_g_{name}" / f"{file}.png")
    splits = load_splits("torch/inaturalist", RGB, data_folder=str(tmp_path), download=True)
    assert splits.classes == ("00000_k_p_c_o_f_g_ant", "00001_k_p_c_o_f_g_bee")
    assert [path[-5:] for path in splits.test.source.paths] == ["a.png", "b.png", "c.png"] * 2
    spoil(tmp_path / "2021_valid" / "00001_k_p_c_o_f_g_bee" / "b.png", "torn")
    with pytest.raises(UnreadableImage, match="bee/b.png cannot be read"):
        splits.test[4]


@pytest.mark.parametrize(
    "targets", [[1, 0, 1], torch.tensor([1, 0, 1]), torch.tensor([[1, 7], [0, 7], [1, 7]])]
)
def test_images_that_torchvision_holds_in_memory(monkeypatch, targets):
    import timm.data

    data = types.SimpleNamespace(targets=targets, classes=[("ant", "emmet"), ("bee",)])
    monkeypatch.setattr(timm.data, "create_dataset", lambda *given, **more: data)
    train, _ = read_named("torch/qmnist", "folder", False)
    assert train.labels == [1, 0, 1] and train.classes == ("ant, emmet", "bee")


def test_torchvisions_folder_is_read_as_ours_is(folder):
    save(folder / "train" / ".ipynb_checkpoints" / "x.png")
    splits = load_splits("torch/image_folder", RGB, data_folder=str(folder))
    assert splits.classes == ("cat", "dog") and "1 hidden" in str(splits)
    shutil.rmtree(folder / "val" / "cat")
    with pytest.raises(UsageError, match="which .*val lacks"):
        load_splits("torch/image_folder", RGB, data_folder=str(folder))
