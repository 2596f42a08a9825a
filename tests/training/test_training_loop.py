"""A step, the files of a run, and learning."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import yaml
from runs import SPACE, records
from thinning import thinned

import growtas
from growtas import native
from growtas.space import Subnet
from growtas.supernet import Supernet
from growtas.training import Run, TrainConfig, checkpoint
from growtas.training.data import Splits, load_splits
from growtas.training.evaluate import evaluate, watched_subnets
from growtas.training.log import read_log
from growtas.training.loop import Trainer
from growtas.training.optimizer import create_optimizer
from growtas.training.ranks import Ranks
from growtas.version import __version__, commit

CPU = torch.device("cpu")


def trainer(tmp_path, **given) -> Trainer:
    """A trainer of the small space on digits, without a folder."""
    config = TrainConfig(
        "small", data="digits", batch_size=96, device="cpu", **{"epochs": 4, **given}
    ).resolved()
    splits = load_splits("digits", SPACE)
    run = Run(tmp_path, config, SPACE, 10, 1151 // 96, splits.summary(), {})
    made = Trainer(run, splits, CPU, Ranks())
    made.log = made.curves = None
    return made


def one_step(made: Trainer):
    made.scheduler.step_update(made.progress.step)
    images, labels = next(made.loader.batches(made.progress.step))
    made._step(images, labels, [])


def only(subnet):
    """A method's subnets() that always gives these."""
    return lambda step: (subnet,) if isinstance(subnet, Subnet) else subnet


# -- one step ----------------------------------------------------------------------------------------------


def test_weight_decay_spares_vectors_position_and_cls():
    net = Supernet(SPACE, num_classes=10)
    optimizer = create_optimizer(net, TrainConfig("small", data="digits").resolved(), CPU)
    decays = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in net.named_parameters():
        spared = parameter.ndim == 1 or name in ("pos_embed", "cls_token")
        assert decays[parameter] == (0.0 if spared else 0.05), name
    assert decays[net.blocks[0].attn.key_table_v] == 0.05
    assert len(decays) == len(list(net.parameters()))
    assert optimizer.defaults["eps"] == 1e-8 and optimizer.defaults["betas"] == (0.9, 0.999)


def test_one_warm_up_and_one_cosine_over_the_whole_run(small, tmp_path):
    given = {"epochs": 6, "warmup_epochs": 2, "lr": 1e-2, "warmup_lr": 1e-6, "min_lr": 1e-5}
    run = growtas.train(**{**small, **given, "stages": 3, "transition": "3,5"}, out=tmp_path / "run")
    rates = [record["lr"] for record in read_log(run.path, "step")]
    for step, rate in enumerate(rates):
        if step < 22:
            expected = 1e-6 + step * (1e-2 - 1e-6) / 22
        else:
            expected = 1e-5 + 0.5 * (1e-2 - 1e-5) * (1 + math.cos(math.pi * step / 66))
        assert rate == pytest.approx(expected, rel=1e-9)
    assert len(rates) == 66
    optimizer = checkpoint.load(run.checkpoint_path)["optimizer"]["state"]
    assert max(state["step"].item() for state in optimizer.values()) == 66  # nothing was reset


def test_unsampled_blocks_are_left_alone_or_decay(tmp_path):
    shallow = Subnet(16, 1, (2,), (2,))
    deep = Subnet(16, 3, (2, 2, 2), (2, 2, 2))
    moved = {}
    for treatment in ("skip", "zero"):
        made = trainer(tmp_path, unused_blocks=treatment, warmup_epochs=0, method="uniform")
        made.method.subnets = only(deep)
        one_step(made)
        before = {n: p.detach().clone() for n, p in made.net.named_parameters()}
        made.method.subnets = only(shallow)
        one_step(made)
        after = dict(made.net.named_parameters())
        moved[treatment] = {n for n in after if not torch.equal(after[n], before[n])}
    unused = {n for n in before if n.startswith(("blocks.1.", "blocks.2."))}
    assert not unused & moved["skip"] and len(unused) > 20
    assert {n for n in unused if "weight" in n or "table" in n} <= moved["zero"]
    assert moved["skip"] == moved["zero"] - unused


