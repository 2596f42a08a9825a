"""growtas check: a line for every file, and an exit status that says whether all are whole."""

from __future__ import annotations

import os
import shutil

import pytest

import growtas
import growtas.export
from growtas import cli
from growtas.errors import UsageError
from growtas.training import checkpoint

SPACE = growtas.SearchSpace(
    "small",
    embed_dim=(8, 12),
    mlp_ratio=(1, 2),
    num_heads=(1, 2),
    depth=(1, 2),
    image_size=8,
    patch_size=4,
    in_channels=1,
    head_dim=4,
    max_relative_position=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a search, an exported model and a second phase; not to be changed."""
    folder = tmp_path_factory.mktemp("checked") / "run"
    growtas.train(SPACE, "digits", epochs=2, batch_size=96, tensorboard=False, out=folder)
    growtas.search(
        folder, max_params=4000, population=4, generations=2, parents=2, out=folder / "search.jsonl"
    )
    growtas.export.save(growtas.extract(folder, "smallest"), folder / "model")
    growtas.finetune(folder, epochs=1, tensorboard=False, out=folder / "second")
    return folder


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_whole_files_are_named_and_the_status_is_0(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert cli.main(["check", str(run)]) == 0
    out = capsys.readouterr().out
    assert "DAMAGED" not in out and "0 damaged" in out
    for name in ("config.yaml", "checkpoint.pt", "log.jsonl", "search.jsonl", "model/model.safetensors"):
        assert f"ok         {name}: " in out
    assert "ok         second/initial.safetensors: " in out and "unchecked  model/README.md: " in out
    assert len(out.splitlines()) == 1 + sum(path.is_file() for path in run.rglob("*"))
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint.pt",
        "log.jsonl",
        "search.jsonl",
        "model/model.safetensors",
        "model/config.json",
        "second/initial.safetensors",
        "second/config.yaml",
    ],
)
def test_a_damaged_file_is_named_and_the_status_is_1(copied, name, capsys):
    path = copied / name
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    if name == "checkpoint.pt":  # not into what fills it up between two tensors
        at = content.index(checkpoint.load(path)["weights"]["head.weight"].numpy().tobytes())
    content[at] ^= 0x80  # text becomes none, a number another one
    path.write_bytes(content)
    assert cli.main(["check", str(copied)]) == 1
    damaged = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DAMAGED")]
    assert damaged[0].startswith(f"DAMAGED    {name}: ") or name == "second/config.yaml"
    assert all(name.partition("/")[0] in line for line in damaged)
    assert not growtas.check(path.parent).ok


def test_a_log_that_lost_its_end_is_noticed(copied):
    path = copied / "log.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    (found,) = [each for each in growtas.check(copied).findings if each.ok is False]
    assert str(found.path) == "log.jsonl" and "was cut or changed" in found.told


def test_a_second_phase_does_not_begin_with_damaged_weights(copied):
    path = copied / "second" / "initial.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (copied / "second" / "checkpoint.pt").unlink()
    with pytest.raises(
        growtas.GrowtasError, match="initial.safetensors, the weights .* is damaged or another"
    ):
        growtas.train(resume=copied / "second")


def test_pipes_are_not_opened_and_lost_files_are_named(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "elsewhere")
    pipe, link = growtas.check(tmp_path).findings
    assert (pipe.ok, pipe.told) == (None, "it is a pipe, a socket or a device")
    assert (link.ok, link.told) == (False, "it is a link to a file that is not there")


def test_what_cannot_be_checked_is_a_usage_error(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="no file to check|is no folder"):
            growtas.check(folder)
