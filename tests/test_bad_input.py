"""Mistakes of users and failures of machines, end to end: a sentence, a status, and nothing lost."""

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
import torch.nn.functional as F

import growtas
from growtas import cli
from growtas.supernet import VisionTransformer
from growtas.training.log import read_log

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


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    """The file of a space so small that a run takes a second."""
    path = tmp_path_factory.mktemp("space") / "small.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
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


# -- the call: status 2, nothing written -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--space", "autoformer-tini"], "no space 'autoformer-tini'. Did you mean 'autoformer-tiny'"),
        (["--space", "nowhere.yaml"], "The space file nowhere.yaml does not exist."),
        (["--data", "digit"], "Did you mean 'digits'"),
        (["--data", "torch/cifar11"], "Did you mean 'torch/cifar10'"),
        (["--method", "growts"], "There is no method 'growts'. Did you mean 'growtas'"),
        (["--transition", "size-awre"], "There is no transition rule 'size-awre'. Did you mean 'size-aware'"),
        (
            ["--transition", "0"],
            "The transitions 0 of 2 stages in 2 epochs do not satisfy 0 < T_1 < ... < 2.",
        ),
        (["--transition", "2"], "do not satisfy 0 < T_1 < ... < 2."),
        (["--transition", "7"], "do not satisfy 0 < T_1 < ... < 2."),
        (["--transition", "1,1", "--stages", "3"], "do not satisfy 0 < T_1 < ... < 2."),
        (["--stages", "4"], "a space of 3 groups can be trained in 1 to 3 stages."),
        (["--new-region", "near-zero"], "Did you mean 'near_zero'"),
        (["--batch-size", "5000"], "batch_size=5000 is larger than the 1151 training images"),
        (["--device", "gpu"], "device='gpu' cannot be used here"),
        (["--opt", "adamm"], "opt='adamm' cannot be used"),
    ],
)
def test_a_wrong_call_to_train(given, expected, space, tmp_path, capsys):
    assert train(space, tmp_path / "out", *given) == 2
    assert expected in sentence(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("super_embed_dim: 12", "embed_dim=16 of space 'bad' is over its supernet's embed_dim, 12"),
        ("super_num_heads: 1", "num_heads=2 of space 'bad' is over its supernet's num_heads, 1"),
        ("super_depth: 1", "depth=2 of space 'bad' is over its supernet's depth, 1"),
        ("super_mlp_ratio: 1.5", "mlp_ratio=2 of space 'bad' is over its supernet's mlp_ratio, 1.5"),
        ("embed_dims: [8]", "A space has no field 'embed_dims'. Did you mean 'embed_dim'"),
        ("image_size: 9", "patch"),
        ("depth: [2, 1", "is not YAML"),
    ],
)
def test_a_space_that_cannot_be(yaml, expected, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    key = yaml.split(":")[0] + ":"
    path.write_text("".join(line + "\n" for line in SPACE.splitlines() if not line.startswith(key)) + yaml)
    assert train(path, tmp_path / "out") == 2
    assert expected in sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_widths_over_the_supernets_in_python(space):
    """The same, past the space's check: a transformer without a space and the operations check too."""
    net = growtas.Supernet(str(space), num_classes=10)
    small = VisionTransformer(net.dims.of_subnet(net.space.smallest()), num_classes=10)
    with pytest.raises(growtas.UsageError, match="does not fit into a transformer"):
        small(torch.zeros(1, 1, 8, 8), net.space.largest())
    with pytest.raises(growtas.UsageError, match="slice"):
        growtas.ops.linear(torch.zeros(1, 8), torch.zeros(4, 8), None, 5)


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        ("d20-h1-r1", "embed_dim=20 is outside space 'small', which offers 8, 12, 16."),
        ("d8-h1,1,1-r1,1,1", "depth=3 is outside space 'small', which offers 1, 2."),
        ("d8-h1,3-r1,1", "num_heads=3 of layer 1 is outside space 'small', which offers 1, 2."),
        ("d8-h1,2-r1,4", "mlp_ratio=4 of layer 1 is outside space 'small', which offers 1, 2."),
        ("d8-h1,2-r1", "needs 2 entries in mlp_ratio, but 1 were given."),
        ("biggest", "'biggest' is not a subnet"),
    ],
)
@pytest.mark.parametrize("verb", ["extract", "evaluate"])
def test_a_subnet_outside_the_space(verb, subnet, expected, trained, tmp_path, capsys):
    out = ["--out", str(tmp_path / "model")] if verb == "extract" else []
    assert cli.main([verb, str(trained), "--subnet", subnet, *out]) == 2
    assert expected in sentence(capsys)
    assert not (tmp_path / "model").exists()


def make_nothing(folder: Path) -> None:
    pass


def make_empty(folder: Path) -> None:
    folder.mkdir()


def make_no_test_images(folder: Path) -> None:
    (folder / "train" / "a").mkdir(parents=True)


def make_empty_classes(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "a").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_nothing, "does not exist. Expected"),
        (make_empty, "is empty. Expected"),
        (make_no_test_images, "which hold the images to test on. Expected"),
        (make_empty_classes, "Expected"),
    ],
)
def test_a_missing_or_empty_data_folder(make, expected, space, tmp_path, capsys):
    make(tmp_path / "images")
    assert train(space, tmp_path / "out", "--data", f"folder:{tmp_path / 'images'}") == 2
    error = sentence(capsys)
    assert expected in error and str(tmp_path / "images") in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limits", [["--max-params", "10"], ["--min-params", "1e9"], ["--max-macs", "10"]])
