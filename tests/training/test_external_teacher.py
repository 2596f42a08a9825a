"""An external teacher: what it sees, what a run learns from it, and that a resume needs the same one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runs import SPACE, same
from test_pretrained import TINY, saved, vit

import growtas
from growtas.errors import GrowtasError, UsageError
from growtas.training import Run, checkpoint
from growtas.training.external import Teacher
from growtas.training.loop import Trainer

CPU = torch.device("cpu")
SIZES = {**TINY, "img_size": 12, "in_chans": 3, "num_classes": 10}
SETTINGS = {
    "distill": "teacher",
    "epochs": 2,
    "batch_size": 128,
    "mixup": 0.8,
    "eval_every": 0,
    "eval_subnets": 0,
    "tensorboard": False,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher of the digits that takes colour images of another size and normalisation."""
    data = {"input_size": [3, 12, 12], "mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7]}
    return saved(vit(**SIZES), tmp_path_factory.mktemp("teacher") / "vit", model_args=SIZES, **data)


@pytest.fixture(scope="module")
def taught(folder, tmp_path_factory):
    return growtas.train(
        SPACE, data="digits", teacher=folder, out=tmp_path_factory.mktemp("taught") / "run", **SETTINGS
    )


def test_the_teacher_sees_the_images_in_its_own_size_and_normalisation(folder):
    teacher = Teacher(str(folder), 10, (0.1,), (0.9,), CPU)
    images = torch.randn(4, 1, 8, 8)
    pixels = (images * 0.9 + 0.1).expand(-1, 3, -1, -1)
    mean, std = torch.tensor([[0.2, 0.3, 0.4], [0.5, 0.6, 0.7]]).view(2, 3, 1, 1)
    resized = F.interpolate((pixels - mean) / std, size=(12, 12), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = vit(**SIZES)(resized)
    torch.testing.assert_close(teacher(images), expected)
    assert not teacher(images).requires_grad and not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_colour_images_become_grey_for_a_grey_teacher(tmp_path):
    sizes = {**SIZES, "img_size": 8, "in_chans": 1}
    data = {"input_size": [1, 8, 8], "mean": [0.0], "std": [1.0]}
    name = str(saved(vit(**sizes), tmp_path / "vit", model_args=sizes, **data))
    teacher, images = Teacher(name, 10, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), CPU), torch.randn(2, 3, 8, 8)
    pixels = images * torch.tensor([0.1, 0.2, 0.3]).view(-1, 1, 1) + torch.tensor([0.5, 0.4, 0.3]).view(
        -1, 1, 1
    )
    torch.testing.assert_close(teacher(images), teacher.model(pixels.mean(1, keepdim=True)))


def test_a_run_learns_from_its_teacher(taught, folder, tmp_path):
    run = Run.open(taught.path)
    assert run.teacher_digest and run.config.teacher == str(folder)
    settings = SETTINGS | {"distill": "none"}
    alone = growtas.train(SPACE, data="digits", out=tmp_path / "run", **settings)
    assert alone.teacher_digest is None
    states = [checkpoint.load(each.checkpoint_path)["weights"] for each in (run, alone)]
    assert not same(*states)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(taught, folder, tmp_path, monkeypatch):
    record, steps = Trainer._record, []

    def killed(self, step, *arguments):
        steps.append(step)
        if step == 12:
            raise KeyboardInterrupt
        record(self, step, *arguments)

    out, every = tmp_path / "run", {"checkpoint_every_steps": 5}
    monkeypatch.setattr(Trainer, "_record", killed)
    with pytest.raises(KeyboardInterrupt):
        growtas.train(SPACE, data="digits", teacher=folder, out=out, **SETTINGS, **every)
    monkeypatch.setattr(Trainer, "_record", record)
    run = growtas.train(resume=out)
    assert steps[-1] == 12 and run.steps > 12
    ends = [checkpoint.load(each.checkpoint_path)["weights"] for each in (taught, run)]
    assert same(*ends)


def test_a_teacher_with_other_weights_is_noticed_by_a_resume(tmp_path, monkeypatch):
    sizes = {**TINY, "num_classes": 10}
    data = {"input_size": [1, 8, 8], "mean": [0.0], "std": [1.0]}
    first = saved(vit(**sizes), tmp_path / "vit", model_args=sizes, **data)
    monkeypatch.setattr(Trainer, "train", lambda *arguments: None)
    run = growtas.train(SPACE, data="digits", teacher=first, out=tmp_path / "run", **SETTINGS)
    other = saved(vit(seed=5, **sizes), tmp_path / "other", model_args=sizes, **data)
    (other / "model.safetensors").rename(first / "model.safetensors")
    with pytest.raises(GrowtasError, match="has other weights than when the run .* began"):
        growtas.train(resume=run.path)


def test_a_subnet_that_growtas_extracted_teaches(taught, tmp_path):
    model = growtas.extract(taught, SPACE.largest())
    name = str(growtas.export.save(model, tmp_path / "model"))
    cfg = model.pretrained_cfg
    teacher = Teacher(name, 10, cfg["mean"], cfg["std"], CPU)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(teacher(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"teacher": "timm:resnet18", "distill": "none"}, "do not belong together"),
        ({"distill": "teacher"}, "do not belong together"),
        (
            {"teacher": "nowhere", "distill": "teacher"},
            "nowhere holds no saved model: config.json is missing",
        ),
    ],
)
def test_settings_that_make_no_sense(settings, told, tmp_path):
    with pytest.raises(UsageError, match=told):
        growtas.train(
            SPACE, data="digits", out=tmp_path / "run", **(SETTINGS | {"distill": "none"} | settings)
        )
    assert not (tmp_path / "run").exists()


def test_other_classes_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="has 10 classes, and this run has 62"):
        Teacher(str(folder), 62, (0.1,), (0.9,), CPU)
    sizes = {**SIZES, "num_classes": 2}
    named = saved(vit(**sizes), tmp_path / "vit", model_args=sizes, label_names=["ant", "bee"])
    assert Teacher(str(named), 2, (0.1,), (0.9,), CPU, classes=("ant", "bee"))
    with pytest.raises(UsageError, match="class 1 is 'bee' there and 'cat' here"):
        Teacher(str(named), 2, (0.1,), (0.9,), CPU, classes=("ant", "cat"))
