"""Whole runs from a folder of JPEGs on the default recipe, of which only the size of a batch is changed.

``make test`` runs them on a tenth of the images; the 2,000 are for ``make test-slow``.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from runs import assert_same_result, records

import growtas
from growtas.space import SearchSpace, load_space

TINY = SearchSpace(
    "tiny-32",
    embed_dim=(32, 40, 48),
    mlp_ratio=(2, 3),
    num_heads=(1, 2),
    depth=(2, 3),
    image_size=32,
    patch_size=8,
    in_channels=3,
    head_dim=16,
    max_relative_position=3,
)
# Most of its time is the backward pass of depthwise convolutions, 65 ms each: without the deepest stages.
MOBILENET = dataclasses.replace(
    load_space("ofa-mobilenetv3"), name="ofa-32", image_size=32, kernel=(3, 5), depth=(2,)
)
CLASSES = ("ant", "bee", "cat", "dog")


def photographs(root, count: int) -> str:
    """JPEGs of four classes, which differ in colour and in the direction of their stripes."""
    random = np.random.default_rng(0)
    for part, images in (("train", count * 9 // 40), ("val", count // 40)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(images):
                height, width = random.integers(36, 60, 2)
                pixels = random.integers(0, 120, (height, width, 3))
                stripes = np.arange(height)[:, None] if label % 2 else np.arange(width)[None]
                pixels[..., label // 2] += 100 * (stripes // 6 % 2)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / part / name / f"{number}.jpg", quality=85)
    return f"folder:{root}"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("space", [TINY, MOBILENET], ids=lambda space: space.name)
@pytest.mark.parametrize(
    ("images", "epochs", "batch_size"), [(200, 2, 32), pytest.param(2000, 5, 128, marks=pytest.mark.slow)]
)
def test_a_folder_trains_on_the_default_recipe_and_survives_a_kill(
    space, images, epochs, batch_size, child, tmp_path
):
    settings = {"space": space, "data": photographs(tmp_path / "images", images), "device": "cpu"}
    settings |= {"epochs": epochs, "batch_size": batch_size, "workers": 1}
    killed, log = child(**settings, out=tmp_path / "killed"), tmp_path / "killed" / "log.jsonl"
    each = images * 81 // 100 // batch_size  # a tenth is for testing, and of the rest one for searching
    seen = f'"step": {each * epochs // 2},'
    killed.wait_until(lambda: log.exists() and seen in log.read_text())
    killed.kill()
    run = growtas.train(resume=tmp_path / "killed")
    steps = [record for record in records(run.path) if record["event"] == "step"]
    losses = [step["loss"] for step in steps]
    assert len(steps) == run.steps == epochs * each and None not in losses
    assert {step["stage"] for step in steps} == {0, 1}
    if images == 2000:
        assert np.mean(losses[-each:]) < np.mean(losses[:each])
    if space is TINY:  # the other takes minutes
        assert_same_result(growtas.train(**settings, out=tmp_path / "whole").path, run.path)
