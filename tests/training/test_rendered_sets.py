"""Rendered characters beside the glyphs: fonts as classes, and noisy labels."""

from __future__ import annotations

import hashlib
import string

import numpy as np
import pytest
import torch
from PIL import Image
from test_glyphs import ROOT

from growtas.errors import UsageError
from growtas.jobs.folder import space_and_data
from growtas.space import load_space
from growtas.training.config import TrainConfig
from growtas.training.data import load_splits
from growtas.training.data.fonts import CHARACTERS, TEST_FONTS, TRAINING_FONTS
from growtas.training.data.glyphs import GLYPHS
from growtas.training.data.rendered import read_rendered, with_noise
from growtas.training.data.typefaces import TYPEFACES

SPACE = load_space("typefaces")
DIGEST = {"train": "bc74438021237cf2", "test": "33994cb97f02a789"}
"""Of the first 63 images of seed 0. They change with the code that draws them, and with nothing else."""


@pytest.fixture(scope="module")
def clean():
    return load_splits("typefaces:420", SPACE)


# -- typefaces ---------------------------------------------------------------------------------------------


def test_characters_of_training_and_test_are_disjoint():
    train, test = (TYPEFACES.characters[part] for part in ("train", "test"))
    assert (len(train), len(test)) == (41, 21) and sorted(train + test) == sorted(CHARACTERS)
    for alphabet in (string.digits, string.ascii_uppercase, string.ascii_lowercase):
        assert set(alphabet) & set(train) and set(alphabet) & set(test)
    assert {each.lower() for each in train}.isdisjoint(each.lower() for each in test)


def test_every_font_is_a_class():
    assert set(TYPEFACES.classes) == set(TRAINING_FONTS + TEST_FONTS) and len(TYPEFACES.classes) == 21
    assert TYPEFACES.fonts["test"] == TYPEFACES.fonts["train"]


@pytest.mark.parametrize("part", DIGEST)
def test_the_same_pixels_everywhere(part):
    images, labels = TYPEFACES.images(63, 0, part)
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == DIGEST[part]
    assert np.array_equal(labels, np.arange(63) % 21)
    assert np.array_equal(TYPEFACES.images(9, 0, part, first=54)[0], images[54:])


def test_an_image_is_of_the_font_that_its_label_names():
    """Bold fonts have more ink than thin ones of the same family, whatever the character."""
    images, labels = TYPEFACES.images(21 * 40)
    bright = images - np.median(images, axis=(1, 2), keepdims=True)
    ink = {font: bright[labels == label].mean() for label, font in enumerate(TYPEFACES.classes)}
    assert ink["DejaVuSans-Bold"] > ink["DejaVuSans"] and ink["STIXGeneralBol"] > ink["STIXGeneral"]


def test_splits_are_balanced(clean):
    sizes = {"num_classes": 21, "train": 420, "search": 1260, "test": 6300}
    assert clean.summary() == {**sizes, "digest": clean.digest} and clean.classes == TYPEFACES.classes
    for split, each in ((clean.train, 20), (clean.search, 60), (clean.test, 300)):
        assert (split.labels.bincount() == each).all()
    assert abs(clean.train.images.mean()) < 0.05 and abs(clean.train.images.std() - 1) < 0.05


def test_recipe_and_preset():
    config = TrainConfig("typefaces").resolved()
    assert (config.data, config.epochs, config.batch_size, config.lr) == ("typefaces", 40, 64, 6e-3)
    glyphs = load_space("glyphs")
    assert SPACE.embed_dim == glyphs.embed_dim and SPACE.count() == glyphs.count()


def test_the_picture_in_the_documentation_is_of_these_images():
    with Image.open(ROOT / "docs" / "images" / "typefaces.png") as picture:
        sheets = [TYPEFACES.contact_sheet(part, columns=21, rows=2) for part in ("train", "test")]
        assert np.array_equal(np.asarray(picture), np.concatenate(sheets))


# -- noisy labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["typefaces:420", "glyphs:1000"])  # which other tests render as well
def test_only_labels_that_are_trained_on_are_noisy(data):
    pure, noisy = (load_splits(data + more, SPACE) for more in ("", ",label_noise=0.25"))
    changed = (noisy.train.labels != pure.train.labels).double().mean()
    assert abs(changed - 0.25) < 4 * (0.25 * 0.75 / len(pure.train)) ** 0.5
    assert torch.equal(noisy.train.images, pure.train.images)
    for part in ("search", "test"):
        assert torch.equal(getattr(noisy, part).labels, getattr(pure, part).labels)
    assert noisy.train.labels.min() >= 0 and noisy.train.labels.max() < pure.num_classes


def test_a_noisy_label_is_any_other_class_alike():
    labels = torch.arange(8000) % 21
    counts = ((with_noise(labels, range(8000), 0.9, TYPEFACES) - labels) % 21).bincount(minlength=21)
    assert abs(counts[0] - 800) < 4 * (8000 * 0.9 * 0.1) ** 0.5
    assert ((counts[1:] - 360).abs() < 5 * 360**0.5).all()


def test_noise_is_a_function_of_the_image_and_grows_with_its_share(clean):
    def noisy(share, seed=0, count=420):
        found = load_splits(f"typefaces:{count},label_noise={share}", SPACE, seed)
        keys = [image.numpy().tobytes() for image in found.train.images]
        return dict(zip(keys, found.train.labels.tolist(), strict=True))

    some, more, other = noisy(0.2), noisy(0.5), noisy(0.2, seed=1)
    assert some == noisy(0.2) and all(other[key] == some[key] for key in other.keys() & some.keys())
    pure = dict(zip(some, clean.train.labels.tolist(), strict=True))
    assert {key for key in some if some[key] != pure[key]} < {key for key in more if more[key] != pure[key]}
    assert all(more[key] == some[key] for key in some if some[key] != pure[key])


def test_noise_is_part_of_the_identity_of_data(clean):
    digests = {load_splits(f"typefaces:420,label_noise={x}", SPACE).digest for x in (0.1, 0.2)}
    assert len(digests | {clean.digest}) == 3
    assert load_splits("typefaces:420,label_noise=0", SPACE).digest == clean.digest


def test_noise_alone_keeps_the_number_of_images():
    assert read_rendered("glyphs:label_noise=0.2") == (GLYPHS, 16_000, 0.2)


def test_the_recipe_and_the_space_are_those_of_the_set():
    config = TrainConfig("typefaces", data="glyphs:500,label_noise=0.1").resolved()
    assert config.lr == TrainConfig("glyphs").resolved().lr
    assert space_and_data(None, "typefaces:500,label_noise=0.1")[0] == SPACE


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            "glyphs:100,label_noise=1",
            r"label_noise='1' of 'glyphs:100,label_noise=1' .* at least 0 and below 1",
        ),
        ("typefaces:label_noise=-0.1", "label_noise='-0.1' .* such as 'typefaces:label_noise=0.2'"),
        ("glyphs:label_noise=nan", "label_noise='nan'"),
        ("glyphs:label_noise=", "label_noise=''"),
        ("glyphs:label_noise=much", "label_noise='much'"),
        (
            "glyphs:label_noise=0.1,5",
            "ends in '5', which means nothing; write 'glyphs:16000,label_noise=0.2'",
        ),
        ("typefaces:5,noise=0.1", "ends in 'noise=0.1'"),
        ("typefaces:0,label_noise=0.1", "names no number of training images"),
        ("typefaces:", "write 'typefaces:16000', or 'typefaces'"),
        ("typeface", "Did you mean 'typefaces'"),
    ],
)
def test_names_that_are_refused(data, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_splits(data, SPACE)
