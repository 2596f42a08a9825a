"""Progressive shrinking: its published table, what each phase draws, its rates and its teacher."""

from __future__ import annotations

import pytest
import torch

from growtas.errors import GrowtasError, UsageError
from growtas.methods import MethodSettings, TrainingContext, create_method
from growtas.methods.shrinking import phase_starts, phases
from growtas.space import load_space
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.supernet import Supernet

OFA = load_space("ofa-mobilenetv3")
SMALL = MobileNetSpace(
    "small",
    kernel=(3, 5),
    expand=(2, 3),
    depth=(1, 2),
    stem_width=8,
    first_width=8,
    widths=(8, 16),
    strides=(1, 2),
    activations=("relu", "h-swish"),
    squeeze_excite=(False, True),
    final_width=16,
    feature_width=16,
    image_size=16,
    in_channels=1,
)


def shrinking(space=OFA, **given):
    values = {"space": space, "num_classes": 10, "epochs": 590, "steps_per_epoch": 4, "lr": 2.6}
    return create_method("shrinking", MethodSettings(**{**values, **given}))


def test_the_published_table():
    published = {  # epochs, rate per GPU of 64 images, warm-up, subnets, kernels, depths, expands
        "kernel": (120, 3e-2, 5, 1, (3, 5, 7), (4,), (6,)),
        "depth 1": (25, 2.5e-3, 0, 2, (3, 5, 7), (3, 4), (6,)),
        "depth 2": (120, 7.5e-3, 5, 2, (3, 5, 7), (2, 3, 4), (6,)),
        "expand 1": (25, 2.5e-3, 0, 4, (3, 5, 7), (2, 3, 4), (4, 6)),
        "expand 2": (120, 7.5e-3, 5, 4, (3, 5, 7), (2, 3, 4), (3, 4, 6)),
    }
    largest, *table = phases(OFA)
    assert (largest.kernels, largest.expands, largest.depths, largest.subnets) == (1, 1, 1, 1)
    found = {
        phase.name: (
            phase.epochs,
            pytest.approx(phase.rate * 2.6 / 32),
            phase.warmup,
            phase.subnets,
            OFA.kernel[-phase.kernels :],
            OFA.depth[-phase.depths :],
            OFA.expand[-phase.expands :],
        )
        for phase in table
    }
    assert found == published
    assert phase_starts(phases(OFA), 590) == [0, 180, 300, 325, 445, 470]


@pytest.mark.parametrize("epochs", [6, 7, 20, 100, 1000])
def test_every_phase_has_an_epoch(epochs):
    starts = phase_starts(phases(OFA), epochs)
    assert len(starts) == 6 and all(a < b for a, b in zip(starts, [*starts[1:], epochs], strict=True))


def test_each_phase_draws_its_own_choices_and_as_many_subnets():
    method = shrinking()
    for number, phase in enumerate(method.phases):
        start = method.stages[number].first_epoch * 4
        drawn = [subnet for step in range(start, start + 60) for subnet in method.subnets(step)]
        assert len(drawn) == 60 * phase.subnets
        assert {d for s in drawn for d in s.depth} == set(OFA.depth[-phase.depths :])
        active = [(s.kernel[i], s.expand[i]) for s in drawn for i in s.active]
        assert {kernel for kernel, _ in active} == set(OFA.kernel[-phase.kernels :])
        assert {expand for _, expand in active} == set(OFA.expand[-phase.expands :])
        assert {OFA.group_of(s) for s in drawn} <= set(method.stages[number].groups)
        smallest, largest = method.extremes(start)
        assert largest == OFA.largest() and min(smallest.depth) == OFA.depth[-phase.depths]
    assert method.gradients == "sum"


def test_every_phase_warms_up_and_ends_near_zero():
    method = shrinking(steps_per_epoch=10)
    ends = [*(stage.first_epoch * 10 for stage in method.stages[1:]), 5900]
    for phase, stage, end in zip(method.phases, method.stages, ends, strict=True):
        first = stage.first_epoch * 10
        rates = [method.learning_rate(step) for step in range(first, end)]
        warmup = int(phase.warmup * 10)
        assert max(rates) == pytest.approx(2.6 * phase.rate)
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True) and rates[-1] < 2.6 * phase.rate / 100
        if warmup:
            assert rates[0] == pytest.approx(2.6 * phase.rate / warmup)


def context(net):
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return TrainingContext(net, optimizer, torch.device("cpu"), None, torch.no_grad)


def test_the_teacher_is_the_largest_network_as_its_phase_left_it():
    torch.manual_seed(0)
    method, net = shrinking(SMALL), Supernet(SMALL, 10).train()
    training, images = context(net), torch.randn(3, 1, 16, 16)
    assert method.begin_stage(0, training) == {"phase": "largest"}
    assert method.teacher_logits(images, training) is None and method.state_dict() == {}
    expected = net.eval()(images, SMALL.largest()).detach()
    net.train()
    done = method.begin_stage(1, training)
    assert done["teacher"] == str(SMALL.largest()) and not training.optimizer.state
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    assert torch.equal(method.teacher_logits(images, training), expected)

    resumed = shrinking(SMALL)
    resumed.load_state_dict(method.state_dict())
    resumed.prepare(training)
    assert torch.equal(resumed.teacher_logits(images, training), expected)
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())


def test_channels_are_sorted_when_an_expand_phase_begins():
    torch.manual_seed(0)
    net, restarted = Supernet(SMALL, 10), []
    training = context(net)
    training.restart_average = lambda: restarted.append(True)
    net.eval()
    images = torch.randn(2, 1, 16, 16)
    method = shrinking(SMALL, options="largest_epochs=0")
    number = [phase.name for phase in method.phases].index("expand 1")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits = net(images, SMALL.largest())
    assert "sorted" not in shrinking(SMALL, options="largest_epochs=0,sort=false").begin_stage(
        number, training
    )
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert method.begin_stage(number, training)["sorted"] and restarted
    assert not all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.testing.assert_close(net(images, SMALL.largest()), logits, rtol=1e-5, atol=1e-5)


def test_what_is_not_possible():
    with pytest.raises(UsageError, match="needs a convolutional space"):
        shrinking(load_space("digits"))
    with pytest.raises(UsageError, match="epochs=5 is too few"):
        shrinking(epochs=5)
    with pytest.raises(GrowtasError, match="does not keep"):
        shrinking().load_state_dict({"sampler": 1})


def test_a_trained_network_needs_no_phase_of_its_own():
    method = shrinking(options="largest_epochs=0")
    assert [phase.name for phase in method.phases][0] == "kernel" and method.stages[0].first_epoch == 0
    assert method.learning_rate(20 * 4) == pytest.approx(2.6 * 3e-2 * 32 / 2.6, rel=0.1)
