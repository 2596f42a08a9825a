"""The data of a run as it keeps it: class names, sizes, a digest; and ``growtas data check``."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import timm
import torch
from PIL import Image
from runs import SPACE

import growtas
from growtas import cli
from growtas.errors import GrowtasError, UsageError
from growtas.training import checkpoint, start
from growtas.training.config import TrainConfig
from growtas.training.data import load_splits
from growtas.training.data.decode import UnreadableImage
from growtas.training.ranks import Ranks
from growtas.training.run import Run

SETTINGS = {
    "method": "uniform",
    "epochs": 2,
    "batch_size": 18,
    "auto_augment": "none",
    "eval_every": 0,
    "eval_subnets": 0,
    "tensorboard": False,
    "device": "cpu",
    "workers": 0,
}


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """A finished run on image files, with the folder that it owns; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(image_folder, root / "images")
    torch.set_num_threads(1)
    return growtas.train(SPACE, f"folder:{root / 'images'}", **SETTINGS, out=root / "run")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run and of its images."""
    shutil.copytree(trained.path.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "run"
    file = path / "config.yaml"
    file.write_text(file.read_text().replace(str(trained.path.parent), str(path.parent)))
    return Run.open(path)


def images_of(run):
    return run.path.parent / "images"


def test_training_says_what_was_found(image_folder, tmp_path, capsys):
    growtas.train(SPACE, f"folder:{image_folder}", **SETTINGS | {"epochs": 1}, out=tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data ")]
    assert lines == [
        f"data folder:{image_folder}: 3 classes; 54 images to train on, 6 held out for the search, "
        "12 to test on; nothing left out"
    ]


def test_class_names_are_kept_and_exported(trained, tmp_path):
    names = ["ant", "bee", "cat"]
    assert Run.open(trained.path).classes == tuple(names)
    model = growtas.extract(trained, SPACE.smallest())
    folder = growtas.export.save(model, tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["label_names"] == names
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert list(loaded.pretrained_cfg["label_names"]) == names
    again = growtas.export.save(growtas.export.load(folder), tmp_path / "again")
    assert json.loads((again / "config.json").read_text())["label_names"] == names
    loaded.reset_classifier(2)  # another task: the names are not its
    assert "label_names" not in growtas.export.files.config(loaded)


@pytest.mark.parametrize("change", ["bytes", "name", "class"])
def test_changed_images_are_noticed(run, change):
    file = images_of(run) / "train" / "bee" / "3.png"
    if change == "bytes":
        Image.new("RGB", (300, 200), (1, 2, 3)).save(file)
    elif change == "name":
        file.rename(file.with_name("33.png"))
    else:
        file.rename(images_of(run) / "train" / "cat" / "20.png")
        (images_of(run) / "train" / "cat" / "0.png").rename(images_of(run) / "train" / "bee" / "3.png")
    with pytest.raises(GrowtasError, match="has changed since the run began"):
        run.splits()


def test_a_run_from_before_names_and_digests_goes_on(run):
    file = run.path / "config.yaml"
    text, count = re.subn(r"(?m)^(  digest|  bad_images|classes): .*\n", "", file.read_text())
    assert count == 3
    file.write_text(text)
    state = checkpoint.load(run.checkpoint_path)
    del state["run"]["bad_images"]
    torch.save(state, run.checkpoint_path)
    old = Run.open(run.path)
    assert old.classes == () and "digest" not in old.images
    assert len(old.splits().train) == 54 and old.load_net()
    assert "label_names" not in growtas.export.files.config(growtas.extract(old, SPACE.smallest()))
    growtas.train(resume=run.path)


def test_a_checkpoint_of_another_setting_is_still_refused(run):
    state = checkpoint.load(run.checkpoint_path)
    state["run"]["bad_images"] = "skip"
    torch.save(state, run.checkpoint_path)
    with pytest.raises(GrowtasError, match="differs from config.yaml in bad_images"):
        run.load_net()


def test_a_run_that_skips_unreadable_images_resumes(image_folder, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    torn = images / "train" / "ant" / "5.png"
    torn.write_bytes(torn.read_bytes()[:100])
    given = SETTINGS | {"checkpoint_every_steps": 1, "out": tmp_path / "run"}
    with pytest.raises(UnreadableImage, match=str(torn)):
        growtas.train(SPACE, f"folder:{images}", **given | {"out": tmp_path / "other"})
    run = growtas.train(SPACE, f"folder:{images}", **given, bad_images="skip")
    assert "; left out: 1 unreadable" in capsys.readouterr().out
    splits = run.splits()
    assert run.images["train"] + run.images["search"] == 59 and splits.summary() == run.images
    assert all(torch.isfinite(splits.train[i][0]).all() for i in range(len(splits.train)))
    for file in (images / "train" / "bee" / "0.png", images / "train" / "bee" / "1.png"):
        file.write_bytes(b"")
    with pytest.raises(GrowtasError, match="has changed since the run began"):
        run.splits()


def test_ranks_with_other_data_are_refused(image_folder):
    class Second(Ranks):
        def on_first(self, work):
            return {"digest": "of rank 0"}

        def sum(self, values):
            return values

    def load():
        return load_splits(f"folder:{image_folder}", SPACE)

    config = TrainConfig("small", data=f"folder:{image_folder}")
    with pytest.raises(GrowtasError, match="not the same on all 2 ranks: rank 1 has .*'of rank 0'"):
        start._load_data(load, config, torch.device("cpu"), Second(1, 2))
    assert len(start._load_data(load, config, torch.device("cpu"), Ranks()).train) == 54


# -- growtas data check --------------------------------------------------------------------------------------


def check(folder, *more):
    return cli.main(["data", "check", str(folder), "--workers", "0", *more])


def test_check_finds_nothing_wrong(image_folder, capsys):
    assert check(f"folder:{image_folder}") == 0
    assert capsys.readouterr().out == (
        f"data folder:{image_folder}: 3 classes; 60 training and 12 test images, 20x24 to 39x24 pixels, "
        "0 of them unreadable; nothing left out\n"
    )


def test_check_names_what_is_unreadable_and_skip_takes_its_word(image_folder, tmp_path, capsys, monkeypatch):
    from growtas.training.data import files

    images, listed = tmp_path / "images", tmp_path / "bad.txt"
    shutil.copytree(image_folder, images)
    torn = [images / "train" / "ant" / f"{i}.png" for i in range(18)]
    empty = [images / "train" / "cat" / f"{i}.png" for i in range(3, 8)]
    for file in torn + empty:
        file.write_bytes(file.read_bytes()[:100] if file in torn else b"")
    assert check(images, "--out", str(listed)) == 1
    out = capsys.readouterr().out
    assert "60 training and 12 test images" in out and "23 of them unreadable" in out
    assert out.count("\n  unreadable ") == 20 and "and 3 more; --out FILE" in out
    lines = listed.read_text().splitlines()
    assert {line.partition(":")[0] for line in lines} == {str(file) for file in torn + empty}
    assert f"{empty[0]}: it is empty" in lines
    monkeypatch.setattr(files, "decoded", None)  # not a second time
    assert "23 unreadable" in str(load_splits(f"folder:{images}", SPACE, bad_images="skip"))


def test_processes_check_as_one_does(image_folder):
    from growtas.training.data.files import decoded, read_files

    files = read_files(f"folder:{image_folder}")
    assert list(decoded(files, workers=2)) == list(decoded(files, workers=0))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["check", "digits"], "embedded: it has no files"),
        (["check", "/nowhere"], "There is no data set '/nowhere'"),
        (["chek"], "no command 'chek'. Did you mean 'check'"),
    ],
)
def test_wrong_calls(args, sentence, capsys):
    assert cli.main(["data", *args]) == 2
    assert sentence in capsys.readouterr().err


def test_help_of_the_verb_and_of_its_command(capsys):
    assert cli.main(["data"]) == 2 and cli.main(["data", "--help"]) == 0
    assert "  check " in capsys.readouterr().out
    assert cli.main(["data", "check", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--data-folder" in out and "Raises" not in out


@pytest.mark.parametrize("value", ["ignore", ""])
def test_bad_images_is_error_or_skip(value, tmp_path):
    with pytest.raises(UsageError, match="bad_images=.* is unknown. .*Known: error, skip"):
        growtas.train("digits", bad_images=value, out=tmp_path / "run")
