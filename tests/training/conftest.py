"""Fixtures for training runs."""

from __future__ import annotations

import pytest
import torch
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


@pytest.fixture
def child(tmp_path):
    """Start training in a process of its own: ``child(space=..., out=...)`` as growtas.train."""
    started = []

    def start(**settings):
        started.append(Child(lambda: growtas.train(**settings), tmp_path / f"output-{len(started)}"))
        return started[-1]

    yield start
    for each in started:
        if each.pid:
            each.kill()
