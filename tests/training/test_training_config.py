"""Settings: recipes, checks and the YAML form."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import yaml
from runs import SPACE

import growtas
from growtas.errors import UsageError
from growtas.training.config import TrainConfig
from growtas.training.recipes import PUBLISHED, RECIPES
from growtas.training.start import begin


def test_published_recipe():
    config = TrainConfig("autoformer-tiny", data="folder:/data").resolved()
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (500, 1024, 20)
    assert (config.lr, config.min_lr, config.warmup_lr) == (1e-3, 1e-5, 1e-6)
    assert (config.weight_decay, config.smoothing, config.drop_path) == (0.05, 0.1, 0.1)
    assert (config.mixup, config.cutmix, config.mixup_mode) == (0.8, 1.0, "batch")
    assert (config.auto_augment, config.reprob, config.remode) == ("rand-m9-mstd0.5-inc1", 0.25, "pixel")
    assert config.opt == "adamw" and config.clip_grad is None and config.interpolation == "bicubic"


def test_the_learning_rate_follows_the_batch():
    assert TrainConfig("t", data="folder:/d", batch_size=512).resolved().lr == 5e-4
    assert TrainConfig("t", data="folder:/d", batch_size=512, lr=3e-3).resolved().lr == 3e-3
    assert TrainConfig("digits", batch_size=128).resolved().lr == 3e-3  # a small data set, a fixed rate


def test_digits_have_a_small_recipe_of_their_own():
    config = TrainConfig("digits").resolved()
    assert config.epochs <= 100 and config.mixup == config.cutmix == 0 and config.auto_augment == "none"
    assert TrainConfig("digits", epochs=7, mixup=0.3).resolved().mixup == 0.3
    assert RECIPES["digits"].keys() ^ PUBLISHED.keys() == {"lr", "lr_per_512"}


def test_short_runs_shorten_the_warm_up_unless_it_is_given():
    assert TrainConfig("t", data="folder:/d", epochs=50).resolved().warmup_epochs == 5
    assert TrainConfig("t", data="folder:/d", epochs=50, warmup_epochs=20).resolved().warmup_epochs == 20


def test_resolved_settings_are_complete_and_stay():
    config = TrainConfig("digits").resolved()
    assert config.resolved() == config
    open_ended = {"out", "transition_params", "transition_beta", "clip_grad", "workers", "data_folder"}
    open_ended |= {
        "ema_decay",
        "resolutions",
        "initial",
        "teacher",
        "global_pool",
        "norm_eps",
        "trackers",
        "recipe",
        "layer_decay",
    }
    assert {k for k, v in config.to_dict().items() if v is None} == open_ended


def test_yaml_round_trip():
    config = TrainConfig("digits", stages=[[0], [0, 1, 2]], transition=[3], clip_grad=1).resolved()
    assert TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    assert config.stages == "0/0,1,2" and config.transition == "3" and isinstance(config.clip_grad, float)


def test_a_relative_data_folder_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TrainConfig("digits", data="folder:x").data == f"folder:{tmp_path / 'x'}"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"epochs": 0}, "epochs=0 .* 1 or more"),
        ({"epochs": 2.5}, "epochs=2.5 .* a whole number"),
        ({"epochs": "ten"}, "epochs='ten' .* a whole number"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"lr": -1e-3}, "lr=-0.001 .* 0 or more"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"smoothing": 1.0}, "smoothing=1.0 .* below 1"),
        ({"drop_path": -0.1}, "drop_path=-0.1"),
        ({"reprob": 2}, "reprob=2.0 .* between 0 and 1"),
        ({"clip_grad": 0}, "clip_grad=0.0 .* more than 0"),
        ({"amp": "fp16"}, "amp='fp16' is unknown. .*float16"),
        ({"new_region": "zeros"}, "new_region='zeros' is unknown. .*near_zero"),
        ({"sched": "cosinus"}, "Did you mean 'cosine'"),
        ({"unused_blocks": "skipped"}, "Did you mean 'skip'"),
        ({"epochs": 5, "warmup_epochs": 5}, "leaves nothing"),
        ({"tensorboard": 1}, "tensorboard=1 .* true or false"),
        ({"seed": True}, "seed=True .* a whole number"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_bad_settings(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        TrainConfig("digits", **given)


def test_unknown_setting_names_the_nearest():
    with pytest.raises(UsageError, match="no setting 'epoch'. Did you mean 'epochs'"):
        TrainConfig.from_dict({"space": "digits", "epoch": 3})
    with pytest.raises(UsageError, match="needs a space"):
        TrainConfig.from_dict({"epochs": 3})


def test_every_setting_is_documented():
    text = inspect.getdoc(TrainConfig)  # Python 3.13 dedents docstrings itself
    for field in dataclasses.fields(TrainConfig):
        assert f"\n    {field.name}: " in text, field.name
    assert SPACE.name == "small"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [(None, ()), ("128,160", (128, 160)), ("128-136/4", (128, 132, 136)), ("32-34", (32, 33, 34))],
)
def test_resolutions(text, sizes):
    assert TrainConfig("t", resolutions=text).resolution_sizes() == sizes


@pytest.mark.parametrize("text", ["a", "128-", "160-128", "0", "128-160/0"])
def test_resolutions_that_cannot_be(text):
    with pytest.raises(UsageError, match="such as '128,160,192'"):
        TrainConfig("t", resolutions=text)


def test_averaged_weights_must_be_kept_to_learn_from_them():
    with pytest.raises(UsageError, match="set ema_decay"):
        TrainConfig("t", distill="ema")


@pytest.mark.parametrize(
    ("space", "data"),
    [("digits", "digits"), ("digits-mobilenet", "digits"), ("glyphs", "glyphs"), ("typefaces", "typefaces")],
)
def test_a_space_named_after_an_embedded_set_brings_its_data(space, data):
    assert TrainConfig(space).resolved().data == data
    assert TrainConfig(space, data="folder:/d").resolved().data == "folder:/d"


@pytest.mark.parametrize("space", ["autoformer-tiny", "ofa-mobilenetv3"])
def test_any_other_space_needs_data(space, tmp_path):
    sentence = f"The space '{space}' needs data: give data='folder:PATH'"
    calls = (
        lambda: TrainConfig(space).resolved(),
        lambda: growtas.train(space, out=tmp_path / "run"),
        lambda: begin(TrainConfig(space, out=str(tmp_path / "run"))),
        lambda: growtas.compare(tmp_path / "compared", space),
        lambda: growtas.report(space=space, out=tmp_path / "report"),
    )
    for call in calls:
        with pytest.raises(UsageError, match=sentence):
            call()
    assert not list(tmp_path.iterdir())
