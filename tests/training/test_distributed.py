"""Two processes train one run, as torchrun starts them."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from ranks import free_ports, launch
from runs import SMALL, SPACE, same
from test_mobilenet_run import SPACE as TINY_MOBILENET
from thinning import thinned

import growtas
from growtas.methods import method_names
from growtas.training import Run, checkpoint, inputs
from growtas.training.data import load_splits
from growtas.training.log import read_log
from growtas.training.loop import Trainer
from growtas.training.ranks import Ranks

PLAIN = {"mixup": 0, "cutmix": 0, "drop_path": 0, "epochs": 2, "new_region": "keep"}
FEW = {"batch_size": 288, "eval_every": 0}  # 6 updates
METHODS = {
    "growtas": {"subnets_per_step": 2, "new_region_moments": "reset"},
    "growtas+": {"clip_grad": 0.5},
    "uniform": {"sandwich": True, "distill": "ema", "accumulate": 2},
    "focusformer": {"method_options": "update_every=2,images=32,samples=2,uniform=0.2"},
    "prenas": {"method_options": "images=4"},
    "single": {"method_options": "subnet=largest", "distill": "ema"},
    "shrinking": {"space": TINY_MOBILENET, "epochs": 4, "batch_size": 576},
}
"""Every method, and between them what it may be combined with."""
FAST = ("growtas", "growtas+", "uniform", "shrinking")


def train_each(folder, settings, methods, ports):
    for name, port in zip(methods, ports, strict=True):
        given = METHODS[name]
        os.environ["MASTER_PORT"] = port  # rank 0 may not have left the last one yet
        values = {**settings, **PLAIN, **FEW, "ema_decay": 0.9, "method": name, **given, "out": folder / name}
        if name == "growtas+":
            values = {key: values[key] for key in ("method", "ema_decay", "clip_grad", "out")}
            growtas.finetune(folder / "growtas", epochs=1, lr=1e-3, **values)
        else:
            growtas.train(**values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Some methods on two ranks and on one: the folder of each."""
    return train_both(tmp_path_factory.mktemp("methods"), FAST)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The other methods."""
    return train_both(tmp_path_factory.mktemp("others"), [name for name in METHODS if name not in FAST])


def train_both(folder, methods):
    torch.set_num_threads(1)
    (folder / "one").mkdir(), (folder / "two").mkdir()
    ports, original = free_ports(len(methods)), Trainer.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_PORT", "")
        train_each(folder / "one", SMALL, methods, ports)

    def work(rank):
        def train(self, *arguments):
            original(self, *arguments)
            state = {
                "weights": dict(self.net.named_parameters()),
                "optimizer": self.optimizer.state_dict(),
                "averages": dict(self.ema.module.named_parameters()),
                "method": self.method.state_dict(),
            }
            torch.save(state, folder / f"{self.config.method}-{rank}.pt")

        Trainer.train = train  # in this forked process alone
        train_each(folder / "two", SMALL, methods, ports)

    statuses, outputs = launch(folder, work)
    assert statuses == [0, 0], outputs
    return folder


def test_every_method_is_tried():
    assert set(METHODS) == set(method_names())


@pytest.mark.parametrize("method", thinned(METHODS, fast=FAST))
def test_two_ranks_do_what_one_does(request, method):
    trained = request.getfixturevalue("trained" if method in FAST else "others")
    one, two = ([*read_log(trained / ranks / method, "step")] for ranks in ("one", "two"))
    assert [record["subnets"] for record in two] == [record["subnets"] for record in one]
    first, second = (torch.load(trained / f"{method}-{rank}.pt") for rank in range(2))
    for part, value in first.items():
        assert same(value, second[part]), f"{part} of the two ranks differ"
    if method == "shrinking":  # BatchNorm normalises by each rank's own share of the batch
        near = {"rel": 0.1}
    else:
        near = {"rel": 1e-3}
        alone = checkpoint.load(trained / "one" / method / "checkpoint.pt")["weights"]
        for name, value in first["weights"].items():
            torch.testing.assert_close(value.detach(), alone[name], rtol=1e-2, atol=1e-3)
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], **near)


def test_a_run_of_two_ranks_goes_on_with_one(trained, tmp_path):
    run = Run.open(trained / "two" / "uniform")
    before = checkpoint.load(run.checkpoint_path)
    assert growtas.train(resume=run).finished
    assert same(before, checkpoint.load(run.checkpoint_path))


def test_an_error_of_rank_0_is_that_of_every_rank(trained, small, tmp_path):
    statuses, outputs = launch(tmp_path, lambda _: growtas.train(**small, out=trained / "two" / "uniform"))
    assert statuses == [2, 2] and all("holds another run" in output for output in outputs)


@pytest.mark.slow
def test_two_ranks_open_a_stage_together(small, tmp_path):
    learning = {"epochs": 8, "lr": 2e-2, "warmup_epochs": 1, "eval_every": 0, "interference_every": 4}
    rule = {"transition": "plateau", "method_options": "window=1,tolerance=0.5"}
    settings = {**small, **PLAIN, **learning, **rule}
    statuses, outputs = launch(tmp_path, lambda _: growtas.train(**settings, out=tmp_path / "run"))
    assert statuses == [0, 0], outputs
    second = list(read_log(tmp_path / "run", "stage"))[1]
    assert second["opened_by"] == "plateau" and 2 <= second["epoch"] < 6
    assert [record["epoch"] for record in read_log(tmp_path / "run", "interference")] == [0, 4, 8]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_decoding_of_drawn_images(image_folder, tmp_path, monkeypatch, world):
    space = dataclasses.replace(SPACE, name="rgb", in_channels=3, image_size=16)
    splits, cpu = load_splits(f"folder:{image_folder}", space), torch.device("cpu")
    monkeypatch.setattr(inputs, "DECODED_AT_ONCE", 3)
    count = 7 if world == 2 else 2  # not a multiple; fewer than there are ranks

    def draw(ranks, workers):
        return inputs.draw_images(splits, 0, cpu, ranks, workers, "train", count, "x")

    def work(rank):
        taken, pixels = [], type(splits.train).pixels
        type(splits.train).pixels = lambda *given: (taken.append(given[1]), pixels(*given))[1]
        with Ranks.joined(cpu) as ranks:
            torch.save((*draw(ranks, 0), len(taken)), tmp_path / f"{rank}.pt")
            torch.save(draw(ranks, 2), tmp_path / f"loaded-{rank}.pt")

    expected = draw(Ranks(), 0)
    drawn = [splits.train[index] for index in range(len(splits.train))]
    assert all(any(torch.equal(image, each) for each, _ in drawn) for image in expected[0])
    statuses, outputs = launch(tmp_path, work, world)
    assert statuses == [0] * world, outputs
    for rank in range(world):
        *found, taken = torch.load(tmp_path / f"{rank}.pt")
        assert same([*expected], found) and same([*expected], [*torch.load(tmp_path / f"loaded-{rank}.pt")])
        assert taken <= -(-count // world)
