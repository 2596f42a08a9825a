"""A rank that fails stops the others with a sentence that names it, and a restart goes on."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import socket

import pytest
import torch
from ranks import launch
from runs import assert_same_result
from thinning import thinned
from torch.distributed import TCPStore

import growtas
from growtas.errors import GrowtasError, UsageError
from growtas.training import Run, checkpoint
from growtas.training.loop import Trainer
from growtas.training.ranks import Ranks, choose_device, lifeline, meeting
from growtas.training.ranks.lifeline import Lifeline, RankFailed
from growtas.training.ranks.restart import restarted

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _imported(finished):
    """Import what a run needs before ranks are forked."""


def on_rank(monkeypatch, rank, step, act):
    """Let one rank do something in front of a step."""
    original = Trainer._step

    def wrapped(self, *args):
        if (self.ranks.rank, self.progress.step) == (rank, step):
            act()
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_step", wrapped)


def failing(error):
    def act():
        raise error

    return act


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("rank", "act", "status", "sentence"),
    thinned(
        [
            (1, kill, 1, r"Rank 1 \(process \d+ on .*\) ended without a word"),
            (0, kill, 1, r"Rank 0 \(process \d+ on .*\) ended without a word"),
            (1, failing(KeyError("wool")), 1, r"Rank 1 .* failed: KeyError: 'wool'"),
            (0, failing(OSError("moth")), 1, r"Rank 0 .* failed: OSError: moth"),
            (1, failing(UsageError("No.")), 2, r"Rank 1 .* failed: No"),
        ],
        fast=(0, 3),
        several=True,
    ),
    ids=["killed", "rank 0 killed", "raises", "rank 0 raises", "of ours"],
)
def test_a_rank_that_fails_is_named_by_the_other(small, tmp_path, monkeypatch, rank, act, status, sentence):
    on_rank(monkeypatch, rank, 13, act)
    out = tmp_path / "run"
    statuses, outputs = launch(tmp_path, lambda _: growtas.train(**{**small, "eval_every": 0}, out=out))
    assert statuses[1 - rank] == status and statuses[rank] in (status, -signal.SIGKILL), outputs
    assert re.search(sentence, outputs[1 - rank]), outputs
    assert (
        f"the checkpoint of step 11 is in {out}. Continue with: growtas train --resume" in outputs[1 - rank]
    )
    assert "gloo" not in outputs[1 - rank].lower()


def test_a_signal_to_one_rank_is_the_same_truth_on_all_and_a_restart_goes_on(
    small, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        on_rank(patch, 1, 7, terminate)
        statuses, outputs = launch(tmp_path, lambda _: growtas.train(**small, out=out))
    told = f"Interrupted after step 8 of 33; the checkpoint of step 8 is in {out}. Continue with: growtas"
    assert statuses == [143, 143] and all(told in output for output in outputs), outputs
    state = checkpoint.load(out / "checkpoint.pt")
    assert (state["step"], state["ranks"]) == (8, 2)

    # the same command is refused, unless torchrun or Slurm repeat it
    with pytest.raises(UsageError, match="holds another run. Continue it"):
        growtas.train(**small, out=out)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(UsageError, match="differs from this restarted command in seed, lr"):
        growtas.train(**small, lr=0.5, seed=3, out=out)
    assert growtas.train(**small, workers=0, out=out).finished
    said = capsys.readouterr().out
    assert f"This is a restart: the run in {out} goes on." in said
    assert "number of ranks changed from 2 to 1" in said
    before = checkpoint.load(out / "checkpoint.pt")["weights"]
    assert growtas.train(**small, out=out).finished  # there is nothing left to do
    assert torch.equal(checkpoint.load(out / "checkpoint.pt")["weights"]["head.bias"], before["head.bias"])


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_restarts_are_counted_by_who_restarts(monkeypatch, name):
    assert not restarted()
    for count in ("", "0", "1", "12"):
        monkeypatch.setenv(name, count)
        assert restarted() == (count not in ("", "0"))


def test_a_rank_that_cannot_leave_a_collective_is_ended(tmp_path):
    def work(rank):
        lifeline.GRACE = 0.2
        with Ranks.joined(CPU) as ranks:
            ranks.note("what there is is kept.")
            ranks.on_first(lambda: None)
            if rank:
                raise MemoryError("full")
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            signal.sigwait({signal.SIGALRM})  # nobody sends it

    statuses, outputs = launch(tmp_path, work)
    assert statuses == [1, 1]
    assert re.search(r"growtas: Rank 1 .* failed: MemoryError: full; what there is is kept\.", outputs[0])


def test_ranks_meet_apart_from_an_earlier_start():
    """The store still holds the names of ranks that are gone, and two starts of one process follow."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    server.set("growtas/rank/1", "gone")
    for start in range(2):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            own = TCPStore("127.0.0.1", server.port, is_master=False)
            first = pool.submit(meeting.meet, server, 0, 2, 600.0)
            second = pool.submit(meeting.meet, own, 1, 2, 600.0)
            first.result().set("who", str(start))
            assert second.result().get("who") == str(start).encode()
    with pytest.raises(GrowtasError, match="Rank 0 waited 0 s for rank 1, 2, which did not start"):
        meeting.meet(server, 0, 3, 0.0)