def test_gradients_of_several_subnets_are_averaged(tmp_path):
    first, second = SPACE.smallest(), SPACE.largest()
    gradients = {}
    for name, subnets in {"first": (first,), "second": (second,), "both": (first, second)}.items():
        made = trainer(tmp_path, method="uniform", smoothing=0.0)
        made.optimizer.step = lambda: None
        made.method.subnets = only(subnets)
        one_step(made)
        gradients[name] = {n: p.grad for n, p in made.net.named_parameters()}
    zero = torch.zeros(())
    for name, both in gradients["both"].items():
        parts = [gradients[key][name] for key in ("first", "second")]
        mean = sum(zero if g is None else g for g in parts) / 2
        torch.testing.assert_close(both, mean.expand_as(both), rtol=1e-4, atol=1e-7)


def test_loss_is_cross_entropy_with_smoothing(tmp_path):
    made = trainer(tmp_path, method="uniform", smoothing=0.2)
    images, labels = next(made.loader.batches(0))
    logits = made.net(images, made.method.subnets(0)[0]).log_softmax(1)
    picked = logits.gather(1, labels[:, None]).mean()
    expected = -(0.8 * picked + 0.2 * logits.mean())
    loss, _ = made._step(images, labels, [])
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_mixup_depends_on_the_step_alone(tmp_path):
    losses = []
    for _ in range(2):
        made = trainer(tmp_path, method="uniform", mixup=0.8, cutmix=1.0, drop_path=0.5)
        made.optimizer.step = lambda: None
        images, labels = next(made.loader.batches(0))
        made.progress.step = 3
        losses.append(made._step(images.clone(), labels, [])[0])
        torch.rand(5)
        made.progress.step = 3
        losses.append(made._step(images.clone(), labels, [])[0])
        made.progress.step = 4
        assert made._step(images.clone(), labels, [])[0] != losses[0]
    assert len(set(losses)) == 1


