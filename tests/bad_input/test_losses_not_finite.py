"""A loss that is not finite: its step is skipped and counted, and ten in a row stop the run."""

from __future__ import annotations

import torch
from bad_input.small_runs import STEPS_PER_EPOCH, sentence, spoil_losses, train

import growtas
from growtas.training.log import read_log


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
