"""Two processes train one run, as torchrun starts them."""

from __future__ import annotations

import os
import socket

import pytest
from runs import Child, same

import growtas
from growtas.training import checkpoint
from growtas.training.log import read_log

PLAIN = {"mixup": 0, "cutmix": 0, "drop_path": 0, "epochs": 2, "new_region": "keep"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(folder, world=2, **settings):
    """Train on every rank, each in a process of its own. Returns: exit statuses and outputs."""
    port = str(free_port())

    def work(rank):
        os.environ.update(
            WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        growtas.train(**settings)

    ranks = [Child(lambda rank=rank: work(rank), folder / f"output-{rank}") for rank in range(world)]
    results = [rank.finish() for rank in ranks]
    return [status for status, _ in results], [output for _, output in results]


def test_two_ranks_do_what_one_does(small, tmp_path):
    statuses, outputs = launch(tmp_path, **{**small, **PLAIN}, out=tmp_path / "two")
    assert statuses == [0, 0], outputs
    growtas.train(**{**small, **PLAIN}, out=tmp_path / "one")
    two, one = (list(read_log(tmp_path / name, "step")) for name in ("two", "one"))
    assert [r["subnets"] for r in two] == [r["subnets"] for r in one] and len(two) == 22
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-3)
    evaluations = [list(read_log(tmp_path / name, "eval"))[0]["results"] for name in ("two", "one")]
    for first, second in zip(*evaluations, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-2)
    # a run of two ranks may be continued by one
    before = checkpoint.load(tmp_path / "two" / "checkpoint.pt")
    assert growtas.train(resume=tmp_path / "two").finished
    assert same(before, checkpoint.load(tmp_path / "two" / "checkpoint.pt"))

    # an error of rank 0 is the error of every rank, and nobody waits
    statuses, outputs = launch(tmp_path, **{**small, **PLAIN}, out=tmp_path / "two")
    assert statuses == [2, 2] and all("holds another run" in output for output in outputs)


def test_two_ranks_open_a_stage_together(small, tmp_path):
    learning = {"epochs": 8, "lr": 2e-2, "warmup_epochs": 1, "eval_every": 0, "interference_every": 4}
    settings = {**small, **PLAIN, **learning, "transition": "interference", "method_options": "window=1"}
    statuses, outputs = launch(tmp_path, **settings, out=tmp_path / "run")
    assert statuses == [0, 0], outputs
    second = list(read_log(tmp_path / "run", "stage"))[1]
    assert second["opened_by"] == "interference" and 2 <= second["epoch"] < 6
    assert [record["epoch"] for record in read_log(tmp_path / "run", "interference")] == [0, 4, 8]
