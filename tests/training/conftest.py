"""Fixtures for training runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from runs import SMALL, Child

import growtas


@pytest.fixture
def small():
    """Settings of the small run; change them as you like."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished small run; not to be changed."""
    torch.set_num_threads(1)
    return growtas.train(**SMALL, out=tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Three classes, 20 training images and 4 test images of each, of several sizes and modes."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                size = (24, 20 + i, 3)
                pixels = noise.integers(0, 80, size, dtype=np.uint8)
                pixels[..., label] += 150
                image = Image.fromarray(pixels).convert("L" if i == 0 else "RGB")
                image.save(root / part / name / f"{i}.png")
    return root


@pytest.fixture
def child(tmp_path):
    """Start training in a process of its own: ``child(space=..., out=...)`` as growtas.train."""
    started = []

    def start(**settings):
        output = tmp_path / f"output-{len(started)}"
        started.append(Child(lambda: growtas.train(**settings), output, stops=True))
        return started[-1]

    yield start
    for each in started:
        if each.pid:
            each.kill()
