"""Damaged files and full devices end with status 1 and a sentence, and what was there stays."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from bad_input.small_runs import digest, sentence, train

import growtas
from growtas import cli

# -- files that are damaged: status 1, left as they are --------------------------------------------------


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("this is no checkpoint")
    elif how == "foreign":
        buffer = io.BytesIO()
        torch.save({"model": {"weight": torch.zeros(3)}, "epoch": 7}, buffer)
        path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "foreign"])
def test_a_damaged_or_foreign_checkpoint(how, run, tmp_path, capsys):
    damage(run / "checkpoint.pt", how)
    before = digest(run)
    for args in (
        ["train", "--resume", str(run)],
        ["search", str(run)],
        ["evaluate", str(run), "--subnet", "smallest"],
        ["extract", str(run), "--subnet", "smallest", "--out", str(tmp_path / "model")],
    ):
        assert cli.main(args) == 1
        assert str(run / "checkpoint.pt") in sentence(capsys)
        assert digest(run) == before
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_of_another_run(run, space, tmp_path, capsys):
    assert train(space, tmp_path / "other", "--seed", "1", "--epochs", "1", "--stages", "1") == 0
    shutil.copy(tmp_path / "other" / "checkpoint.pt", run)
    before = digest(run)
    assert cli.main(["train", "--resume", str(run)]) == 1
    error = sentence(capsys)
    assert "belongs to another run: it differs from config.yaml in" in error and "seed" in error
    assert digest(run) == before


def test_a_damaged_configuration(run, capsys):
    (run / "config.yaml").write_text("train: {space: [")
    before = digest(run)
    assert cli.main(["train", "--resume", str(run)]) == 1
    assert "is damaged or not the configuration of a run" in sentence(capsys)
    assert digest(run) == before


# -- a full device: status 1, the last checkpoint kept ---------------------------------------------------


@contextmanager
def small_device(folder: Path, kib: int, file_kib: int, holds: Path | None = None):
    """A folder on a device of its own with ``kib`` KiB; yields a function that gives it more.

    Where mounting is not allowed, a limit of ``file_kib`` on the size of a file stands in: the system refuses
    the same writes, with another reason. ``holds`` is a folder whose copy the device holds from the start.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "growtas-test", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        if holds:
            shutil.copytree(holds, folder / holds.name)
        if mounted:
            yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        else:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_kib * 1024, before[1]))
            try:
                yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


FULL = ("No space is left", "no space is left", "limit on the size of files", "File too large")


def is_full(error: str) -> bool:
    return any(part in error for part in FULL)


def test_a_device_that_is_full_at_the_first_checkpoint(space, tmp_path, capsys):
    with small_device(tmp_path / "device", kib=64, file_kib=32) as enlarge:
        out = tmp_path / "device" / "run"
        assert train(space, out) == 1
        error = sentence(capsys)
        assert is_full(error) and "resume" in error
        assert not (out / "checkpoint.pt").exists()
        enlarge()
        assert cli.main(["train", "--resume", str(out)]) == 0
        assert growtas.training.Run.open(out).finished


def test_a_device_that_fills_up_keeps_the_last_checkpoint(half_done, tmp_path, capsys):
    """The checkpoint of the first epoch fits; the next one beside it, under its temporary name, does not."""
    capsys.readouterr()
    size = (half_done / "checkpoint.pt").stat().st_size // 1024
    with small_device(tmp_path / "device", size * 3 // 2 + 24, size // 2, half_done) as enlarge:
        out = tmp_path / "device" / half_done.name
        before = digest(out)["checkpoint.pt"]
        assert cli.main(["train", "--resume", str(out)]) == 1
        error = sentence(capsys)
        assert is_full(error) and "resume" in error
        assert digest(out)["checkpoint.pt"] == before
        assert not list(out.glob(".*.tmp"))
        enlarge()
        assert cli.main(["train", "--resume", str(out)]) == 0
        assert growtas.training.Run.open(out).finished


def test_a_full_device_while_extracting_or_searching(trained, tmp_path, capsys):
    with small_device(tmp_path / "device", kib=8, file_kib=4) as enlarge:
        model = tmp_path / "device" / "model"
        args = ["extract", str(trained), "--subnet", "largest", "--out", str(model)]
        assert cli.main(args) == 1
        assert is_full(sentence(capsys))
        assert not model.exists() or not any(model.iterdir())
        search = [
            "search",
            str(trained),
            "--population",
            "30",
            "--generations",
            "2",
            "--out",
            str(model.parent),
        ]
        assert cli.main(search) == 1
        assert "cannot be written" in sentence(capsys)
        enlarge()
        assert cli.main(args) == 0
        assert cli.main(search) == 0


def test_a_full_device_while_drawing(tmp_path, monkeypatch):
    """Atomic writes of every kind go through one place; a refusal there leaves the old file."""
    (tmp_path / "picture.png").write_bytes(b"old")

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(growtas.GrowtasError, match="No space is left on the device"):
        growtas.atomic.write_bytes(tmp_path / "picture.png", b"new")
    assert digest(tmp_path) == {"picture.png": hashlib.sha256(b"old").hexdigest()}