def test_clip_grad(tmp_path):
    made = trainer(tmp_path, clip_grad=1e-3)
    one_step(made)
    norm = torch.stack([p.grad.norm() for p in made.net.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_autocast(small, tmp_path):
    run = growtas.train(**{**small, "amp": "bfloat16"}, out=tmp_path / "run")
    plain = growtas.train(**small, out=tmp_path / "plain")
    first, second = ([r["loss"] for r in read_log(r.path, "step")] for r in (run, plain))
    assert first != second and first[0] == pytest.approx(second[0], rel=0.02)
    assert {p.dtype for p in run.load_net().parameters()} == {torch.float32}


# -- what a run writes -------------------------------------------------------------------------------------


def test_log_records(finished):
    log = records(finished.path)
    steps = [r for r in log if r["event"] == "step"]
    assert [r["step"] for r in steps] == list(range(33))
    for record in steps:
        assert record["epoch"] == record["step"] // 11 and record["stage"] == (record["epoch"] >= 1)
        assert record["groups"] == ([0, 1] if record["stage"] == 0 else [0, 1, 2])
        subnet = Subnet.parse(record["subnets"][0])
        assert record["group"] == [SPACE.group_of(subnet)] and record["group"][0] in record["groups"]
        assert 0 < record["loss"] < 10
    stages = [r for r in log if r["event"] == "stage"]
    assert [(r["step"], r["groups"], r["embed_dims"]) for r in stages] == [
        (0, [0, 1], [8, 12]),
        (11, [0, 1, 2], [8, 12, 16]),
    ]
    assert stages[1]["new_region"] == "standard" and stages[1]["new_entries"] > 0
    evaluations = [r for r in log if r["event"] == "eval"]
    assert [r["epoch"] for r in evaluations] == [1, 2, 3]
    assert [r["name"] for r in evaluations[0]["results"]] == ["smallest", "largest"]
    assert log[-1] == {"event": "finish", "step": 33, "epoch": 3, "skipped": 0}


def test_log_every(small, tmp_path):
    run = growtas.train(**{**small, "log_every": 10, "eval_every": 0}, out=tmp_path / "run")
    assert [r["step"] for r in read_log(run.path, "step")] == [0, 10, 20, 30]
    assert [r["epoch"] for r in read_log(run.path, "eval")] == [3]


def test_config_holds_everything(finished):
    data = yaml.safe_load((finished.path / "config.yaml").read_text())
    assert TrainConfig.from_dict(data["train"]) == finished.config == finished.config.resolved()
    assert data["space"] == SPACE.to_dict() and data["num_classes"] == 10
    assert data["versions"]["growtas"] == __version__ and data["versions"]["torch"] == torch.__version__
    assert data["versions"].get("commit") == (commit() or native.metadata("cpu").get("commit"))
    digest = data["images"].pop("digest")
    assert data["images"] == {"num_classes": 10, "train": 1151, "search": 287, "test": 359} and digest


def test_run_is_opened_from_its_folder(finished):
    run = Run.open(str(finished.path))
    assert run == finished and run.finished and run.space == SPACE and run.steps == 33
    assert Run.open(run) is run
    net = run.load_net()
    assert not net.training and net.space == SPACE
    weights = checkpoint.load(run.checkpoint_path)["weights"]
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    splits = run.splits()
    assert isinstance(splits, Splits) and splits.summary() == dict(run.images)


def test_checkpoint_is_complete_and_holds_no_code(finished):
    state = torch.load(finished.checkpoint_path, weights_only=True)
    assert set(state) == {*checkpoint.KEYS, *checkpoint.LATER_KEYS}
    assert state["step"] == 33 and state["log_offset"] == (finished.path / "log.jsonl").stat().st_size


def test_nothing_is_written_outside_the_folder(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small.update(epochs=2, tensorboard=True)
    growtas.train(**small, out="deep/run")
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())[:3] == [
        "deep/run/checkpoint.pt",
        "deep/run/config.yaml",
        "deep/run/log.jsonl",
    ]
    events = list((tmp_path / "deep" / "run" / "tensorboard").iterdir())
    assert len(events) == 1 and sum(1 for p in tmp_path.rglob("*") if p.is_file()) == 4


def test_tensorboard_curves(small, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = growtas.train(**{**small, "tensorboard": True}, out=tmp_path / "run")
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    losses = [r["loss"] for r in read_log(run.path, "step")]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    assert {"train/lr", "train/stage", "search_top1/smallest"} <= set(events.Tags()["scalars"])


def test_training_from_a_space_file(small, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**SPACE.to_dict(), "name": "mine"}))
    run = growtas.train(**{**small, "space": path, "epochs": 2}, out=tmp_path / "run")
    path.unlink()
    assert Run.open(run.path).space == dataclasses.replace(SPACE, name="mine")
    assert growtas.train(resume=run.path).finished


# -- evaluation --------------------------------------------------------------------------------------------


def test_evaluation_is_that_of_each_subnet(finished):
    net, search = finished.load_net().train(), finished.splits().search
    subnets = watched_subnets(SPACE, 2)
    results = evaluate(net, subnets, search, CPU)
    assert net.training and [r["name"] for r in results] == ["smallest", "largest", "random-0", "random-1"]
    net.eval()
    for result, subnet in zip(results, subnets.values(), strict=True):
        logits = net(search.images, subnet)
        assert result["top1"] == pytest.approx(
            100 * (logits.argmax(1) == search.labels).float().mean().item(), abs=1e-3
        )
        expected = torch.nn.functional.cross_entropy(logits, search.labels).item()
        assert result["loss"] == pytest.approx(expected, rel=1e-4)
        assert Subnet.parse(result["subnet"]) == subnet and result["group"] == SPACE.group_of(subnet)
    logged = list(read_log(finished.path, "eval"))[-1]["results"]
    assert logged == evaluate(net, watched_subnets(SPACE, 0), search, CPU)


@pytest.mark.parametrize("method", thinned(["growtas", "uniform"], fast=["growtas"]))
def test_training_learns(tmp_path, method):
    run = growtas.train(
        SPACE,
        "digits",
        method=method,
        epochs=8,
        batch_size=32,
        lr=2e-2,
        out=tmp_path / "run",
        tensorboard=False,
    )
    results = list(read_log(run.path, "eval"))[-1]["results"]
    assert min(result["top1"] for result in results) > 40  # chance is 10
