"""Whole runs from a folder of JPEGs on the default recipe, of which only the size of a batch is changed."""

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


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """2,000 JPEGs of four classes, which differ in colour and in the direction of their stripes."""
    root, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for part, count in (("train", 450), ("val", 50)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(36, 60, 2)
                pixels = random.integers(0, 120, (height, width, 3))
                stripes = np.arange(height)[:, None] if label % 2 else np.arange(width)[None]
                pixels[..., label // 2] += 100 * (stripes // 6 % 2)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / part / name / f"{number}.jpg", quality=85)
    return root


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("space", [TINY, MOBILENET], ids=lambda space: space.name)
def test_a_folder_trains_on_the_default_recipe_and_survives_a_kill(space, photographs, child, tmp_path):
    settings = {"space": space, "data": f"folder:{photographs}", "epochs": 5, "batch_size": 128}
    settings |= {"device": "cpu", "workers": 1}
    killed, log = child(**settings, out=tmp_path / "killed"), tmp_path / "killed" / "log.jsonl"
    killed.wait_until(lambda: log.exists() and '"step": 30,' in log.read_text())
    killed.kill()
    run = growtas.train(resume=tmp_path / "killed")
    steps = [record for record in records(run.path) if record["event"] == "step"]
    losses = [step["loss"] for step in steps]
    assert len(steps) == run.steps == 5 * 12 and None not in losses
    assert np.mean(losses[-12:]) < np.mean(losses[:12])
    assert {step["stage"] for step in steps} == {0, 1}
    if space is TINY:  # the other takes minutes
        assert_same_result(growtas.train(**settings, out=tmp_path / "whole").path, run.path)