def test_any_exception_of_rank_0_reaches_those_that_wait_for_its_result(tmp_path):
    def work(rank):
        with Ranks.joined(CPU) as ranks:
            assert ranks.on_first(lambda: 7) == 7
            ranks.on_first(lambda: {}["wool"])

    statuses, outputs = launch(tmp_path, work)
    assert statuses == [1, 1] and "KeyError: 'wool'" in outputs[0]
    assert outputs[1] == "KeyError: 'wool'" or "failed: KeyError: 'wool'" in outputs[1]


@pytest.fixture
def lines(monkeypatch):
    """The lifelines of three ranks, all in this process, and what breaks one of the connections."""
    monkeypatch.setattr(lifeline, "GRACE", 10**6)
    pairs = {rank: socket.socketpair() for rank in (1, 2)}
    first = Lifeline(0, {rank: pair[0] for rank, pair in pairs.items()}, {1: "here", 2: "there"})
    others = [Lifeline(rank, {0: pairs[rank][1]}, {0: "first"}) for rank in pairs]
    yield [first, *others]
    for each in lifeline._open & {first, *others}:
        each.close()


def test_all_tell_the_same_of_a_rank_that_is_gone(lines):
    first, gone, other = lines
    first.note("the checkpoint is safe.")
    gone._sockets[0].shutdown(socket.SHUT_RDWR)  # as the kernel does when the process is killed
    told = first.wait(600), other.wait(600)
    assert str(told[0]) == str(told[1])
    assert str(told[0]).startswith("Rank 1 (here) ended without a word")
    assert str(told[0]).endswith("gone; the checkpoint is safe.")
    for each in (first, other):
        with pytest.raises(RankFailed, match="Rank 1"):
            each.check()


def test_the_first_failure_is_the_one_that_is_told(lines):
    first, one, other = lines
    other.report("the first.", 2)
    assert first.wait(600).exit_status == one.wait(600).exit_status == 2
    one.report("the second.", 1)
    assert "Rank 2" in str(one.failure) and "the first." in str(one.failure)


def test_ranks_wait_for_the_first_however_long_it_takes(lines):
    first, one, other = lines
    first.turn()
    one.turn(), other.turn()
    first.report("no space.", 1)
    with pytest.raises(RankFailed, match=r"Rank 0 .* failed: no space"):
        one.turn()


def test_a_rank_that_has_finished_is_not_missed(lines):
    first, one, other = lines
    one.close()
    other.report("after that.", 1)
    assert "after that." in str(first.wait(600))


def test_one_gpu_for_all_ranks_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="'cuda:1' would put all 2 ranks on one GPU. Use device='cuda'"):
        choose_device("cuda:1")


def test_a_run_killed_in_evaluations_repeats_them(small, finished, tmp_path, monkeypatch):
    original, given = Trainer._evaluate, {**small, "out": tmp_path / "run"}

    for epoch in (1, 3):  # the last one, too

        def dying(self, number, epoch=epoch):
            if number == epoch:
                raise MemoryError("killed")
            original(self, number)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_evaluate", dying)
            with pytest.raises(MemoryError):
                growtas.train(**given)
        assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 11 * epoch
        assert not Run.open(tmp_path / "run").finished
        given = {"resume": tmp_path / "run"}
    growtas.train(**given)
    assert_same_result(tmp_path / "run", finished.path)
