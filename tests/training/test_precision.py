"""float16 with its scaler, updates in parts, activations computed again, and what auto means."""

from __future__ import annotations

import pytest
import torch
from runs import SMALL, SPACE, assert_same_result, records
from test_mobilenet_run import SPACE as CONVOLUTIONAL
from test_training_loop import CPU, one_step, trainer

import growtas
from growtas import native, ops
from growtas.errors import UsageError
from growtas.ops import dispatch
from growtas.progress import say_once
from growtas.training import Run, checkpoint, loop
from growtas.training.precision import precision, resolved, tf32

PLAIN = {"warmup_epochs": 0.0, "method": "uniform", "subnets_per_step": 2}


def gradients(made) -> list[torch.Tensor | None]:
    """The gradients of the first step, whose update is left out."""
    made.update.apply = lambda norm: None
    one_step(made)
    return [None if p.grad is None else p.grad.clone() for p in made.net.parameters()]


@pytest.mark.parametrize(
    ("capability", "amp"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16")]
)
def test_auto_is_what_the_gpu_has(monkeypatch, capability, amp):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    cuda = torch.device("cuda", 0)
    assert resolved("auto", cuda) == amp and resolved("none", cuda) == "none"
    assert resolved("auto", CPU) == "none" and resolved("bfloat16", CPU) == "bfloat16"
    with precision("auto", CPU):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("amp", "inside"), [("bfloat16", "high"), ("none", "highest")])
def test_tf32_is_taken_where_autocast_is_on(amp, inside):
    before = torch.get_float32_matmul_precision()
    with tf32(amp, torch.device("cuda", 0)):
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == before


def test_the_run_keeps_and_prints_what_auto_became(small, tmp_path, capsys):
    given = {"method": "single", "epochs": 1, "batch_size": 576}
    run = growtas.train(**{**small, **given}, out=tmp_path / "run")
    assert Run.open(run.path).config.amp == "none" and "training on cpu, float32" in capsys.readouterr().out


def test_a_run_and_an_evaluation_without_their_kernels_say_so(small, tmp_path, capsys, monkeypatch):
    """A module of another build made runs three times as slow, and no line told of it."""
    monkeypatch.setattr(native, "status", lambda kind: native.Status(False, "it was not built", "Build it."))
    dispatch.changed()
    try:
        given = {**small, "method": "single", "epochs": 1, "batch_size": 576}
        growtas.train(**given, out=tmp_path / "run")
        assert "Backend 'cpu' cannot run here: it was not built." in capsys.readouterr().out
        assert "it was not built" in str(growtas.train(**given, out=tmp_path / "other", dry_run=True))
        say_once.cache_clear()
        for _ in range(2):
            growtas.evaluate(tmp_path / "run", "smallest")
        assert capsys.readouterr().err.count("Backend 'cpu' cannot run here: it was not built.") == 1
        say_once.cache_clear()
        with ops.use("torch"):
            growtas.train(**given, out=tmp_path / "asked")
            growtas.evaluate(tmp_path / "asked", "smallest")
        told = capsys.readouterr()
        assert "cannot run" not in told.out + told.err
    finally:
        say_once.cache_clear()
        monkeypatch.undo()
        dispatch.changed()


# -- float16 -----------------------------------------------------------------------------------------------


def test_the_method_and_the_clipping_see_unscaled_gradients(tmp_path):
    scaled, plain = (trainer(tmp_path, **PLAIN, amp=amp, clip_grad=1e6) for amp in ("float16", "none"))
    assert scaled.update.scaler.get_scale() == 2.0**16
    seen = []
    scaled.method.before_update = lambda step, training: seen.extend(
        None if p.grad is None else p.grad.clone() for p in training.net.parameters()
    )
    found, expected = gradients(scaled), gradients(plain)
    assert len(seen) == len(found)
    for ours, given, theirs in zip(found, seen, expected, strict=True):
        if theirs is not None:
            assert torch.equal(ours, given)
            torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.02 * theirs.abs().max().item() + 1e-5)


