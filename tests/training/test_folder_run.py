"""Whole runs from a folder of JPEGs on the default recipe, of which only the size of a batch is changed.

``make test`` runs small ones, and tests/faults kills one; ``make test-slow`` kills them on 2,000 images.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from runs import assert_same_result, records
from thinning import thinned

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
OFA = dataclasses.replace(
    load_space("ofa-mobilenetv3"), name="ofa-32", image_size=32, kernel=(3, 5), depth=(2,)
)
MOBILENET = dataclasses.replace(
    load_space("digits-mobilenet"), name="mobilenet-32", image_size=32, in_channels=3, stem_stride=2
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


def steps_of(run):
    """The steps of a run that went through both stages with finite losses."""
    steps = [record for record in records(run.path) if record["event"] == "step"]
    assert len(steps) == run.steps and all(step["loss"] is not None for step in steps)
    assert {step["stage"] for step in steps} == {0, 1}
    return steps


@pytest.mark.parametrize("space", thinned([TINY, MOBILENET], fast=(0,)), ids=lambda space: space.name)
def test_a_folder_trains_on_the_default_recipe(space, tmp_path):
    settings = {"space": space, "data": photographs(tmp_path / "images", 200), "device": "cpu"}
    run = growtas.train(**settings, epochs=2, batch_size=80, workers=1, out=tmp_path / "run")
    assert len(steps_of(run)) == 2 * 2  # a tenth is for testing, and of the rest one for searching


@pytest.mark.slow
@pytest.mark.parametrize("space", [TINY, OFA], ids=lambda space: space.name)
def test_a_larger_folder_is_learned_and_survives_a_kill(space, child, tmp_path):
    settings = {"space": space, "data": photographs(tmp_path / "images", 2000), "device": "cpu"}
    settings |= {"epochs": 5, "batch_size": 128, "workers": 1}
    killed, log = child(**settings, out=tmp_path / "killed"), tmp_path / "killed" / "log.jsonl"
    each = 2000 * 81 // 100 // 128
    seen = f'"step": {each * 5 // 2},'
    killed.wait_until(lambda: log.exists() and seen in log.read_text())
    killed.kill()
    run = growtas.train(resume=tmp_path / "killed")
    losses = [step["loss"] for step in steps_of(run)]
    assert len(losses) == 5 * each and np.mean(losses[-each:]) < np.mean(losses[:each])
    if space is TINY:  # the other takes minutes
        assert_same_result(growtas.train(**settings, out=tmp_path / "whole").path, run.path)
