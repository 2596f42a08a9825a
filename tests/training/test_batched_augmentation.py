"""Batched augmentation draws what timm's transforms draw, and gives the pixels that Pillow gives."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import LEVEL_TO_ARG, AugmentOp, RandAugment
from torchvision.transforms import ColorJitter

from growtas.training.config import TrainConfig
from growtas.training.data import augment
from growtas.training.data.draws import Row, TrainingDraws, _has_batched_form, _note
from growtas.training.data.images import AugmentedImages, seed_globally
from growtas.training.data.policies import with_safe_operations

SIZE = 40
RECIPE = {"auto_augment": "rand-m9-mstd0.5-inc1", "hflip": 0.5, "color_jitter": 0.0, "reprob": 0.0}
OTHERS = ("Desaturate", "GaussianBlur", "GaussianBlurRand", "PosterizeOriginal")  # of unbatched policies
BATCHED = [name for name in LEVEL_TO_ARG if name not in OTHERS]


def settings(**given):
    return TrainConfig("digits", data="folder:x", **{**RECIPE, **given}).resolved()


@pytest.fixture(scope="module")
def photographs():
    """Smooth and noisy RGB images, one of a single colour, one of few values."""
    noise = np.random.default_rng(0)
    coarse = noise.integers(0, 256, (4, 6, 7, 3), dtype=np.uint8)
    images = [Image.fromarray(each).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for each in coarse]
    images.append(Image.fromarray(noise.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)))
    images.append(Image.new("RGB", (SIZE, SIZE), (9, 200, 30)))
    images.append(Image.fromarray(noise.integers(1, 4, (SIZE, SIZE, 3), dtype=np.uint8) * 60))
    return images


def pixels_of(images):
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def applied(pixels, draws):
    return augment.augment(pixels.permute(0, 3, 1, 2).contiguous(), draws).permute(0, 2, 3, 1)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("name", BATCHED)
def test_every_operation_gives_pillows_pixels(name, resample, photographs):
    draws = TrainingDraws(SIZE, settings())
    hparams = {"interpolation": resample, "translate_const": 18, "img_mean": augment.FILL}
    expected, rows = [], []
    for number, image in enumerate(photographs * 4):
        operation = AugmentOp(name, prob=1, magnitude=0.37 + number % 10, hparams=hparams)
        policy = with_safe_operations(RandAugment([operation], num_layers=1))
        seed_globally("operation", number)
        expected.append(policy(image))
        operation.aug_fn = functools.partial(_note, name, SIZE)
        seed_globally("operation", number)
        rows.append(Row((SIZE, SIZE), False, False, policy([]), (), 0))
    changed = applied(pixels_of(photographs * 4), draws.collate(rows))
    away = (changed.int() - pixels_of(expected).int()).abs()
    geometric = name.startswith(("Shear", "Translate", "Rotate"))
    assert away.max() <= geometric
    assert (away > 0).float().mean() < 0.005  # float32 where Pillow has float64


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"auto_augment": "rand-m9-n3-p0.8-mstd101-mmax14", "interpolation": "random"},
        {"auto_augment": "rand-m7-tweights", "reprob": 0.7, "remode": "const", "recount": 3},
        {"auto_augment": "none", "color_jitter": 0.4, "interpolation": "bilinear"},
        {"auto_augment": "none", "interpolation": "nearest"},
        {"auto_augment": "rand-m9-inc1", "interpolation": "nearest"},
        {"auto_augment": "original-mstd0.5"},
        {"auto_augment": "augmix"},
        {"auto_augment": "3a", "color_jitter": 0.3},
    ],
)
def test_images_are_those_of_timms_transforms(given, photographs):
    """The same seed gives timm's image: same crop, flip, operations, strengths and rectangles."""
    config = settings(**given)
    augmented = AugmentedImages(_Split(photographs * 3), config)
    transform = with_safe_operations(
        create_transform(
            SIZE,
            is_training=True,
            hflip=config.hflip,
            color_jitter=config.color_jitter or None,
            auto_augment=None if config.auto_augment == "none" else config.auto_augment,
            interpolation=config.interpolation,
            re_prob=config.reprob,
            re_mode=config.remode,
            re_count=config.recount,
        )
    )
    keys = [(2, image, 1) for image in range(len(photographs) * 3)]
    pixels, labels, draws = augmented.collate([augmented[key] for key in keys])
    images = augmented.finished(pixels, draws)
    assert labels.tolist() == [image for _, image, _ in keys]
    expected = []
    for key in keys:
        seed_globally("augment", config.seed, *key)
        expected.append(transform(photographs[key[1] % len(photographs)]))
    away = (images - torch.stack(expected)).abs()
    assert away.mean() < 0.02  # of about a level in 255, where a level is 0.017
    assert away.flatten(1).mean(1).median() < 0.004


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, {30, 50}),
        ({"interpolation": "random", "reprob": 0.5}, {30, 50}),
        ({"interpolation": "nearest"}, set()),
        ({"auto_augment": "augmix"}, set()),
    ],
)
def test_a_resize_left_to_the_device_gives_the_same_images(given, left):
    """Crops not much larger than the image, where no policy needs the pixels before."""
    noise = np.random.default_rng(0)
    sides = (30, 50, 400)
    images = [noise.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in sides]
    augmented = AugmentedImages(_Split(images * 20), settings(**given))
    keys, batches = [(0, image, 0) for image in range(60)], []
    for augmented.resizes in (True, False):
        items = [augmented[key] for key in keys]
        pixels, _, draws = augmented.collate(items)
        batches.append(augmented.finished(pixels, draws))
    assert torch.equal(*batches)
    resized = [crop.shape[:2] == (SIZE, SIZE) for crop, _, _ in items]
    for i, side in enumerate(sides):
        assert all(resized[i::3]) is (side not in left)


