"""GrowTAS+ and other second phases: what is frozen stays to the bit, all else moves, kills do no harm."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import signal

import pytest
import torch
from runs import SPACE, Child, assert_same_result, records
from thinning import thinned

import growtas
from growtas import cli
from growtas.errors import GrowtasError, UsageError
from growtas.space import Subnet, load_space
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.training import Run, TrainConfig, checkpoint
from growtas.training.finetune import lr_share
from growtas.training.update import Update

LIVELY = {"weight_decay": 0.5, "clip_grad": 0.5, "ema_decay": 0.8, "epochs": 2, "lr": 3e-3}
"""All that moves weights without a gradient; the default rate is too low to show in two epochs."""


@pytest.fixture(scope="module")
def source(finished, tmp_path_factory):
    """A finished run in a folder of its own, to which second phases may be added."""
    folder = tmp_path_factory.mktemp("source") / "run"
    shutil.copytree(finished.path, folder)
    return Run.open(folder)


def frozen_region(net, groups):
    """Which entries the subnets of some groups use, by looking at every one of them."""
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in net.named_parameters()}
    for subnet in every_subnet(groups):
        for name, sliced in net.slice_state_dict(subnet).items():
            masks[name][tuple(slice(size) for size in sliced.shape)] = True
    return masks


def every_subnet(groups):
    for group, depth in itertools.product(groups, SPACE.depth):
        for heads, ratio in itertools.product(SPACE.num_heads, SPACE.mlp_ratio):
            yield Subnet(SPACE.groups[group], depth, (heads,) * depth, (ratio,) * depth)


@pytest.mark.parametrize(
    ("given", "frozen"),
    [
        pytest.param({}, (0,), id="adamw"),
        pytest.param({"unused_blocks": "zero"}, (0,), id="adamw, all blocks", marks=pytest.mark.slow),
        pytest.param(  # loses 1 + 1e-8
            {"opt": "sgd", "lr": 1.0, "weight_decay": 0.01},
            (0,),
            id="sgd with momentum",
            marks=pytest.mark.slow,
        ),
        pytest.param({"method_options": "frozen=literal", "subnets_per_step": 2}, (0, 1), id="literal"),
        pytest.param({"sandwich": True, "distill": "ema"}, (0,), id="sandwich"),
    ],
)
def test_frozen_weights_stay_to_the_bit_and_all_others_move(source, tmp_path, given, frozen):
    run = growtas.finetune(source, out=tmp_path / "plus", **{**LIVELY, **given})
    before, state = source.load_net(), checkpoint.load(run.checkpoint_path)
    masks = frozen_region(before, frozen)
    for kind in ("weights", "ema"):
        for name, tensor in before.state_dict().items():
            mask, after = masks[name], state[kind][name]
            assert torch.equal(after[mask], tensor[mask]), (kind, name)
            moved = after[~mask] != tensor[~mask]
            assert moved.all() if "opt" not in given else moved.any() or mask.all(), (kind, name)
    assert any((~mask).any() for mask in masks.values()) and run.finished


def test_frozen_subnets_compute_what_they_did(source, tmp_path):
    run = growtas.finetune(source, out=tmp_path / "plus", **LIVELY)
    before, after = source.load_net(), run.load_net()
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for subnet in every_subnet((0, 1, 2)):
        same = torch.equal(before(images, subnet), after(images, subnet))
        assert same == (SPACE.group_of(subnet) == 0), subnet


def test_frozen_weights_of_a_convolutional_space(tmp_path):
    space = MobileNetSpace("conv", (3, 5), (2, 3), (1, 2), 8, 8, (16,), 16, 16, (1,), ("relu",), (True,))
    space = dataclasses.replace(space, image_size=8, in_channels=1, dropout=0.0)
    given = {"batch_size": 512, "eval_every": 0, "eval_subnets": 0, "tensorboard": False, "device": "cpu"}
    source = growtas.train(space, "digits", method="uniform", epochs=1, **given, out=tmp_path / "run")
    run = growtas.finetune(source, **{**LIVELY, "epochs": 4})
    before, after = source.load_net().train(), run.load_net().train()  # batches' own statistics
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        mask = torch.zeros(old.shape, dtype=torch.bool)
        for kernel, depth in itertools.product(space.kernel, space.depth):
            box = before.subnet_shapes(space.subnet(kernel=kernel, expand=2, depth=depth)).get(name)
            if box is not None:
                mask[tuple(slice(size) for size in box)] = True
        assert torch.equal(old[mask], new[mask]) and (mask.all() or (old[~mask] != new[~mask]).any()), name
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for subnet in (space.smallest(), space.largest((0,)), space.largest()):
        assert torch.equal(before(images, subnet), after(images, subnet)) == (space.group_of(subnet) == 0)


def test_moments_and_norm_know_only_what_is_trained(source, tmp_path, monkeypatch):
    norms = []
    original = Update.apply

    def noting(self, norm):
        squares = [
            p.grad[masks[name]].norm() for name, p in self.net.named_parameters() if p.grad is not None
        ]
        assert not any(squares)
        norms.append(norm)
        original(self, norm)

    masks = frozen_region(source.load_net(), (0,))
    monkeypatch.setattr(Update, "apply", noting)
    run = growtas.finetune(source, out=tmp_path / "plus", epochs=1)
    state = checkpoint.load(run.checkpoint_path)["optimizer"]["state"]
    names = [name for name, _ in source.load_net().named_parameters()]
    moments = {name: state[i]["exp_avg"] for i, name in enumerate(in_groups(names, source.load_net()))}
    assert len(norms) == 11 and min(norms) > 0
    for name, moment in moments.items():
        assert not moment[masks[name]].any() and moment[~masks[name]].any() == (~masks[name]).any(), name


def in_groups(names, net):
    """Parameters in the order of timm's optimizer: those without weight decay first."""
    spared = net.no_weight_decay()
    bare = [n for n in names if net.get_parameter(n).ndim <= 1 or n in spared]
    return bare + [n for n in names if n not in bare]


