"""Runs of a second, the mistakes that are made with them, and how an error is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch.nn.functional as F

from growtas import cli

SPACE = """\
embed_dim: [8, 12, 16]
mlp_ratio: [1, 2]
num_heads: [1, 2]
depth: [1, 2]
image_size: 8
patch_size: 4
in_channels: 1
head_dim: 4
max_relative_position: 1
"""
STEPS_PER_EPOCH = 11  # of 1151 training digits in batches of 96


def train(space: Path | str, out: Path, *more: str) -> int:
    settings = ["--batch-size", "96", "--epochs", "2", "--eval-every", "0", "--no-tensorboard"]
    settings += [] if "--data" in more else ["--data", "digits"]
    return cli.main(["train", "--space", str(space), "--out", str(out), *settings, *more])


def spoil_losses(patch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the loss of these steps not a number."""
    loss, calls = F.cross_entropy, iter(range(10**6))

    def spoiled(*args, **values):
        value = loss(*args, **values)
        return value * float("nan") if next(calls) in steps else value

    patch.setattr("growtas.training.objective.F.cross_entropy", spoiled)


def digest(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sentence(capsys) -> str:
    """The last line of standard error, the only one that is not of the progress; there is no traceback."""
    err = capsys.readouterr().err
    told = [line for line in err.splitlines(keepends=True) if line.startswith("growtas: ")]
    assert told == err.splitlines(keepends=True)[-1:] and "Traceback" not in err
    assert "unexpected" not in err
    return told[0]
