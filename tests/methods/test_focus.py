"""FocusFormer as a method: when it draws how, what an update does, and what it leaves alone."""

from __future__ import annotations

import io
import random
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from growtas import Supernet, cost
from growtas.errors import GrowtasError, UsageError
from growtas.methods import MethodSettings, create_method
from growtas.methods.base import TrainingContext
from growtas.space import load_space

DIGITS = load_space("digits")


def focus(options="", **given):
    values = {"space": DIGITS, "num_classes": 10, "epochs": 10, "steps_per_epoch": 100, "options": options}
    return create_method("focusformer", MethodSettings(**{**values, **given}))


@pytest.fixture
def training():
    """A context around an untrained net, with images of noise; it counts what is asked of it."""
    torch.manual_seed(0)
    net = Supernet(DIGITS, 10, drop_path_rate=0.5).train()
    asked = []

    def draw_images(split, count, *key):
        asked.append((split, count, key))
        generator = torch.Generator().manual_seed(len(key))
        images = torch.randn(count, 1, 8, 8, generator=generator)
        return images, torch.randint(10, (count,), generator=generator)

    @contextmanager
    def autocast():
        asked.append("autocast")
        yield

    context = TrainingContext(net, None, torch.device("cpu"), draw_images, autocast)
    context.asked = asked
    return context


def test_the_first_tenth_is_uniform_draw_for_draw():
    method, uniform = focus(), create_method("uniform", focus().settings)
    with torch.no_grad():
        method.sampler.biases[1][2] += 100
    assert method.uniform_steps == 100
    assert [method.subnets(step) for step in range(100)] == [uniform.subnets(step) for step in range(100)]
    drawn = Counter(method.subnets(step)[0].embed_dim for step in range(100, 200))
    assert drawn[48] > 80


def test_a_share_of_epsilon_stays_uniform():
    """The sampler is made certain of one embed_dim: what else is drawn comes from the uniform part."""
    method = focus("epsilon=0.3,uniform=0")
    with torch.no_grad():
        method.sampler.biases[1][2] += 100
    count = 1500
    drawn = Counter(method.subnets(step)[0].embed_dim for step in range(count))
    for embed_dim in (24, 36):  # standard deviation 12
        assert abs(drawn[embed_dim] - 0.1 * count) < 50
    always = focus("epsilon=0,uniform=0")
    with torch.no_grad():
        always.sampler.biases[1][2] += 100
    assert {always.subnets(step)[0].embed_dim for step in range(100)} == {48}


def test_draws_are_a_function_of_seed_step_and_state(training):
    options = "samples=4,images=16"
    first, second, other = focus(options), focus(options), focus(options, seed=1)
    for method in (first, second):
        assert method.after_step(199, training)
    steps = range(200, 260)
    draws = [first.subnets(step) for step in steps]
    assert [second.subnets(step) for step in reversed(steps)] == draws[::-1]
    assert [other.subnets(step) for step in steps] != draws


def test_the_sampler_is_updated_every_so_many_steps_after_the_uniform_phase(training):
    method = focus("update_every=50,samples=2,images=8")
    updated = [step for step in range(300) if method.after_step(step, training)]
    assert updated == [149, 199, 249, 299]
    assert focus().begin_stage(0, training) == {"uniform_steps": 100, "sampler_updates": 9}


def test_an_update_asks_for_held_out_images_and_leaves_the_net_alone(training):
    method = focus("samples=5,images=32")
    before = {name: tensor.clone() for name, tensor in training.net.state_dict().items()}
    sampler_before = [parameter.clone() for parameter in method.sampler.parameters()]
    generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    told = method.after_step(199, training)
    assert set(told) == {"reward", "baseline", "entropy", "accuracy"} and 0 <= told["accuracy"] <= 1
    assert training.asked == [("search", 32, ("focusformer", 199)), *["autocast"] * 5]
    assert generators == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    assert training.net.training and all(module.training for module in training.net.modules())
    assert all(parameter.grad is None for parameter in training.net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.net.state_dict().items())
    after = list(method.sampler.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(after, sampler_before, strict=True))


def test_the_reward_is_accuracy_less_what_is_over_the_budget(training, monkeypatch):
    method, seen = focus("penalty=2,samples=4"), []
    original = method.reinforce.update
    monkeypatch.setattr(method.reinforce, "update", lambda *given: seen.append(given) or original(*given))
    monkeypatch.setattr(method, "_accuracies", lambda subnets, *rest: [0.5] * len(subnets))
    method.after_step(199, training)
    ((subnets, budgets, rewards),) = seen
    parts = [(budget - method.low) / (method.high - method.low) * 4 for budget in budgets]
    assert [int(part) for part in parts] == [0, 1, 2, 3]
    sizes = [cost.parameters(subnet, DIGITS, 10) for subnet in subnets]
    expected = [0.5 - 2 * max(0, size / budget - 1) for size, budget in zip(sizes, budgets, strict=True)]
    assert rewards == pytest.approx(expected) and min(rewards) < 0.5


def test_a_net_that_gives_no_numbers_earns_nothing(training):
    method = focus("penalty=0")
    with torch.no_grad():
        training.net.head.weight.fill_(float("nan"))
    assert method.after_step(199, training)["accuracy"] == 0


def test_budgets_count_what_is_asked_for():
    assert (focus().low, focus().high) == cost.parameter_range(DIGITS, 10)
    method = focus("cost=macs,budgets=3")
    assert (method.low, method.high) == cost.macs_range(DIGITS, 10)
    assert len(method.sampler.budgets) == 3


def test_state_goes_through_a_checkpoint_and_continues_alike(training):
    options = "samples=4,images=16"
    first, second = focus(options), focus(options)
    for step in (199, 299):
        first.after_step(step, training)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert [first.subnets(s) for s in range(300, 350)] == [second.subnets(s) for s in range(300, 350)]
    assert first.after_step(399, training) == second.after_step(399, training)
    assert [first.subnets(s) for s in range(400, 450)] == [second.subnets(s) for s in range(400, 450)]
    fresh = focus(options)
    assert [first.subnets(s) for s in range(400, 450)] != [fresh.subnets(s) for s in range(400, 450)]


def test_state_of_another_sampler_is_refused():
    with pytest.raises(GrowtasError, match="does not hold this sampler"):
        focus().load_state_dict(focus("budgets=3").state_dict())
    with pytest.raises(GrowtasError, match="does not hold this sampler"):
        focus().load_state_dict({})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("cost=flops", "cost='flops' of focusformer is unknown"),
        ("budgets=0", "budgets=0 of focusformer is not possible; it must be more than 0"),
        ("penalty=-1", "must be 0 or more"),
        ("penalty=nan", "must be 0 or more"),
        ("epsilon=1.5", "must be between 0 and 1"),
        ("decay=1", "at least 0 and below 1"),
        ("lambda=1", "has no option 'lambda'"),
    ],
)
def test_options_that_are_not_possible(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        focus(options)


def test_a_convolutional_space_is_refused():
    with pytest.raises(UsageError, match="samples vision transformers"):
        focus(space=load_space("ofa-mobilenetv3"))
