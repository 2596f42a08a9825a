"""Launches of a training step on a GPU, counted. Published code: 1,993 operations; a dense ViT: 475."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def counts(run_script) -> dict[str, dict[str, int]]:
    done = run_script(Path(__file__).with_name("count_launches.py"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_step_of_t_launches_at_most_176_kernels(counts):
    depth = 13
    kernels = sum(counts["kernels"].values())
    others = sum(counts["others"].values())
    assert kernels > depth * 10, "too few to be a whole step"
    assert kernels + others <= 176, counts


def test_a_block_launches_its_kernels_and_nothing_between_them(counts):
    assert counts["within_a_block"] == {}


def test_every_block_uses_the_fused_kernels(counts):
    by_module: dict[str, int] = {}
    for name, count in counts["kernels"].items():
        module = name.rpartition(".")[0]
        by_module[module] = by_module.get(module, 0) + count
    assert by_module["mlp.fused_forward"] == by_module["mlp.fused_backward"] == 13
    assert by_module["norm_qkv.forward"] == by_module["relative_attention.forward"] == 13
