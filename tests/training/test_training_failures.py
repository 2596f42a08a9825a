"""Failures of training: each is a sentence, and nothing is overwritten or lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal

import pytest
import torch
from runs import SPACE, assert_same_result, records, same

import growtas
from growtas import GrowtasError, UsageError
from growtas.training import Run, checkpoint
from growtas.training.curves import Curves
from growtas.training.loop import Trainer
from growtas.training.ranks import Ranks
from growtas.training.update import Update


def snapshot(folder):
    """Every file with its content and its time."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run that may be spoilt."""
    shutil.copytree(finished.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def half_done(small, tmp_path, monkeypatch):
    """A run that died in front of step 15, its checkpoint at step 11."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying_at(15))
        with pytest.raises(KeyError, match="died"):
            growtas.train(**small, out=tmp_path / "half")
    return tmp_path / "half"


def dying_at(step):
    original = Trainer._step

    def wrapped(self, *args):
        if self.progress.step == step:
            raise KeyError("died")
        return original(self, *args)

    return wrapped


# -- usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"space": "digit"}, "no space 'digit'. Did you mean 'digits'"),
        ({"space": None}, "Give space=NAME"),
        ({"method": "grow"}, "no method 'grow'. Did you mean 'growtas'"),
        ({"data": "digitz"}, "no data set 'digitz'. Did you mean 'digits'"),
        ({"data": "folder:/nowhere/at/all"}, "/nowhere/at/all does not exist"),
        ({"transition": "0"}, "0 < T_1"),
        ({"transition": "3"}, "< 3"),
        ({"transition": "sizeaware"}, "Did you mean 'size-aware'"),
        ({"stages": 4}, "1 to 3 stages"),
        ({"opt": "adamm"}, "opt='adamm' cannot be used"),
        ({"device": "tpu"}, "device='tpu' cannot be used"),
        ({"epoch": 3}, "no setting 'epoch'"),
        ({"batch_size": 5000}, "larger than the 1151"),
        ({"out": None}, "Give out=FOLDER"),
    ],
)
def test_bad_calls_write_nothing(small, tmp_path, given, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        growtas.train(**{**small, "out": tmp_path / "run", **given})
    assert caught.value.exit_status == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_another_run(finished, small):
    before = snapshot(finished.path)
    with pytest.raises(UsageError, match="holds another run. Continue it with: growtas train --resume"):
        growtas.train(**small, out=finished.path)
    assert snapshot(finished.path) == before


def test_a_folder_that_holds_something_else(small, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty .*thesis.tex"):
        growtas.train(**small, out=tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        growtas.train(**small, out=tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_and_one_with_leftovers_of_a_killed_process_are_free(small, tmp_path):
    (tmp_path / ".config.yaml.abc.tmp").write_text("half")
    small["epochs"] = 2
    assert growtas.train(**small, out=tmp_path).finished
    assert not list(tmp_path.glob(".*"))


def test_resume_of_no_run(tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        growtas.train(resume=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no run"):
        growtas.train(resume=tmp_path)


@pytest.mark.parametrize("text", ["", "format: 1\n", "a: [", "format: 2\ntrain: {}\n", "\x00\xff"])
def test_a_spoilt_config(copied, text):
    (copied / "config.yaml").write_text(text, encoding="latin-1")
    before = snapshot(copied)
    with pytest.raises(GrowtasError, match="config.yaml"):
        growtas.train(resume=copied)
    assert snapshot(copied) == before


# -- checkpoints -------------------------------------------------------------------------------------------


def spoil_truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_text(path):
    path.write_text("these are not the weights you are looking for")


def spoil_foreign(path):
    torch.save({"model": torch.zeros(3)}, path)


def spoil_tensor(path):
    torch.save(torch.zeros(3), path)


def spoil_pickle(path):
    torch.save({"format": os.getcwd}, path)


def spoil_other_run(path):
    state = checkpoint.load(path)
    state["run"]["lr"] = 0.5
    torch.save(state, path)


def spoil_weights(path):
    state = checkpoint.load(path)
    state["weights"]["head.weight"] = torch.zeros(10, 3)
    torch.save(state, path)


def spoil_optimizer(path):
    state = checkpoint.load(path)
    state["optimizer"]["param_groups"].pop()
    torch.save(state, path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_truncate, "truncated or damaged: the list of its records"),
        (spoil_empty, "truncated or damaged"),
        (spoil_text, "truncated or damaged"),
        (spoil_pickle, "no checkpoint of growtas .UnpicklingError"),
        (spoil_foreign, "no checkpoint of growtas, or one of another version"),
        (spoil_tensor, "no checkpoint of growtas, or one of another version"),
        (spoil_other_run, "belongs to another run: it differs from config.yaml in lr"),
        (spoil_weights, "does not fit the network"),
        (spoil_optimizer, "does not fit the optimizer"),
    ],
)
def test_a_spoilt_checkpoint(half_done, spoil, sentence):
    spoil(half_done / "checkpoint.pt")
    before = snapshot(half_done)
    with pytest.raises(GrowtasError, match=sentence) as caught:
        growtas.train(resume=half_done)
    assert caught.value.exit_status == 1
    assert snapshot(half_done) == before
    if spoil is not spoil_optimizer:
        with pytest.raises(GrowtasError, match=sentence):
            Run.open(half_done).load_net()


def test_weights_of_a_run_without_a_checkpoint(finished, tmp_path):
    shutil.copy(finished.path / "config.yaml", tmp_path)
    with pytest.raises(GrowtasError, match="no checkpoint .* yet"):
        Run.open(tmp_path).load_net()
    assert not Run.open(tmp_path).finished


def test_data_that_changed(half_done, monkeypatch):
    from growtas.training.data import splits

    monkeypatch.setattr(splits, "DIGITS_SEARCH_SHARE", 0.3)
    before = snapshot(half_done)
    with pytest.raises(GrowtasError, match="data 'digits' has changed"):
        growtas.train(resume=half_done)
    assert snapshot(half_done) == before


# -- the disk ----------------------------------------------------------------------------------------------


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_no_space_for_a_checkpoint(half_done, finished, monkeypatch):
    before = (half_done / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(GrowtasError, match="(?i)no space is left on the device"):
            growtas.train(resume=half_done)
    assert (half_done / "checkpoint.pt").read_bytes() == before
    assert not list(half_done.glob(".*"))
    growtas.train(resume=half_done)
    assert_same_result(half_done, finished.path)


def test_no_space_to_begin(small, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(GrowtasError, match="No space is left"):
        growtas.train(**small, out=tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_no_space_for_the_curves(tmp_path):
    """/dev/full refuses every write, as a full disk does."""
    curves = Curves(tmp_path, True, 0)
    curves._file.close()
    curves._file = open("/dev/full", "ab", buffering=0)
    curves._records = type(curves._records)(curves._file)
    with pytest.raises(GrowtasError, match=f"no space is left on the device.*--resume {tmp_path}"):
        curves.add(1, train__loss=1.0)
    curves.close()


@pytest.mark.parametrize("limit", [20_000, 2_000])
def test_a_disk_that_refuses_in_earnest(half_done, finished, limit):
    """RLIMIT_FSIZE makes the kernel itself refuse: at 20 kB the checkpoint, at 2 kB the log."""
    before = (half_done / "checkpoint.pt").read_bytes()
    assert len(before) > 20_000 and 2_000 < (half_done / "log.jsonl").stat().st_size < 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(GrowtasError, match="the limit on the size of files is reached.*--resume"):
            growtas.train(resume=half_done)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (half_done / "checkpoint.pt").read_bytes() == before
    growtas.train(resume=half_done)
    assert_same_result(half_done, finished.path)


# -- numbers -----------------------------------------------------------------------------------------------


def poisoned(steps):
    """Training whose images are not numbers in some steps."""
    original = Trainer._step

    def wrapped(self, images, labels, signals):
        if self.progress.step in steps:
            images = images * float("nan")
        return original(self, images, labels, signals)

    return wrapped


def test_a_non_finite_loss_skips_the_step(small, tmp_path, monkeypatch):
    bad = {0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20}
    monkeypatch.setattr(Trainer, "_step", poisoned(bad))
    run = growtas.train(**small, out=tmp_path / "run")
    steps = [r for r in records(run.path) if r["event"] == "step"]
    assert {r["step"] for r in steps if r.get("skipped")} == bad
    assert all((r["loss"] is None) == (r["step"] in bad) for r in steps)
    assert records(run.path)[-1]["skipped"] == len(bad)
    state = checkpoint.load(run.checkpoint_path)
    assert state["skipped"] == len(bad) and all(v.isfinite().all() for v in state["weights"].values())
    assert max(s["step"].item() for s in state["optimizer"]["state"].values()) == 33 - len(bad)


def test_a_non_finite_gradient_skips_the_step(small, tmp_path, monkeypatch):
    class Overflow(torch.autograd.Function):
        """The identity, whose gradient is infinite."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    original = Trainer._step

    def wrapped(self, *args):
        forward = self.net.forward_head
        if self.progress.step in (3, 4):
            monkeypatch.setattr(self.net, "forward_head", lambda x: Overflow.apply(forward(x)))
        try:
            return original(self, *args)
        finally:
            monkeypatch.setattr(self.net, "forward_head", forward)

    monkeypatch.setattr(Trainer, "_step", wrapped)
    run = growtas.train(**{**small, "epochs": 2}, out=tmp_path / "run")
    skipped = [r for r in records(run.path) if r.get("skipped") is True]
    assert [r["step"] for r in skipped] == [3, 4] and all(r["loss"] > 0 for r in skipped)
    assert all(v.isfinite().all() for v in checkpoint.load(run.checkpoint_path)["weights"].values())


def test_a_skipped_step_leaves_weights_their_average_and_moments(small, tmp_path, monkeypatch):
    small |= {"epochs": 2, "ema_decay": 0.9}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", poisoned(set(range(13, 22))))
        first = checkpoint.load(growtas.train(**small, out=tmp_path / "a").checkpoint_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying_at(13))
        with pytest.raises(KeyError):
            growtas.train(**small, out=tmp_path / "b", checkpoint_every_steps=1)
    second = checkpoint.load(tmp_path / "b" / "checkpoint.pt")
    assert second["step"] == 13
    assert same(first["weights"], second["weights"]) and same(first["ema"], second["ema"])
    assert same(first["optimizer"]["state"], second["optimizer"]["state"])
    run = Run.open(tmp_path / "b")
    resumed = Trainer(run, run.splits(), torch.device("cpu"), Ranks(), second)
    assert same(resumed.ema.module.state_dict(), second["ema"])


def test_a_resume_goes_on_counting_skipped_steps_all_of_which_are_logged(small, tmp_path, monkeypatch):
    small |= {"epochs": 2, "log_every": 10}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", poisoned({3, 4}))
        patch.setattr(Trainer, "_step", dying_at(13))
        with pytest.raises(KeyError, match="died"):
            growtas.train(**small, out=tmp_path)
    growtas.train(resume=tmp_path)
    assert [r["step"] for r in records(tmp_path) if r["event"] == "step"] == [0, 3, 4, 10, 20]
    assert records(tmp_path)[-1]["skipped"] == 2


def test_ten_in_a_row_stop_the_run_and_keep_the_last_good_checkpoint(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_step", poisoned(set(range(14, 33))))
    with pytest.raises(GrowtasError, match=r"10 updates in a row \(steps 14 to 23\)") as caught:
        growtas.train(**small, out=tmp_path / "run")
    assert "checkpoint of step 11" in str(caught.value) and "lower lr" in str(caught.value)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] == 11 and state["skipped"] == 0
    assert Run.open(tmp_path / "run").load_net()(torch.randn(1, 1, 8, 8), SPACE.largest()).isfinite().all()


def test_ten_in_a_row_before_any_checkpoint(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_step", poisoned(set(range(33))))
    with pytest.raises(GrowtasError, match="no checkpoint was written yet"):
        growtas.train(**small, out=tmp_path / "run")


def test_weights_that_are_not_finite_are_not_saved(small, tmp_path, monkeypatch):
    original, updates = Update.apply, []

    def exploding(self, norm):
        original(self, norm)
        updates.append(norm)
        if len(updates) == 21:  # the loss of this step was still finite
            self.net.head.bias.data.fill_(float("inf"))

    monkeypatch.setattr(Update, "apply", exploding)
    with pytest.raises(GrowtasError, match="checkpoint of step 20"):
        growtas.train(**small, out=tmp_path / "run", checkpoint_every_steps=1)
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 20
