"""A small space, a finished run of it and one that stopped half-way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bad_input.small_runs import SPACE, STEPS_PER_EPOCH, spoil_losses, train


@pytest.fixture(scope="session")
def space(tmp_path_factory) -> Path:
    """The file of a space so small that a run takes a second."""
    path = tmp_path_factory.mktemp("space") / "small.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="session")
def trained(space, tmp_path_factory) -> Path:
    """A finished run; not to be changed."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert train(space, path) == 0
    return path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def half_done(space, tmp_path) -> Path:
    """A run that was stopped after its first epoch."""
    with pytest.MonkeyPatch.context() as patch:
        spoil_losses(patch, set(range(STEPS_PER_EPOCH, 10**6)))
        assert train(space, tmp_path / "run", "--epochs", "3") == 1
    return tmp_path / "run"