def test_a_second_phase_is_a_run_with_defaults_of_its_own(source):
    run = growtas.finetune(source.path, epochs=1)
    assert run.path == source.path / "finetune-growtas+"
    config = Run.open(run.path).config
    assert (config.method, config.epochs, config.lr, config.min_lr) == ("growtas+", 1, 1.5e-4, 5e-7)
    assert (config.sched, config.warmup_epochs, config.initial) == ("cosine", 0.0, str(source.path))
    assert config.mixup == source.config.mixup and config.weight_decay == source.config.weight_decay
    stage, *steps = (r for r in records(run.path) if r["event"] in ("stage", "step"))
    assert stage["groups"] == [1, 2] and stage["frozen_groups"] == [0]
    masks = frozen_region(source.load_net(), (0,))
    assert stage["frozen_entries"] == sum(int(mask.sum()) for mask in masks.values())
    assert {group for step in steps for group in step["group"]} == {1, 2}
    assert [step["lr"] for step in steps] == sorted((step["lr"] for step in steps), reverse=True)
    with pytest.raises(UsageError, match=r"holds another run. Continue it with: growtas train --resume"):
        growtas.finetune(source.path, epochs=1)
    growtas.extract(run, SPACE.largest())
    again = growtas.finetune(run, method="uniform", epochs=1)
    assert again.path == run.path / "finetune-uniform" and again.finished


@pytest.mark.parametrize(("space", "rate"), [("tiny", 5e-5), ("small", 5e-5), ("base", 5e-6)])
def test_published_learning_rates(tmp_path, space, rate):
    config = TrainConfig(space=f"autoformer-{space}", data=f"folder:{tmp_path}").resolved()
    run = Run(tmp_path, config, load_space(config.space), 1000, 1251, {}, {})
    assert config.lr * lr_share(run) == pytest.approx(rate)


