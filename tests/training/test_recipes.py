"""Published recipes by name, a new run from an old one's settings, and dry runs."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from runs import SPACE
from test_mobilenet_run import SPACE as CONVOLUTIONAL
from test_training_loop import trainer
from thinning import thinned

import growtas
from growtas.cli import main
from growtas.errors import GrowtasError, UsageError
from growtas.training import Run, TrainConfig
from growtas.training.data import load_splits
from growtas.training.data.loader import TrainingLoader
from growtas.training.recipes import NAMED

SCHEDULE = {"epochs": 8, "warmup_epochs": 3.0, "lr": 1.0, "warmup_lr": 0.1, "min_lr": 0.0}


def config(recipe, space="autoformer-tiny", **given) -> TrainConfig:
    made = TrainConfig.from_dict({"space": space, "data": "folder:/data", "recipe": recipe, **given})
    return made.resolved(space.startswith("ofa"))


def test_autoformer_is_the_published_command():
    made = config("autoformer")
    published = {
        "method": "uniform",
        "epochs": 500,
        "batch_size": 1024,
        "lr": 1e-3,
        "min_lr": 1e-5,
        "warmup_lr": 1e-6,
        "warmup_epochs": 20.0,
        "opt": "adamw",
        "weight_decay": 0.05,
        "sched": "cosine",
        "sched_step": "epoch_late",
        "clip_grad": None,
        "ema_decay": None,
        "smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "mixup_prob": 1.0,
        "mixup_switch_prob": 0.5,
        "mixup_mode": "batch",
        "drop_path": 0.1,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "color_jitter": 0.4,
        "interpolation": "bicubic",
        "reprob": 0.25,
        "remode": "pixel",
        "recount": 1,
        "hflip": 0.5,
        "repeated_augmentation": 3,
        "qkv_bias": "published",
        "unused_blocks": "zero",
        "amp": "float16",
        "search_images": "shared",
        "subnets_per_step": 1,
        "sandwich": False,
        "distill": "none",
    }
    assert {name: getattr(made, name) for name in published} == published


def test_the_others_differ_as_their_papers_say():
    first = config("autoformer").to_dict()

    def differing(made):
        return {name for name, value in made.to_dict().items() if value != first[name]} - {"recipe", "space"}

    assert differing(config("growtas")) == {"method"}
    prenas = {"method", "qkv_bias", "mixup_mode", "auto_augment", "recount", "min_lr"}
    assert differing(config("prenas")) == prenas
    small = config("prenas", "autoformer-small")
    assert differing(small) == prenas - {"recount", "min_lr"} and small.auto_augment == "v0r-mstd0.5"
    ofa = config("ofa", "ofa-mobilenetv3")
    assert (ofa.method, ofa.epochs, ofa.batch_size, ofa.lr) == ("shrinking", 590, 2048, 2.6)
    assert (ofa.opt, ofa.resolutions, ofa.gradients) == ("sgd", "128-224/4", "sum")


def test_settings_that_are_given_win():
    made = config("autoformer", batch_size=512, unused_blocks="skip", epochs=50, repeated_augmentation=1)
    assert (made.batch_size, made.unused_blocks, made.epochs) == (512, "skip", 50)
    assert (made.lr, made.warmup_epochs, made.repeated_augmentation) == (5e-4, 5.0, 1)
    assert made.qkv_bias == "published" and TrainConfig.from_dict(made.to_dict()) == made


def test_a_recipe_fits_its_family():
    with pytest.raises(
        UsageError, match="recipe='ofa' does not fit the space 'autoformer-tiny'.*autoformer or"
    ):
        config("ofa")
    with pytest.raises(
        UsageError, match="recipe='growtas' does not fit the space 'ofa-mobilenetv3'.*choose ofa"
    ):
        config("growtas", "ofa-mobilenetv3")
    with pytest.raises(UsageError, match="no recipe 'autofromer'. Did you mean 'autoformer'"):
        config("autofromer")


@pytest.mark.parametrize("recipe", thinned(NAMED, fast=("growtas", "ofa")))
def test_every_recipe_trains_as_it_stands(tmp_path, recipe):
    """Two epochs of digits: of the recipe only what is a matter of size is given."""
    given = {"epochs": 6, "batch_size": 384, "data": "digits", "out": tmp_path / "run", "tensorboard": False}
    space = dataclasses.replace(SPACE, name="vit")
    if recipe == "ofa":
        space = CONVOLUTIONAL
        given["resolutions"] = "6,8"
    if recipe == "prenas":
        given["method_options"] = "images=2"
    run = growtas.train(space, recipe=recipe, eval_subnets=0, device="cpu", **given)
    held = Run.open(run.path).config
    assert run.finished and held.recipe == recipe and held.method == NAMED[recipe]["method"]
    kept = {"amp", "qkv_bias", "unused_blocks", "repeated_augmentation", "sched_step", "search_images"}
    expected = {name: value for name, value in NAMED[recipe].items() if name in kept}
    assert {name: getattr(held, name) for name in expected} == expected


# -- what a recipe asks for --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "epochs"), [("epoch", range(8)), ("epoch_late", [0, 0, 1, 2, 3, 4, 5, 6])], ids=str
)
def test_the_schedule_steps_by_epoch(tmp_path, how, epochs):
    made = trainer(tmp_path, **SCHEDULE, sched_step=how)
    whole = trainer(tmp_path, **SCHEDULE)
    for epoch, place in enumerate(epochs):
        whole._set_learning_rate(place * made.run.steps_per_epoch)
        for step in (0, made.run.steps_per_epoch - 1):
            made._set_learning_rate(epoch * made.run.steps_per_epoch + step)
            rates = [made.optimizer.param_groups[0]["lr"], whole.optimizer.param_groups[0]["lr"]]
            assert rates[0] == pytest.approx(rates[1], rel=1e-9)


def test_repeated_augmentation_counts_as_the_published_sampler():
    """Written as RASampler of DeiT and AutoFormer, for 8 ranks of 4 images."""
    splits, world, own = load_splits("digits", SPACE), 8, 4
    made = TrainConfig("small", data="digits", batch_size=world * own, repeated_augmentation=3).resolved()
    loaders = [TrainingLoader(splits.train, made, rank, world) for rank in range(world)]
    order = torch.randperm(len(splits.train), generator=_generator_of(loaders[0])).tolist()
    repeated = [image for image in order for _ in range(3)]
    for rank, loader in enumerate(loaders):
        published = repeated[rank::world][: len(order) // 256 * 256 // world]
        ours = [image for epoch, images, _ in _epoch(loader) for image in images.tolist()]
        count = len(published) // own * own
        assert ours[:count] == published[:count]
    assert loaders[0].steps_per_epoch == len(order) // (world * own)


def _generator_of(loader):
    from growtas.training.data.images import stream_seed

    return torch.Generator().manual_seed(stream_seed("order", loader.config.seed, 0))


def _epoch(loader):
    plan = loader.plan(0)
    return [next(plan) for _ in range(loader.steps_per_epoch)]


def test_shared_search_images_are_trained_on(image_folder):
    space = dataclasses.replace(SPACE, name="rgb", in_channels=3, image_size=16)
    for name, count in (("digits", 1438), (f"folder:{image_folder}", 60)):
        apart = load_splits(name, space)
        shared = apart.sharing()
        assert len(shared.train) == len(apart.train) + len(apart.search) == count
        assert shared.search is apart.search and len(apart.train) < count
        assert "of which rank subnets in the search too" in str(shared)
    whole = {index: label for index, label in zip(shared.train.indices, shared.train.labels, strict=True)}
    assert whole == dict(enumerate(shared.train.source.labels))


# -- settings of another run -------------------------------------------------------------------------------


def test_a_new_run_begins_with_the_settings_of_another(finished, tmp_path, capsys):
    out = tmp_path / "again"
    given = ["--epochs", "2", "--seed", "5", "--eval-every", "0", "--no-download"]
    assert main(["train", "--config", str(finished.path / "config.yaml"), "--out", str(out), *given]) == 0
    made = Run.open(out)
    differing = {k for k, v in made.config.to_dict().items() if v != finished.config.to_dict()[k]}
    assert differing == {"out", "epochs", "seed", "eval_every"} and made.space == SPACE
    assert made.finished


def test_settings_of_another_run_are_refused_where_they_cannot_be(finished, tmp_path):
    with pytest.raises(UsageError, match="must be a run's config.yaml"):
        growtas.train(config=tmp_path / "mine.yaml", out=tmp_path / "run")
    with pytest.raises(UsageError, match="gives every setting"):
        growtas.train(config=finished.path, recipe="autoformer", out=tmp_path / "run")
    with pytest.raises(UsageError, match="leave out config and dry_run"):
        growtas.train(resume=finished.path, dry_run=True)
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(GrowtasError, match="not the configuration of a run"):
        growtas.train(config=tmp_path / "config.yaml", out=tmp_path / "run")


def test_runs_from_before_these_settings_are_read(finished, tmp_path):
    younger = ("recipe", "accumulate", "checkpoint_activations", "sched_step", "search_images")
    younger += ("reduce_dtype",)
    shutil.copytree(finished.path, tmp_path / "old")
    file = tmp_path / "old" / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.strip().partition(":")[0] not in younger]
    assert len(kept) == len(lines) - len(younger)
    file.write_text("".join(kept))
    state = torch.load(tmp_path / "old" / "checkpoint.pt", weights_only=True)
    for name in set(younger) & set(state["run"]):
        del state["run"][name]
    torch.save(state, tmp_path / "old" / "checkpoint.pt")
    run = Run.open(tmp_path / "old")
    assert run.config == finished.config and run.load_net() is not None


# -- dry runs ----------------------------------------------------------------------------------------------


def test_a_dry_run_tells_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--space", "digits", "--dry-run", "--device", "cpu", "--epochs", "4"]) == 0
    said = capsys.readouterr().out
    assert "4 epochs of 35 updates: 140 updates of 32 images" in said
    assert "stage 2: epochs" in said and "disk: a checkpoint of" in said
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_is_as_large_as_a_dry_run_says(finished):
    told = growtas.train(config=finished.path, dry_run=True)
    assert told.steps == finished.steps
    assert told.checkpoint == pytest.approx(finished.checkpoint_path.stat().st_size, rel=0.1)
