"""Data by name, the three splits, and augmentation as a function of seed, epoch and image."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random

import numpy as np
import pytest
import torch
from runs import SPACE

from growtas.errors import UsageError
from growtas.space import load_space
from growtas.training.config import TrainConfig
from growtas.training.data import evaluation_loader, hold_out, load_splits, loader
from growtas.training.data.images import AugmentedImages
from growtas.training.data.loader import TrainingLoader, _one_ahead
from growtas.training.data.workers import worker_count

DIGITS = load_space("digits")
RGB = dataclasses.replace(SPACE, name="rgb", in_channels=3, image_size=16)


@pytest.fixture
def folder(image_folder):
    return image_folder


@pytest.fixture
def config(folder):
    return TrainConfig("rgb", data=f"folder:{folder}", epochs=2, batch_size=8, workers=0).resolved()


# -- digits ------------------------------------------------------------------------------------------------


def test_digits_are_cut_into_three():
    from sklearn.datasets import load_digits

    splits = load_splits("digits", DIGITS)
    parts = (splits.train, splits.search, splits.test)
    assert [len(part) for part in parts] == [1151, 287, 359] and splits.num_classes == 10
    everything = torch.cat([part.images.flatten(1) for part in parts])
    low, high = everything.min(), everything.max()
    pixels = ((everything - low) / (high - low) * 16).round().int().tolist()
    assert sorted(pixels) == sorted(load_digits().data.astype(int).tolist())  # each image once
    of_class = np.bincount(load_digits().target)
    for part, share in zip(parts, (0.64, 0.16, 0.2), strict=True):
        assert abs(part.labels.bincount().numpy() - share * of_class).max() <= 1
    rest = torch.cat([splits.train.images, splits.search.images])
    assert abs(rest.mean()) < 1e-5 and abs(rest.std() - 1) < 1e-5


def test_only_the_search_split_depends_on_the_seed():
    first, second, again = (load_splits("digits", DIGITS, seed) for seed in (0, 1, 0))
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.search.images, second.search.images)
    assert torch.equal(first.search.images, again.search.images)


def test_digits_fit_any_space():
    space = dataclasses.replace(SPACE, image_size=32, in_channels=3)
    image, label = load_splits("digits", space).test[0]
    assert image.shape == (3, 32, 32) and isinstance(label, int)
    assert torch.equal(image[0], image[2])


def test_evaluation_loader_gives_every_image_once_in_order():
    test = load_splits("digits", DIGITS).test
    batches = list(evaluation_loader(test, 100))
    assert [len(labels) for _, labels in batches] == [100, 100, 100, 59]
    assert torch.equal(torch.cat([images for images, _ in batches]), test.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), test.labels)


def test_hold_out():
    labels = [0] * 2000 + [1] * 50 + [2] * 2 + [3]
    kept, held = hold_out(labels, seed=0)
    assert sorted(kept + held) == list(range(len(labels)))
    assert [sum(labels[i] == c for i in held) for c in range(4)] == [100, 5, 1, 0]
    assert hold_out(labels, seed=0) == (kept, held) != hold_out(labels, seed=1)


def sizes(splits):
    return {name: count for name, count in splits.summary().items() if name != "digest"}


# -- folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_folder(folder, channels):
    space = dataclasses.replace(RGB, in_channels=channels)
    splits = load_splits(f"folder:{folder}", space)
    assert sizes(splits) == {"num_classes": 3, "train": 54, "search": 6, "test": 12}
    image, label = splits.test[0]
    assert image.shape == (channels, 16, 16) and image.dtype == torch.float32 and label == 0
    assert sorted(splits.search.labels) == [0, 0, 1, 1, 2, 2]
    assert not set(splits.train.indices) & set(splits.search.indices)
    assert [splits.test[i][1] for i in range(12)] == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        ([], "is empty"),
        (["val/ant"], "no folder 'train'"),
        (["train/ant", "train/bee"], "none of the folders val,"),
        (["train/ant", "val/ant"], "holds 1 class folders"),
        (["train/ant", "train/bee", "val/ant", "val/bee"], "val holds no images"),
        (["train/ant", "train/bee", "val/dog"], "val has the class dog, which .*train lacks"),
    ],
)
def test_bad_folders(tmp_path, make, sentence):
    for name in make:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=sentence):
        load_splits(f"folder:{tmp_path}", RGB)


def test_missing_folder(tmp_path):
    with pytest.raises(UsageError, match="does not exist. Expected .*train/CLASS"):
        load_splits(f"folder:{tmp_path / 'nowhere'}", RGB)


def test_channels_that_files_do_not_have(folder):
    with pytest.raises(UsageError, match="in_channels=5"):
        load_splits(f"folder:{folder}", dataclasses.replace(RGB, in_channels=5))


# -- timm names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("digit", "Did you mean 'digits'"),
        ("cifar10", "Did you mean 'torch/cifar10'"),
        ("torch/cifar", "Did you mean 'torch/cifar10'"),
        ("torch/", "no data set"),
        ("tfds/mnist", "is a stream"),
        ("torch/cifar10", "needs data_folder"),
    ],
)
def test_bad_names(name, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_splits(name, RGB)


def test_timm_data_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="'torch/cifar10', part 'train', could not be opened .*download"):
        load_splits("torch/cifar10", RGB, data_folder=str(tmp_path))


def test_a_timm_data_set(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 200), ("t10k", 30)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.repeat(labels[:, None] * 20, 28 * 28, 1).astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            np.array([2049, count], ">i4").tobytes() + labels.tobytes()
        )
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            np.array([2051, count, 28, 28], ">i4").tobytes() + images.tobytes()
        )
    splits = load_splits("torch/mnist", SPACE, data_folder=str(tmp_path))
    assert sizes(splits) == {"num_classes": 10, "train": 180, "search": 20, "test": 30}
    image, label = splits.test[7]
    assert image.shape == (1, 8, 8) and label == 7 and abs(image.std()) < 1e-6


# -- batches -----------------------------------------------------------------------------------------------


def all_batches(split, config, first_step=0, **ranks):
    return list(TrainingLoader(split, config, **ranks).batches(first_step))


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_file_batches_are_a_function_of_seed_and_step(folder, config, workers):
    split = load_splits(config.data, RGB).train
    whole = all_batches(split, config)
    assert len(whole) == 12
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    config = dataclasses.replace(config, workers=workers)
    assert equal(all_batches(split, config, first_step=8), whole[8:])
    other = dataclasses.replace(config, seed=1)
    assert not equal(all_batches(split, other, first_step=8), whole[8:])


@pytest.mark.filterwarnings("ignore:.*pin_memory.*no accelerator")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_finishes_the_same_batches_one_ahead(workers, folder, config, monkeypatch):
    """A stream, its events and the use of a GPU's memory are stood in for; the batches are the CPU's."""
    noted = []

    class Stream:
        def __init__(self, device):
            self.events = 0

        def record_event(self):
            self.events += 1
            noted.append(("made", self.events))
            return self.events

        def wait_event(self, event):
            noted.append(("awaited", event))

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    given = []

    def one_ahead(batches, augmented, device):
        given.extend(batches)
        return _one_ahead(given, augmented, "cpu")

    monkeypatch.setattr(loader, "_one_ahead", one_ahead)
    config = dataclasses.replace(config, workers=workers)
    training = TrainingLoader(load_splits(config.data, RGB).train, config)
    batches = list(training.batches(0, "cuda"))
    assert {tuple(shape) for _, _, draws in given for shape in draws.shapes.tolist()} > {(16, 16)}
    assert equal(batches, list(training.batches(0)))
    count = len(given)
    assert noted[:4] == [("made", 1), ("made", 2), ("awaited", 1), ("made", 3)]
    assert [event for what, event in noted if what == "awaited"] == list(range(1, count + 1))


def test_augmentation_differs_between_epochs_images_and_copies(folder, config):
    augmented = AugmentedImages(load_splits(config.data, RGB).train, config)
    image = augmented[(0, 5, 0)][0]
    assert torch.equal(image, augmented[(0, 5, 0)][0])
    for key in ((1, 5, 0), (0, 5, 1), (0, 6, 0)):
        assert not torch.equal(image, augmented[key][0])


def test_digit_batches_are_a_function_of_seed_and_step():
    split = load_splits("digits", DIGITS).train
    config = TrainConfig("digits", epochs=2, shift=2, hflip=0.5, repeated_augmentation=2).resolved()
    whole = all_batches(split, config)
    assert equal(all_batches(split, config, first_step=20), whole[20:])
    assert not equal(whole[:17], whole[17:])


def test_shifted_digits_are_the_digits_moved():
    split = load_splits("digits", DIGITS).train
    indices = torch.arange(50)
    offsets = torch.randint(0, 3, (50, 2))
    moved = split._shifted(split.images[indices], offsets, 1)
    for i in range(50):
        canvas = torch.full((10, 10), split.background)
        canvas[1:9, 1:9] = split.images[i, 0]
        row, column = offsets[i].tolist()
        assert torch.equal(moved[i, 0], canvas[row : row + 8, column : column + 8])
    config = TrainConfig("digits", shift=0).resolved()
    plain, _ = split.training_batch(config, 0, indices, torch.zeros_like(indices))
    assert torch.equal(plain, split.images[:50])


def test_an_epoch_takes_every_image_once():
    split = load_splits("digits", DIGITS).train
    loader = TrainingLoader(split, TrainConfig("digits", batch_size=1151).resolved())
    images, copies = loader.order(3)
    assert sorted(images.tolist()) == list(range(1151)) and not copies.any()
    assert loader.order(4)[0].tolist() != images.tolist()


def test_repeated_augmentation():
    split = load_splits("digits", DIGITS).train
    loader = TrainingLoader(split, TrainConfig("digits", repeated_augmentation=3).resolved())
    images, copies = loader.order(0)
    assert len(images) == 1151 and len(images.unique()) == 384
    assert copies[:6].tolist() == [0, 1, 2, 0, 1, 2] and len(images[:3].unique()) == 1


def test_ranks_share_each_batch():
    split = load_splits("digits", DIGITS).train
    config = TrainConfig("digits", epochs=1, batch_size=64).resolved()
    whole = all_batches(split, config)
    parts = [all_batches(split, config, rank=rank, world=2) for rank in range(2)]
    for step, (_, labels) in enumerate(whole):
        assert torch.equal(labels[0::2], parts[0][step][1]) and torch.equal(labels[1::2], parts[1][step][1])


@pytest.mark.parametrize(
    ("given", "ranks", "sentence"),
    [
        ({"batch_size": 2000}, {}, "larger than the 1151 training images"),
        ({"batch_size": 63, "mixup": 0.5}, {}, "63 per rank is odd"),
        ({"batch_size": 64}, {"world": 3}, "does not divide among 3 ranks"),
    ],
)
def test_bad_batches(given, ranks, sentence):
    split = load_splits("digits", DIGITS).train
    with pytest.raises(UsageError, match=sentence):
        TrainingLoader(split, TrainConfig("digits", **given).resolved(), **ranks)


def test_unknown_augmentation(config):
    with pytest.raises(UsageError, match="auto_augment='rand-x9'"):
        TrainingLoader(
            load_splits(config.data, RGB).train, dataclasses.replace(config, auto_augment="rand-x9")
        )


def test_worker_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(96))
    assert [worker_count(workers) for workers in (3, 0, None)] == [3, 0, 96]
    monkeypatch.setenv("WORLD_SIZE", "64")
    for local, workers in (("8", 12), ("200", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        assert worker_count(None) == workers