class _Split:
    """As much of FileImages as training takes."""

    size, channels = SIZE, 3

    def __init__(self, images):
        self.images, self.labels = images, range(len(images))

    def __len__(self):
        return len(self.images)

    def pixels(self, index, box):
        pixels = torch.from_numpy(np.array(self.images[index]))
        top, left, height, width = box(*pixels.shape[:2])
        return pixels[top : top + height, left : left + width]


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_an_image_does_not_depend_on_its_batch(mode, photographs):
    config = settings(reprob=0.6, remode=mode, recount=2)
    augmented = AugmentedImages(_Split(photographs), config)
    augmented.resizes = False
    items = [augmented[(0, image, 0)] for image in range(len(photographs))]

    def finished(chosen):
        pixels, _, draws = augmented.collate([items[i] for i in chosen])
        return augmented.finished(pixels, draws)

    whole = finished(range(len(items)))
    for i in range(len(items)):
        assert torch.equal(finished([i])[0], whole[i])
    assert torch.equal(finished([5, 2, 0]), whole[[5, 2, 0]])


def test_operations_are_drawn_as_often_and_as_strongly_as_by_timm(photographs):
    draws = TrainingDraws(SIZE, settings())
    image, count = pixels_of(photographs)[0], 2000
    drawn = []
    for key in range(count):
        seed_globally("often", key)
        drawn.append(draws.rest(image, "bicubic")[1])
    kinds = Counter(step.kind for row in drawn for step in row.steps)
    layers = 2 * count * 0.5 / 15  # two of fifteen operations, each with probability 0.5
    tables = ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness")
    expected = {
        augment.TABLE: len(tables),
        **dict.fromkeys((augment.CONTRAST, augment.AUTOCONTRAST, augment.EQUALIZE), 1),
        **dict.fromkeys((augment.COLOR, augment.SHARPNESS, augment.BICUBIC), 1),
        **dict.fromkeys((augment.BICUBIC_X, augment.BICUBIC_Y), 2),
    }
    assert kinds.keys() == expected.keys()
    for kind, share in expected.items():
        assert abs(kinds[kind] - share * layers) < 5 * (share * layers) ** 0.5
    factors = [step.numbers[0] for row in drawn for step in row.steps if step.kind == augment.COLOR]
    strengths = np.abs(np.array(factors) - 1)
    assert abs(strengths.mean() - 0.81) < 0.02 and 0.02 < strengths.std() < 0.06  # 0.9 of 9 +- 0.5 tenths
    assert abs(np.mean(np.array(factors) > 1) - 0.5) < 0.2
    assert abs(np.mean([row.flip for row in drawn]) - 0.5) < 0.05


