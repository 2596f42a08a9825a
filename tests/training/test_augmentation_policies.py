"""No operation of any augmentation policy ends a run, and posterize keeps timm's meaning."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.auto_augment import LEVEL_TO_ARG, AugmentOp, RandAugment

from growtas.training.data.images import seed_globally
from growtas.training.data.policies import policy_operations, with_safe_operations

POLICIES = [
    "rand-m9-mstd0.5-inc1",
    "rand-m20-n3-p1-mstd101-mmax20-inc1",
    "rand-m0-p1",
    "rand-m10-p1-tweights",
    "rand-m10-p1-t3a",
    "rand-m10-p1-t3aw",
    "original-mstd0.5",
    "originalr",
    "v0",
    "v0r",
    "3a",
    "augmix-m10",
    "augmix-m10-b1",
]


def images(size):
    """RGB images of what the modes of files become."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    grey = Image.fromarray(noise[..., 0])
    yield Image.fromarray(noise)
    yield grey.convert("RGB")
    yield Image.fromarray(noise).convert("P", palette=Image.Palette.ADAPTIVE).convert("RGB")
    yield Image.fromarray((noise[..., 0].astype(np.int32) * 257).astype(np.uint16)).convert("RGB")
    yield Image.new("RGB", size[::-1], (7, 7, 7))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 6)])
@pytest.mark.parametrize("name", sorted(LEVEL_TO_ARG))
def test_every_operation_at_every_level(name, size):
    for image, level in itertools.product(images(size), (0, 1, 2.5, 5, 7.5, 9, 9.999, 10, 12, 20, 30)):
        hparams = {"magnitude_max": 30, "translate_const": 4}
        operation = AugmentOp(name, prob=1, magnitude=level, hparams=hparams)
        with_safe_operations(RandAugment([operation]))
        changed = operation(image)
        assert changed.mode == "RGB" and changed.size == image.size


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs(policy):
    transform = with_safe_operations(create_transform(8, is_training=True, auto_augment=policy))
    functions = [operation.aug_fn for operation in policy_operations(transform)]
    assert functions and auto_augment.posterize not in functions
    for number, image in zip(range(60), itertools.cycle(images((9, 12)))):
        seed_globally("policy", number)
        assert transform(image).shape == (3, 8, 8)


def test_posterize_keeps_the_highest_bits():
    image = next(images((8, 6)))
    operation = AugmentOp("Posterize")
    with_safe_operations(RandAugment([operation]))
    pixels = np.asarray(image)
    for bits in range(1, 9):
        changed = np.asarray(operation.aug_fn(image, bits))
        assert np.array_equal(changed, pixels >> (8 - bits) << (8 - bits))
        assert np.array_equal(changed, np.asarray(auto_augment.posterize(image, bits)))
    for bits in (0, -4):
        assert not np.asarray(operation.aug_fn(image, bits)).any()
