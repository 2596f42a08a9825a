"""JPEG files are decoded to Pillow's pixels, or left to Pillow."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from growtas.space import load_space
from growtas.training.data import evaluation_loader
from growtas.training.data.decode import UnreadableImage
from growtas.training.data.images import EVALUATION_CROP, FileImages
from growtas.training.data.jpeg import jpeg_pixels
from growtas.training.data.sources import PathImages


@pytest.fixture(scope="module")
def photograph():
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((93, 61), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_the_pixels_are_pillows(photograph, mode, options):
    data = encoded(photograph.convert(mode), **options)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(jpeg_pixels(data).numpy(), expected)


def test_others_are_left_to_pillow(photograph):
    whole = encoded(photograph)
    for data in (
        b"",
        whole[:500],
        whole[:-1],
        encoded(photograph.convert("CMYK")),
        encoded(photograph, "PNG"),
    ):
        assert jpeg_pixels(data) is None


def test_pixels_of_files(photograph, tmp_path):
    whole = encoded(photograph)
    contents = {"a.jpg": whole, "b.png": encoded(photograph, "PNG"), "c.jpg": whole[:-20]}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    source = PathImages(tmp_path, [*contents, "missing.jpg"], [0, 0, 1, 1], ["a", "b"])
    for index in range(2):
        expected = np.array(source.image(index))
        assert np.array_equal(source.pixels(index).numpy(), expected)
        part = source.pixels(index, lambda height, width: (3, 5, height - 10, width - 20))
        assert np.array_equal(part.numpy(), expected[3:54, 5:78])
    for index, name in ((2, "c.jpg"), (3, "missing.jpg")):
        with pytest.raises(UnreadableImage, match=f"{name} cannot be read"):
            source.pixels(index)


@pytest.mark.parametrize("shape", [(61, 93), (93, 61), (20, 20), (300, 201)])
def test_evaluation_gives_timms_images(shape, photograph, tmp_path):
    space = dataclasses.replace(load_space("digits"), image_size=32, in_channels=3)
    photograph.resize(shape).save(tmp_path / "a.png")
    for interpolation in ("bicubic", "bilinear"):
        split = FileImages(PathImages(tmp_path, ["a.png"], [1], []), [0], [1], space, interpolation)
        transform = create_transform(32, crop_pct=EVALUATION_CROP, interpolation=interpolation)
        expected = transform(Image.open(tmp_path / "a.png"))
        (images, labels), *_ = evaluation_loader(split, 4)
        assert labels.tolist() == [1] and torch.equal(images[0], split[0][0])
        assert (images[0] - expected).abs().mean() < 0.002  # a level of 255 is 0.017
