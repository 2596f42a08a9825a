"""Images are resized to Pillow's pixels, and crops in a batch to the same values as each alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from growtas.training.data import resize
from growtas.training.data.resize import in_batches, resized, resized_crops

MODES = ("bilinear", "bicubic")


def crops_of(shapes, seed=0):
    """Noise, black and white pixels, and smooth images, in turn."""
    noise = np.random.default_rng(seed)
    crops = [noise.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    crops[1::3] = [(crop > 127) * np.uint8(255) for crop in crops[1::3]]
    crops[2::3] = [
        np.array(Image.fromarray(crop[:7, :7]).resize(crop.shape[1::-1], Image.Resampling.BICUBIC))
        for crop in crops[2::3]
    ]
    return [torch.from_numpy(crop) for crop in crops]


def in_one_batch(crops, modes, size):
    shapes = torch.tensor([crop.shape[:2] for crop in crops])
    cubic = torch.tensor([mode == "bicubic" for mode in modes])
    return resized_crops(torch.cat([crop.flatten() for crop in crops]), shapes, cubic, size)


@pytest.mark.parametrize("mode", MODES)
def test_one_image_gets_pillows_pixels(mode):
    (pixels,) = crops_of([(61, 93)])
    image = Image.fromarray(pixels.numpy())
    for shape in ((24, 31), (61, 93), (120, 200)):
        expected = np.array(image.resize(shape[::-1], getattr(Image.Resampling, mode.upper())), np.int16)
        away = np.abs(resized(pixels, *shape, mode).numpy() - expected)
        assert away.mean() < 0.1 and away.max() <= 2


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_gets_pillows_pixels(mode):
    crops = crops_of([(40, 60), (17, 33), (60, 59), (5, 44), (41, 40), (1, 1)])
    images = in_one_batch(crops, [mode] * len(crops), 40).permute(0, 2, 3, 1).numpy()
    for crop, image in zip(crops, images, strict=True):
        pillows = Image.fromarray(crop.numpy()).resize((40, 40), getattr(Image.Resampling, mode.upper()))
        away = np.abs(image - np.array(pillows, np.int16))
        assert away.mean() < 0.05 and away.max() <= 1


@pytest.mark.parametrize(("size", "count"), [(224, 24), (40, 200), (9, 200), (2, 40), (1, 3)])
def test_a_batch_gets_the_values_of_each_alone(size, count):
    """Crops that are enlarged and shrunk, of both filters, in more groups than one."""
    noise = np.random.default_rng(size)
    most = int(resize.LARGEST * size)
    shapes = [*noise.integers(1, most + 1, (count, 2)).tolist(), [most, most], [1, most], [size, 1]]
    modes = [MODES[i] for i in noise.integers(0, 2, len(shapes))]
    crops = crops_of(shapes, size)
    images = in_one_batch(crops, modes, size)
    for crop, mode, image in zip(crops, modes, images, strict=True):
        assert torch.equal(image, resized(crop, size, size, mode).permute(2, 0, 1)), (crop.shape, mode)


@pytest.mark.parametrize("size", [31, 32])
def test_every_length_gets_torchs_weights(size):
    """A white line at each place shows every weight, in one direction at a time."""
    for length in range(1, int(resize.LARGEST * size) + 1):
        lines = (torch.eye(length, dtype=torch.uint8) * 255)[..., None].expand(-1, -1, 3)
        for mode in MODES:
            expected = resized(lines, length, size, mode)
            matrix = sum(_matrices(size, length, mode))
            ours = (matrix * 255 + 0.5).floor().clamp(0, 255)
            assert torch.equal(ours.mT.to(torch.uint8), expected[..., 0])


def _matrices(size, length, mode):
    kinds, lengths = torch.tensor([MODES.index(mode)]), torch.tensor([length])
    return [each[0] for each in resize._matrices(size, lengths, kinds, length)]


@pytest.mark.parametrize("mode", MODES)
def test_no_product_is_rounded_in_tf32(mode):
    """TF32 cuts 13 bits off a factor; a sum of multiples of 2**-15 below 2**9 is exact in float32."""
    for length in range(1, int(resize.LARGEST * 224) + 1):
        high, low = _matrices(224, length, mode)
        for factors in (high, low):
            assert not (factors.view(torch.int32) & 0x1FFF).any()
        weights = high + low
        assert torch.equal(weights * 2**15, (weights * 2**15).round())
        assert 255 * weights.abs().sum(1).max() + 1 < 2**9
        assert (weights.sum(1) - 1).abs().max() < 1e-4


def test_crops_of_the_new_size_are_kept():
    crops = crops_of([(20, 20)] * 3)
    images = in_one_batch(crops, ["bicubic", "bilinear", "bicubic"], 20)
    assert torch.equal(images, torch.stack(crops).permute(0, 3, 1, 2)) and images.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "mode", "taken"),
    [
        ((336, 10), "bicubic", True),
        ((10, 337), "bicubic", False),
        ((337, 10), "bilinear", False),
        ((224, 224), "nearest", False),
    ],
)
def test_which_crops_wait_for_a_batch(shape, mode, taken):
    assert in_batches(*shape, 224, mode) is taken