def test_an_overflow_is_skipped_counted_and_halves_the_scale(tmp_path):
    made = trainer(tmp_path, **PLAIN, amp="float16")
    made.update.scaler.load_state_dict(made.update.scaler.state_dict() | {"scale": 2.0**40})
    before = [p.detach().clone() for p in made.net.parameters()]
    one_step(made)
    assert made.progress.skipped == 1 and made.update.scaler.get_scale() == 2.0**39
    assert all(torch.equal(one, other) for one, other in zip(before, made.net.parameters(), strict=True))


def test_float16_resumes_bit_for_bit_with_its_scale(tmp_path, monkeypatch):
    given = {**SMALL, "amp": "float16", "eval_every": 0, "epochs": 2}
    whole = growtas.train(**given, out=tmp_path / "whole")
    original = loop.Trainer._step

    def dying(self, *args):
        if self.progress.step == 13:
            raise KeyError("died")
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", dying)
        with pytest.raises(KeyError):
            growtas.train(**given, out=tmp_path / "cut")
    growtas.train(resume=tmp_path / "cut")
    assert_same_result(tmp_path / "cut", whole.path)
    assert checkpoint.load(whole.checkpoint_path)["scaler"]["_growth_tracker"] > 0


# -- an update in parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"distill": "inplace"}, {"gradients": "sum"}])
def test_parts_add_up_to_the_batch(tmp_path, given):
    """Also under mixup, which mixes the whole batch."""
    whole, parts = (trainer(tmp_path, **PLAIN, mixup=0.8, **given, accumulate=n) for n in (1, 4))
    losses = []
    for made in (whole, parts):
        made._record = lambda step, loss, *rest: losses.append(loss)
    for ours, theirs in zip(gradients(parts), gradients(whole), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_an_update_in_parts_resumes_and_is_one_record(child, tmp_path):
    given = {**SMALL, "accumulate": 3, "eval_every": 0, "epochs": 2}
    whole = growtas.train(**given, out=tmp_path / "whole")
    cut = tmp_path / "cut"
    process = child(**given, out=cut, checkpoint_every_steps=3)
    process.wait_until(lambda: (cut / "log.jsonl").exists() and len(records(cut)) >= 8)
    process.kill()
    growtas.train(resume=cut)
    assert_same_result(cut, whole.path)
    assert [r["step"] for r in records(cut) if r["event"] == "step"] == list(range(22))


def test_a_batch_must_divide_into_its_parts(tmp_path):
    with pytest.raises(UsageError, match="batch_size=96 does not divide into accumulate=5 parts"):
        trainer(tmp_path, accumulate=5)


# -- activations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", ["none", "bfloat16"])
def test_activations_computed_again_give_equal_bits(tmp_path, amp):
    given = {**PLAIN, "drop_path": 0.5, "amp": amp}
    kept, again = (trainer(tmp_path, **given, checkpoint_activations=on) for on in (False, True))
    for ours, theirs in zip(gradients(again), gradients(kept), strict=True):
        assert (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs))


def saved_bytes(net, images) -> int:
    """Bytes that the backward pass of the largest subnet keeps, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = net(images, SPACE.largest())  # alive until counted, or memory is used twice
    assert logits.requires_grad
    return sum(kept.values())


def test_activations_computed_again_are_not_kept(tmp_path):
    net = trainer(tmp_path, **PLAIN).net
    images = torch.randn(64, 1, 8, 8)
    usual = saved_bytes(net, images)
    net.checkpoint_activations = True
    assert saved_bytes(net, images) < 0.5 * usual


def test_convolutional_spaces_keep_their_activations(tmp_path):
    run = {"data": "digits", "batch_size": 32, "epochs": 1, "device": "cpu", "tensorboard": False}
    with pytest.raises(UsageError, match="is for vision transformers"):
        growtas.train(
            CONVOLUTIONAL, method="uniform", checkpoint_activations=True, **run, out=tmp_path / "run"
        )