def test_an_impossible_limit_states_the_range(limits, trained, capsys):
    before = digest(trained)
    assert cli.main(["search", str(trained), *limits]) == 2
    low, high = (growtas.cost.macs_range if "macs" in limits[0] else growtas.cost.parameter_range)(
        growtas.training.Run.open(trained).space, 10
    )
    assert f"choose between {low:,} and {high:,}" in sentence(capsys)
    assert digest(trained) == before


# -- the output folder holds something: status 2, left as it is ------------------------------------------


def test_a_folder_that_holds_another_run(run, space, capsys):
    before = digest(run)
    assert train(space, run) == 2
    assert f"holds another run. Continue it with: growtas train --resume {run}" in sentence(capsys)
    assert digest(run) == before


def test_a_folder_that_holds_something_else(space, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("two years of work")
    for verb in ("train", "demo"):
        call = train(space, tmp_path) if verb == "train" else cli.main(["demo", "--out", str(tmp_path)])
        assert call == 2
        assert "choose another folder" in sentence(capsys)
    assert train(space, tmp_path / "thesis.tex") == 2
    assert "is a file; choose a folder" in sentence(capsys)
    assert digest(tmp_path).keys() == {"thesis.tex"}
    assert (tmp_path / "thesis.tex").read_text() == "two years of work"


def test_a_model_is_not_replaced_unasked(trained, tmp_path, capsys):
    args = ["extract", str(trained), "--out", str(tmp_path), "--subnet"]
    assert cli.main([*args, "smallest"]) == 0
    before = digest(tmp_path)
    assert cli.main([*args, "largest"]) == 2
    assert "holds another model" in sentence(capsys)
    assert digest(tmp_path) == before
    assert cli.main([*args, "largest", "--overwrite"]) == 0
    assert digest(tmp_path) != before


def test_the_log_of_another_search_is_kept(run, capsys):
    search = ["search", str(run), "--population", "3", "--generations", "1", "--out", str(run / "mine.jsonl")]
    assert cli.main(search) == 0
    before = digest(run)
    assert cli.main([*search, "--seed", "1"]) == 2
    assert "is the log of another search (seed: 0 there, 1 here)" in sentence(capsys)
    assert digest(run) == before


def test_a_demo_of_other_settings_is_kept(run, tmp_path, capsys):
    shutil.move(run, tmp_path / "demo" / "run")
    before = digest(tmp_path)
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "holds a demo with" in sentence(capsys)
    assert digest(tmp_path) == before


@pytest.mark.parametrize("verb", ["search", "evaluate", "extract", "train"])
def test_a_run_that_is_not_there(verb, tmp_path, capsys):
    args = {
        "train": ["train", "--resume", str(tmp_path / "no")],
        "extract": ["extract", str(tmp_path / "no"), "--out", str(tmp_path / "model")],
    }
    assert cli.main(args.get(verb, [verb, str(tmp_path / "no")])) == 2
    assert f"The run folder {tmp_path / 'no'} does not exist" in sentence(capsys)
    assert not any(tmp_path.iterdir())


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


# -- a loss that is not finite ---------------------------------------------------------------------------


def test_single_losses_that_are_not_finite_are_skipped_and_counted(monkeypatch, space, tmp_path, capsys):
    spoil_losses(monkeypatch, {3, 4, 15})
    assert train(space, tmp_path / "run") == 0
    assert "22 steps, 3 of them skipped" in capsys.readouterr().out
    records = list(read_log(tmp_path / "run", "step"))
    assert [r["step"] for r in records if r.get("skipped")] == [3, 4, 15]
    assert all((r["loss"] is None) == bool(r.get("skipped")) for r in records)
    state = growtas.training.checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert state["skipped"] == 3
    assert all(torch.isfinite(weight).all() for weight in state["weights"].values())


def test_ten_in_a_row_stop_the_run_and_keep_the_last_good_checkpoint(monkeypatch, space, tmp_path, capsys):
    spoil_losses(monkeypatch, set(range(STEPS_PER_EPOCH + 2, 10**6)))
    out = tmp_path / "run"
    assert train(space, out, "--epochs", "3") == 1
    error = sentence(capsys)
    assert "not finite in 10 updates in a row (steps 13 to 22)" in error
    state = growtas.training.checkpoint.load(out / "checkpoint.pt")
    assert state["step"] == STEPS_PER_EPOCH and state["skipped"] == 0
    assert all(torch.isfinite(weight).all() for weight in state["weights"].values())
    assert "the checkpoint of step 11 is in" in error


def test_weights_that_blew_up_are_not_saved(space, tmp_path, capsys):
    """No stub: a learning rate of 1e30 makes the second loss overflow."""
    given = ("--lr", "1e30", "--warmup-epochs", "0", "--epochs", "3")
    assert train(space, tmp_path / "run", *given) == 1
    assert "Start again with a lower lr" in sentence(capsys)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    assert not checkpoint.exists()
