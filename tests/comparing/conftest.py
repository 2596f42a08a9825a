"""Fixtures for comparisons."""

from __future__ import annotations

import pytest
import torch
from comparisons import SMALL, forked, space_file

import growtas
from growtas.comparing import figure
from growtas.jobs import job


@pytest.fixture
def fork_cells(monkeypatch):
    """Cells are forked instead of started anew: the same processes, without importing torch again."""
    monkeypatch.setattr(job, "start_process", forked)
    monkeypatch.setattr(figure, "draw", lambda path, *shown: path)  # half a second; `made` is drawn


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A finished small comparison; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "start_process", forked)
        return growtas.compare(folder / "out", space_file(folder), **SMALL)
