"""Fixtures for analyses and reports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "comparing"))  # small comparisons and forked processes

from comparisons import forked

import growtas
from growtas.analysis import charts
from growtas.comparing import figure
from growtas.jobs import job


@pytest.fixture(scope="session")
def single(tmp_path_factory):
    """Short runs on the digits that trained the smallest and the largest subnet alone; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("single")
    settings = {"eval_every": 0, "eval_subnets": 0, "tensorboard": False, "device": "cpu"}
    settings |= {"data": "digits", "method": "single", "epochs": 1, "batch_size": 192}
    return [
        growtas.train("digits", method_options=f"subnet={which}", out=folder / which, **settings)
        for which in ("smallest", "largest")
    ]


@pytest.fixture
def fork_work(monkeypatch):
    """Networks and parts are made in forked processes: the same work, without importing torch again."""
    monkeypatch.setattr(job, "start_process", forked)
    monkeypatch.setattr(figure, "draw", lambda path, *shown: path)  # the comparisons' tests have it drawn


@pytest.fixture
def no_pictures(monkeypatch):
    """Figures are drawn but not written, which takes longer than to make them."""

    def save(figure, path, alt):
        path.write_text("<svg></svg>")
        return "<svg></svg>"

    monkeypatch.setattr(charts, "save", save)
