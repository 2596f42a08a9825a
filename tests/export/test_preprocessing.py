"""A saved model describes its input as the run's evaluation prepared it."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from growtas.architectures.growtas_vit import pretrained_cfg
from growtas.space import load_space
from growtas.training.data import load_splits, preprocessing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight grey images of two classes, stored in colour, larger than the network's input."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for number in range(4):
                grey = rng.integers(0, 256, (40, 50, 1), dtype=np.uint8)
                Image.fromarray(grey.repeat(3, 2)).save(root / part / label / f"{number}.png")
    return root


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_timms_transform_of_the_saved_configuration_is_the_evaluations(folder, channels, interpolation):
    space = dataclasses.replace(load_space("digits"), image_size=32, patch_size=8, in_channels=channels)
    name = f"folder:{folder}"
    splits = load_splits(name, space, interpolation=interpolation)
    cfg = pretrained_cfg(input_size=(channels, 32, 32), **preprocessing(name, space, interpolation))
    transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    paths = sorted((folder / "val").glob("*/*.png"))
    assert len(paths) == len(splits.test) == 8
    for (image, _), path in zip(splits.test, paths, strict=True):
        theirs = transform(Image.open(path).convert("RGB" if channels == 3 else "L"))
        assert image.std() > 0.5
        # torch and Pillow round a few of the resized pixels to neighbours among 256 levels
        torch.testing.assert_close(image, theirs, rtol=0, atol=0.02)
        assert (image - theirs).abs().mean() < 1e-3


def test_the_digits_have_as_many_entries_as_channels():
    space = dataclasses.replace(load_space("digits"), in_channels=3)
    assert [len(preprocessing("digits", space)[name]) for name in ("mean", "std")] == [3, 3]
