"""Every family, method and optimizer trains past a change of stage on published settings, and resumes."""

from __future__ import annotations

import io

import pytest
import torch
from runs import SPACE
from test_mobilenet_run import SPACE as CONVOLUTIONAL
from test_training_loop import CPU
from thinning import thinned
from timm.optim import list_optimizers

from growtas.errors import UsageError
from growtas.methods import method_names
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.training import Run, TrainConfig
from growtas.training.data import load_splits
from growtas.training.loop import Trainer
from growtas.training.ranks import Ranks

SPACES = {"vit": SPACE, "convolutional": CONVOLUTIONAL}
SPLITS = {family: load_splits("digits", space) for family, space in SPACES.items()}
OPTIONS = {"prenas": "images=2", "focusformer": "update_every=2,images=8,samples=2,uniform=0"}
ONLY = {"prenas": ("vit",), "focusformer": ("vit",), "shrinking": ("convolutional",)}
CASES = [(family, name) for name in method_names() for family in ONLY.get(name, tuple(SPACES))]
STEPS, SAVED = 5, 3  # a step is an epoch, and a stage or a phase may begin in each


def trainer(tmp_path, family, method, **given) -> Trainer:
    """On the settings of a folder of images, but for the batch; the images are digits."""
    space = SPACES[family]
    given = {"epochs": 7, "batch_size": 8, "transition": "1", **given}
    config = TrainConfig(
        space.name, data="folder:/images", method=method, method_options=OPTIONS.get(method, ""), **given
    ).resolved(isinstance(space, MobileNetSpace))
    splits = SPLITS[family]
    made = Trainer(Run(tmp_path, config, space, 10, 1, splits.summary(), {}), splits, CPU, Ranks())
    made.log = made.curves = None
    return made


def train(made, until) -> list[torch.Tensor]:
    """The parameters after some steps, all of which must have counted."""
    while made.progress.step < until:
        stage = made.method.begins_at(made.progress.step)
        if stage is not None:
            made.method.begin_stage(stage, made.context)
        made._step(*next(made.loader.batches(made.progress.step)), [])
    assert not made.progress.skipped
    return [parameter.detach().clone() for parameter in made.net.parameters()]


def copied(made) -> dict:
    """A checkpoint after its way through a file."""
    owners = {"net": made.net, "optimizer": made.optimizer, "method": made.method}
    buffer = io.BytesIO()
    torch.save({name: owner.state_dict() for name, owner in owners.items()}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_trains_and_resumes(make):
    first, second = make(), make()
    started = [parameter.detach().clone() for parameter in first.net.parameters()]
    first.method.prepare(first.context)
    train(first, SAVED)
    saved = copied(first)
    whole = train(first, STEPS)
    for name, state in saved.items():
        getattr(second, name).load_state_dict(state)
    second.progress.step = SAVED
    second.method.prepare(second.context)
    resumed = train(second, STEPS)
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    assert all(weights.isfinite().all() for weights in whole)
    assert not all(torch.equal(one, other) for one, other in zip(whole, started, strict=True))


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_method_on_its_default_recipe(tmp_path, family, method):
    assert_trains_and_resumes(lambda: trainer(tmp_path, family, method))


OFTEN = [
    (family, method, opt)
    for family, method in (("vit", "growtas"), ("convolutional", "shrinking"))
    for opt in ("adamw", "sgd", "rmsprop", "muon")
]


@pytest.mark.parametrize(("family", "method", "opt"), thinned(OFTEN, fast=(0, 1, 2, 3, 6), several=True))
def test_an_optimizer(tmp_path, family, method, opt):
    assert_trains_and_resumes(lambda: trainer(tmp_path, family, method, opt=opt))


REST = [name for name in list_optimizers() if not name.startswith(("bnb", "fused", "kron", "adahessian"))]
# bitsandbytes and Apex need a GPU, and Kron compiles for minutes on a CPU


@pytest.mark.slow
@pytest.mark.parametrize("opt", REST)
def test_every_other_optimizer(tmp_path, opt):
    """On the families in turn, so that each kind of optimizer meets both."""
    family, method = (("vit", "growtas"), ("convolutional", "shrinking"))[REST.index(opt) % 2]
    assert_trains_and_resumes(lambda: trainer(tmp_path, family, method, opt=opt))


def test_the_first_momentum_is_the_gradient(tmp_path):
    """The fused form with momentum 0 to begin with gives what torch's plain one gives, to rounding."""
    fused, plain = (trainer(tmp_path, "vit", "growtas", opt="sgd", lr=1e-2) for _ in range(2))
    assert all(group["fused"] for group in fused.optimizer.param_groups)
    for group in plain.optimizer.param_groups:
        group["fused"] = False
    for one, other in zip(train(fused, STEPS), train(plain, STEPS), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_an_optimizer_of_second_order_is_refused(tmp_path):
    with pytest.raises(UsageError, match="second derivatives"):
        trainer(tmp_path, "vit", "uniform", opt="adahessian")