def test_a_second_phase_from_the_command_line(source, tmp_path, capsys):
    out = str(tmp_path / "plus")
    given = ["--epochs", "1", "--no-tensorboard", "--method-options", "frozen=literal"]
    assert cli.main(["finetune", str(source.path), "--out", out, *given]) == 0
    assert f"growtas search {out}" in capsys.readouterr().out
    config = Run.open(out).config
    assert config.method_options == "frozen=literal" and config.drop_path == 0.2
    assert cli.main(["evaluate", out, "--subnet", "smallest"]) == 0


# -- interrupted -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plus(source, tmp_path_factory):
    """A second phase that was left alone."""
    return growtas.finetune(source, out=tmp_path_factory.mktemp("plus") / "run", **LIVELY)


def steps_logged(folder):
    path = folder / "log.jsonl"
    return path.read_bytes().count(b'"event": "step"') if path.exists() else 0


@pytest.mark.parametrize("steps", thinned([0, 5, 15], fast=(1,)))
def test_sigkill_and_the_loss_of_the_first_run(plus, source, tmp_path, steps):
    lent, out = tmp_path / "source", tmp_path / "plus"
    shutil.copytree(source.path, lent)
    process = Child(lambda: growtas.finetune(lent, out=out, **LIVELY), tmp_path / "output", stops=True)
    process.wait_until(lambda: (out / "config.yaml").exists() and steps_logged(out) >= steps)
    assert process.kill()[0] == -signal.SIGKILL
    shutil.rmtree(lent)
    assert growtas.train(resume=out).finished
    assert_same_result(out, plus.path)
    names = ["checkpoint.pt", "config.yaml", "initial.safetensors", "log.jsonl"]
    assert sorted(p.name for p in out.iterdir()) == names


def test_a_folder_whose_making_was_killed_is_free(plus, source, tmp_path):
    (tmp_path / "initial.safetensors").write_bytes((plus.path / "initial.safetensors").read_bytes()[:99])
    assert growtas.finetune(source, out=tmp_path, epochs=1).finished


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:500])])
def test_lost_initial_weights(plus, tmp_path, spoil):
    shutil.copytree(plus.path, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    spoil(tmp_path / "run" / "initial.safetensors")
    with pytest.raises(
        GrowtasError, match="initial.safetensors, the weights .* is (missing or truncated|damaged)"
    ):
        growtas.train(resume=tmp_path / "run")


# -- refused ---------------------------------------------------------------------------------------------


def test_an_unfinished_run_is_refused(source, tmp_path):
    shutil.copytree(source.path, tmp_path / "run", ignore=shutil.ignore_patterns("finetune*"))
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt") | {"step": 22}
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", state)
    for done in ("22", "0"):
        with pytest.raises(
            UsageError, match=f"holds {done} of 33 steps. Finish it first, with: growtas train"
        ):
            growtas.finetune(tmp_path / "run")
        (tmp_path / "run" / "checkpoint.pt").unlink(missing_ok=True)
    assert not list(tmp_path.glob("run/finetune*"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"space": "digits"}, "space cannot be given to a finetune"),
        ({"initial": "x"}, "initial cannot be given to a finetune"),
        ({"qkv_bias": "published"}, "was trained with qkv_bias='interleaved', .* set qkv_bias="),
        ({"method_options": "frozen=firsts"}, "frozen='firsts' is unknown. Did you mean 'first'"),
        ({"method_options": "frozen=literal", "stages": 1}, "nothing to train: it freezes all 3 groups"),
        ({"epoch": 3}, "no setting 'epoch'. Did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_given(source, tmp_path, given, sentence):
    with pytest.raises(UsageError, match=sentence):
        growtas.finetune(source, out=tmp_path / "plus", **given)
    assert not (tmp_path / "plus").exists()


def test_a_second_phase_needs_a_first(source, small, tmp_path):
    small["method"] = "growtas+"
    with pytest.raises(UsageError, match=r"second phase: .* growtas.finetune\(RUN, method='growtas\+'\)"):
        growtas.train(**small, out=tmp_path / "run")
    with pytest.raises(UsageError, match="The weights of .* do not fit this run .*embed|size mismatch"):
        growtas.train(**{**small, "space": "digits"}, initial=source.path, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