def test_erased_pixels_are_normal_noise(photographs):
    augmented = AugmentedImages(_Split(photographs * 6), settings(auto_augment="none", reprob=1.0))
    pixels, _, draws = augmented.collate([augmented[(0, image, 0)] for image in range(42)])
    plain = augmented.finished(pixels, draws._replace(rectangles=draws.rectangles * 0))
    images = augmented.finished(pixels, draws)
    top, left, height, width = draws.rectangles[:, 0].t()
    noise = []
    for i in range(42):
        within = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        within[top[i] : top[i] + height[i], left[i] : left[i] + width[i]] = True
        assert torch.equal(images[i][:, ~within], plain[i][:, ~within])
        noise.append(images[i][:, within].flatten())
    assert len({each[0].item() for each in noise}) == 42
    noise = torch.cat(noise)
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert abs((noise**4).mean() - 3) < 0.2
    assert 0.02 <= (height * width).float().mean() / SIZE**2 <= 1 / 3


def test_keyed_noise_is_normal_and_independent():
    noise = augment.keyed_normal(torch.tensor([5, 6, 5 + 2**40]), 30_001)
    assert torch.equal(augment.keyed_normal(torch.tensor([6]), 301)[0], noise[1, :301])
    assert (noise.mean(1).abs() < 0.03).all() and ((noise.std(1) - 1).abs() < 0.03).all()
    assert (torch.corrcoef(noise) - torch.eye(3)).abs().max() < 0.03
    assert abs(torch.corrcoef(torch.stack((noise[0, 1:], noise[0, :-1])))[0, 1]) < 0.03


def test_which_policies_are_batched():
    for policy, batched in {
        "none": True,
        "rand-m9-mstd0.5-inc1": True,
        "rand-m5-n4-tweights": True,
        "rand-m9-t3a": False,
        "augmix": False,
        "v0": False,
        "3a": False,
    }.items():
        assert TrainingDraws(SIZE, settings(auto_augment=policy)).batched is batched
    assert not _has_batched_form(ColorJitter(0.1, 0.1, 0.1, 0.1))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_the_host_plans_without_the_devices_values(mode, photographs):
    """On the device without values everything runs that neither waits for values nor mixes devices."""
    config = settings(interpolation="random", auto_augment="rand-m9-n3-p1", reprob=1.0, remode=mode)
    augmented = AugmentedImages(_Split(photographs * 9), config)
    augmented.resizes = False
    pixels, _, draws = augmented.collate([augmented[(0, image, 0)] for image in range(63)])
    assert len(draws.kinds.unique()) == augment.KINDS - 1  # all but NONE
    images = augmented.finished(pixels.to("meta"), draws)
    assert images.shape == (63, 3, SIZE, SIZE)
    assert images.dtype == torch.float32 and images.device.type == "meta"


@pytest.mark.parametrize(
    "policy", ["rand-m20-n4-p1-mstd101-mmax20-inc1", "rand-m10-p1-tweights", "v0", "none"]
)
@pytest.mark.parametrize("size", [1, 2, 9])
def test_small_images_go_through(policy, size):
    noise = np.random.default_rng(0)
    split = _Split([noise.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((1, 1), (1, 7), (30, 2))])
    split.size = size
    given = {"auto_augment": policy, "color_jitter": 0.4, "reprob": 0.9, "recount": 2}
    augmented = AugmentedImages(split, settings(**given))
    pixels, _, draws = augmented.collate([augmented[(0, image % 3, image)] for image in range(90)])
    images = augmented.finished(pixels, draws)
    assert images.shape == (90, 3, size, size) and images.isfinite().all()
