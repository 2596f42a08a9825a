"""Teachers with BatchNorm answer with the statistics of the subnet that teaches, not with a mixture."""

from __future__ import annotations

import pytest
import torch
from test_mobilenet_run import SMALL, SPACE
from test_training_loop import CPU

import growtas
from growtas.training import Run
from growtas.training.initial import of_source
from growtas.training.loop import Trainer
from growtas.training.ranks import Ranks


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run whose averaged weights are near its own, and whose running statistics fit no subnet."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "averaged"
    given = {
        "method": "single",
        "method_options": "subnet=largest",
        "lr": 1e-2,
        "ema_decay": 0.5,
        "distill": "ema",
        "eval_every": 0,
    }
    run = growtas.train(SPACE, out=out, **{**SMALL, **given, "epochs": 3})
    state = torch.load(run.checkpoint_path, weights_only=True)
    for key in ("weights", "ema"):
        for name, value in state[key].items():
            if name.endswith("running_mean"):
                value.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    torch.save(state, run.checkpoint_path)
    return run


def right(logits, labels) -> float:
    return 100 * (logits.argmax(1) == labels).float().mean().item()


def test_averaged_weights_teach_with_statistics_of_the_batch(averaged):
    run, splits = Run.open(averaged.path), averaged.splits()
    state = torch.load(run.checkpoint_path, weights_only=True)
    made = Trainer(run, splits, CPU, Ranks(), state)
    images, labels = next(made.loader.batches(0))
    teacher = made.ema.module
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    taught = right(made.update.teacher_logits(0, images), labels)
    with torch.no_grad():
        as_it_is = right(teacher(images, SPACE.largest()), labels)
    assert taught > 55 and as_it_is < 30
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_teacher_of_another_run_is_calibrated_when_it_is_kept(averaged, tmp_path):
    given = {"method": "shrinking", "method_options": "largest_epochs=0", "epochs": 4, "warmup_epochs": 0.0}
    config = averaged.config.__class__.from_dict(averaged.config.to_dict() | given | {"distill": "none"})
    run = Run(tmp_path, config, SPACE, 10, averaged.steps_per_epoch, averaged.images, {})
    weights = of_source(averaged, run)
    made = Trainer(run, averaged.splits(), CPU, Ranks(), initial=weights)
    made.method.begin_stage(0, made.context)
    images, labels = next(made.loader.batches(0))
    assert right(made.update.teacher_logits(0, images), labels) > 55


def test_averaged_weights_are_calibrated_where_they_are_searched_and_extracted(averaged):
    splits, largest = averaged.splits(), SPACE.largest()
    images = torch.stack([splits.test[i][0] for i in range(128)])
    labels = torch.tensor([splits.test[i][1] for i in range(128)])
    model = growtas.extract(averaged, largest, averaged=True)
    with torch.no_grad():
        assert right(model(images), labels) > 55
        assert right(averaged.load_net(averaged=True)(images, largest), labels) < 30
