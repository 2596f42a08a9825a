"""Options of every method: several subnets per step, distillation, averaged weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runs import SPACE
from test_training_loop import CPU, one_step, only, trainer

import growtas
from growtas.errors import UsageError
from growtas.training import checkpoint, update
from growtas.training.data.images import seed_globally

LARGEST, SMALLEST = SPACE.largest(), SPACE.smallest()
PLAIN = {"smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0, "warmup_epochs": 0.0}


def gradients(made) -> list[torch.Tensor | None]:
    """The gradients of the first step, whose update is left out."""
    made.update.apply = lambda norm: None
    one_step(made)
    return [None if p.grad is None else p.grad.clone() for p in made.net.parameters()]


def expected_gradients(made, losses) -> list[torch.Tensor | None]:
    """The gradients of a sum of losses. Args: losses: of (logits function, labels)."""
    images, labels = next(made.loader.batches(0))
    made.net.zero_grad()
    seed_globally("step", 0, 0, 0)
    losses(lambda subnet: made.net(images, subnet), labels).backward()
    return [p.grad for p in made.net.parameters()]


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("how", "factor"), [("mean", 1 / 2), ("sum", 1.0)])
def test_gradients_of_several_subnets_are_averaged_or_summed(tmp_path, how, factor):
    made = trainer(tmp_path, **PLAIN, gradients=how, method="uniform")
    made.method.subnets = only((LARGEST, SMALLEST))
    found = gradients(made)
    expected = expected_gradients(
        made,
        lambda logits, labels: (
            factor * (F.cross_entropy(logits(LARGEST), labels) + F.cross_entropy(logits(SMALLEST), labels))
        ),
    )
    assert_close(found, expected)


def test_the_largest_subnet_teaches_the_others_and_does_not_learn_from_them(tmp_path):
    given = {"sandwich": True, "distill": "inplace", "distill_weight": 0.7, "label_weight": 0.2}
    made = trainer(tmp_path, **PLAIN, **given, method="uniform", gradients="sum")
    drawn = made.method.subnets(0)
    assert drawn[:2] == (LARGEST, SMALLEST) and len(drawn) == 3
    found = gradients(made)

    def losses(logits, labels):
        first = logits(LARGEST)
        soft = first.detach().softmax(1)
        total = F.cross_entropy(first, labels)
        for subnet in drawn[1:]:
            own = logits(subnet)
            total = total + 0.2 * F.cross_entropy(own, labels) + 0.7 * F.cross_entropy(own, soft)
        return total

    assert_close(found, expected_gradients(made, losses))


def test_a_stage_is_taught_by_its_own_largest_subnet(tmp_path):
    made = trainer(tmp_path, distill="inplace", stages=3, transition="1,2")
    assert [made.method.subnets(step)[0] for step in (0, 11, 22)] == [
        SPACE.largest(groups) for groups in ((0,), (0, 1), (0, 1, 2))
    ]


def test_averaged_weights_follow_and_teach(tmp_path):
    made = trainer(tmp_path, **PLAIN, ema_decay=0.9, distill="ema", method="uniform", lr=1e-2)
    made.method.subnets = only(SMALLEST)
    averages = [p.clone() for p in made.ema.module.parameters()]
    for _ in range(3):
        one_step(made)
        averages = [a.lerp(p, 0.1) for a, p in zip(averages, made.net.parameters(), strict=True)]
        for ours, expected in zip(made.ema.module.parameters(), averages, strict=True):
            torch.testing.assert_close(ours, expected)
    images, labels = next(made.loader.batches(made.progress.step))
    with torch.no_grad():
        soft = made.ema.module(images, LARGEST).softmax(1)
    made.update.apply = lambda norm: None
    one_step(made)
    found = [p.grad.clone() if p.grad is not None else None for p in made.net.parameters()]
    made.net.zero_grad()
    logits = made.net(images, SMALLEST)
    (F.cross_entropy(logits, labels) + F.cross_entropy(logits, soft)).backward()
    assert_close(found, [p.grad for p in made.net.parameters()])


def test_a_transformer_has_one_resolution(tmp_path):
    with pytest.raises(UsageError, match="is for convolutional spaces"):
        trainer(tmp_path, resolutions="6,8")


@pytest.mark.parametrize(("every", "epochs"), [(0, {4}), (1, {1, 2, 3, 4}), (3, {3, 4})])
def test_evaluations_after_every_so_many_epochs_and_at_the_end(tmp_path, every, epochs):
    made, due = trainer(tmp_path, eval_every=every), set()
    for step in range(1, made.run.steps + 1):
        made.progress.step = step
        due |= {step} if made._evaluates() else set()
    assert due == {epoch * made.run.steps_per_epoch for epoch in epochs}


def test_a_method_may_set_the_learning_rate(tmp_path):
    made = trainer(tmp_path)
    made.method.learning_rate = lambda step: 0.5
    made.optimizer.param_groups[0]["lr_scale"] = 0.1  # as layers of a model have that is fine-tuned
    one_step(made)
    assert [group["lr"] for group in made.optimizer.param_groups] == pytest.approx([0.05, 0.5])


def test_the_loss_of_a_step_is_the_mean_of_its_subnets(tmp_path):
    made = trainer(tmp_path, **PLAIN, method="uniform", subnets_per_step=3)
    images, labels = next(made.loader.batches(0))
    subnets, loss = made.update.gradients(0, images, labels, 0)
    losses = torch.stack([F.cross_entropy(made.net(images, subnet), labels) for subnet in subnets])
    assert len(subnets) == 3 and loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)


def test_mixup_and_drop_path_are_seeded_by_the_step_and_the_rank(tmp_path, monkeypatch):
    made, seeds = trainer(tmp_path, seed=5), []
    monkeypatch.setattr(update, "seed_globally", lambda *key: seeds.append(key) or seed_globally(*key))
    images, labels = next(made.loader.batches(0))
    for step, rank in ((0, 0), (3, 2)):
        made.update.gradients(step, images, labels, rank)
    assert seeds == [("step", 5, 0, 0), ("step", 5, 3, 2)]


def test_a_method_may_begin_the_average_anew(tmp_path):
    made = trainer(tmp_path, ema_decay=0.9)
    one_step(made)
    average, weights = (dict(net.named_parameters()) for net in (made.ema.module, made.net))
    assert any(not torch.equal(average[name], weights[name]) for name in weights)
    made.context.restart_average()
    assert all(torch.equal(average[name], weights[name]) for name in weights)


def test_hooks_are_called_in_order(tmp_path):
    made, calls = trainer(tmp_path, clip_grad=1.0), []
    method, step = made.method, made.optimizer.step

    def before_update(number, training):
        calls.append("before_update")
        assert training.net is made.net and any(p.grad is not None for p in training.net.parameters())

    method.before_update = before_update
    made.optimizer.step = lambda: (calls.append("step"), step())
    method.after_step = lambda number, training: calls.append("after_step") or {}
    one_step(made)
    assert calls == ["before_update", "step", "after_step"]


def test_drawn_images_depend_on_seed_and_key_alone(tmp_path):
    made = trainer(tmp_path)
    draw = made.context.draw_images
    images, labels = draw("search", 20, "x", 1)
    torch.rand(5)
    again, _ = draw("search", 20, "x", 1)
    other, _ = draw("search", 20, "x", 2)
    assert images.shape == (20, 1, 8, 8) and labels.shape == (20,) and images.device == CPU
    assert torch.equal(images, again) and not torch.equal(images, other)
    assert len(draw("search", 10**6)[0]) == len(made.splits.search)
    assert not torch.equal(images, draw("train", 20, "x", 1)[0])


def test_averaged_weights_are_loaded_and_extracted(small, tmp_path):
    run = growtas.train(**{**small, "epochs": 2}, ema_decay=0.5, out=tmp_path / "run")
    state = checkpoint.load(run.checkpoint_path)
    averaged = run.load_net(averaged=True).state_dict()
    assert all(torch.equal(value, state["ema"][name]) for name, value in averaged.items())
    assert not torch.equal(averaged["pos_embed"], run.load_net().state_dict()["pos_embed"])
    model = growtas.extract(run, SMALLEST, averaged=True)
    assert torch.equal(model.state_dict()["pos_embed"], averaged["pos_embed"][..., :8])
    with pytest.raises(UsageError, match="keeps no averaged weights"):
        growtas.train(**{**small, "epochs": 2}, out=tmp_path / "plain").load_net(averaged=True)
