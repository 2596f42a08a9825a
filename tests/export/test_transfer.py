"""Fine-tuning and evaluating a saved model on other data, and the card that a saved model has."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    create_transform,
    resolve_model_data_config,
)

import growtas
from growtas import export
from growtas.errors import UsageError
from growtas.export import card
from growtas.training import checkpoint
from growtas.training.data import load_splits
from growtas.training.guards import Interrupted
from growtas.training.log import read_log
from growtas.training.loop import Trainer
from growtas.training.model import model_space

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from runs import SPACE, Child, assert_same_result  # noqa: E402

SETTINGS = {"epochs": 2, "batch_size": 96, "device": "cpu", "tensorboard": False, "lr": 3e-3, "workers": 0}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder of an extracted transformer of 10 classes without names, for 8 x 8 grey pixels."""
    torch.manual_seed(0)
    net = growtas.Supernet(SPACE, num_classes=10)
    model = growtas.extract(net, "largest", mean=(0.4,), std=(0.5,))
    return export.save(model, tmp_path_factory.mktemp("saved") / "vit")


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    """The folder of a timm model with BatchNorm, of 1000 classes, for images of any size."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "convolutional"
    model = timm.create_model("test_efficientnet")
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Two classes of colour images, 12 to train and 4 to test, of several sizes."""
    root, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 80, (24, 20 + number, 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def transferred(vit, tmp_path_factory):
    """A finished fine-tuning on the digits at twice the size; not to be changed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("transferred") / "out"
    return growtas.transfer(vit, "digits", out=out, image_size=16, drop_path=0.2, license="mit", **SETTINGS)


# -- transfer --------------------------------------------------------------------------------------------


def test_a_fine_tuned_model_is_saved_with_its_own_preprocessing_and_evaluates_alike(transferred):
    config = json.loads((transferred.path / "config.json").read_text())
    cfg = config["pretrained_cfg"]
    assert config["model_args"]["img_size"] == 16 and cfg["input_size"] == [1, 16, 16]
    assert (cfg["mean"], cfg["std"], cfg["license"]) == ([0.4], [0.5], "mit")
    assert config["label_names"] == list("0123456789")
    found = growtas.evaluate(transferred.path, split="search")
    (result,) = list(read_log(transferred.path, "eval"))[-1]["results"]
    assert result["name"] == "model"
    assert (
        result["top1"] == pytest.approx(found.top1, abs=1e-3) == config["growtas"]["trained"]["search_top1"]
    )
    assert found.images == 287 and found.top5 > found.top1
    assert growtas.evaluate(transferred.path, data="digits", split="search") == found
    losses = [record["loss"] for record in read_log(transferred.path, "step")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_positions_are_resampled_and_the_head_of_the_same_classes_stays(vit, transferred):
    before = timm.create_model(f"local-dir:{vit}", pretrained=True, img_size=16).state_dict()
    began = growtas.training.initial.read(transferred)
    assert began.keys() == {f"model.{name}" for name in before}
    assert all(torch.equal(began[f"model.{name}"], value) for name, value in before.items())


def test_layers_have_their_own_learning_rates(transferred):
    groups = checkpoint.load(transferred.checkpoint_path)["optimizer"]["param_groups"]
    scales = {round(group["lr_scale"], 6) for group in groups}
    assert scales == {round(0.75**layer, 6) for layer in range(5)}  # patches, three blocks, norm and head
    rates = [record["lr"] for record in read_log(transferred.path, "step")]
    assert max(rates) == pytest.approx(3e-3, rel=0.1)


def test_an_interrupted_transfer_ends_bit_for_bit_alike(vit, transferred, tmp_path, monkeypatch):
    after_step = Trainer._after_step

    def interrupted(self, received):
        after_step(self, signal.SIGINT if self.progress.step == 7 else received)

    monkeypatch.setattr(Trainer, "_after_step", interrupted)
    settings = {"image_size": 16, "drop_path": 0.2, **SETTINGS}
    with pytest.raises(Interrupted, match=r"growtas transfer --resume .*out"):
        growtas.transfer(vit, "digits", out=tmp_path / "out", **settings)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(UsageError, match="fine-tunes one model.*growtas transfer --resume"):
        growtas.train(resume=tmp_path / "out")
    growtas.transfer(resume=tmp_path / "out", license="mit")
    assert_same_result(transferred.path, tmp_path / "out")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (transferred.path / name).read_bytes()


@pytest.mark.slow
def test_two_ranks_that_are_interrupted_end_bit_for_bit_alike(vit, tmp_path):
    settings = {**SETTINGS, "model": vit, "data": "digits", "epochs": 1, "batch_size": 256}
    after_step, ports = Trainer._after_step, []
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))

    def interrupting(self, received):
        after_step(self, signal.SIGINT if self.progress.step == 2 else received)

    def work(rank):
        os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", RANK=str(rank), LOCAL_RANK=str(rank))
        os.environ["MASTER_PORT"] = ports[0]
        growtas.transfer(**settings, out=tmp_path / "whole")
        os.environ["MASTER_PORT"], Trainer._after_step = ports[1], interrupting
        with pytest.raises(Interrupted):
            growtas.transfer(**settings, out=tmp_path / "cut")
        os.environ["MASTER_PORT"], Trainer._after_step = ports[2], after_step
        growtas.transfer(resume=tmp_path / "cut")

    children = [Child(lambda rank=rank: work(rank), tmp_path / f"output-{rank}") for rank in range(2)]
    statuses, outputs = zip(*(child.finish() for child in children), strict=True)
    assert statuses == (0, 0), outputs
    assert_same_result(tmp_path / "whole", tmp_path / "cut")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_timm_model_with_batch_norm_gets_a_new_head_and_its_average_is_saved(
    convolutional, image_folder, tmp_path
):
    out = tmp_path / "out"
    settings = {"epochs": 1, "batch_size": 10, "device": "cpu", "tensorboard": False, "workers": 0}
    run = growtas.transfer(
        convolutional, f"folder:{image_folder}", out=out, image_size=32, ema_decay=0.5, **settings
    )
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert model.num_classes == 2 and list(model.pretrained_cfg["label_names"]) == ["ant", "bee"]
    state = checkpoint.load(run.checkpoint_path)
    assert all(
        torch.equal(value, state["ema"][f"model.{name}"]) for name, value in model.state_dict().items()
    )
    assert not torch.equal(state["ema"]["model.conv_stem.weight"], state["weights"]["model.conv_stem.weight"])
    found = growtas.evaluate(out)
    assert (found.images, found.top5) == (8, None)
    assert str(image_folder.parent) not in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"data": None}, "Give a model and data"),
        ({"stages": 2}, "Fine-tuning has no setting 'stages'"),
        ({"distill": "inplace"}, "one model learns from a teacher"),
        ({"image_size": 2}, "cannot be built with {'img_size': 2}"),
        ({"model": "nowhere"}, "holds no saved model"),
    ],
)
def test_wrong_calls_are_sentences_and_write_nothing(vit, tmp_path, given, sentence):
    values = {"model": vit, "data": "digits", "out": tmp_path / "out", **given}
    with pytest.raises(UsageError, match=sentence):
        growtas.transfer(**values)
    assert not (tmp_path / "out").exists()


def test_a_supernet_has_no_layer_decay(tmp_path):
    settings = {**SETTINGS, "stages": 1, "out": tmp_path / "run"}
    with pytest.raises(UsageError, match=r"layer_decay=0\.5 is for fine-tuning one model"):
        growtas.train(SPACE, "digits", layer_decay=0.5, **settings)


# -- evaluate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (32, 20)], ids=["square", "oblong"])
@pytest.mark.parametrize(
    "crop", [("center", 1.0), ("center", 0.8), ("squash", 0.9), ("border", 1.0)], ids=str
)
def test_an_image_is_prepared_as_timm_would(image_folder, tmp_path, crop, size):
    model = timm.create_model("test_efficientnet", num_classes=2)
    mode, share = crop
    cfg = {"input_size": (3, *size), "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear"}
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg, "crop_mode": mode, "crop_pct": share}
    transform = create_transform(**resolve_model_data_config(model))
    data = f"folder:{image_folder}"
    space = model_space("timm:any", model, data)
    split = load_splits(data, space, interpolation="bilinear").test
    paths = sorted((image_folder / "val").glob("*/*.png"))
    imagenet = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    mean, std = (each.view(3, 1, 1) for each in imagenet)
    for number, path in enumerate(paths):
        own = split[number][0] * std + mean
        theirs = transform(Image.open(path).convert("RGB")) * 0.25 + 0.5
        assert own.shape == theirs.shape == (3, *size)
        assert (own - theirs).abs().max() < 1.01 / 255  # torch and Pillow round in different ways


def test_a_model_is_evaluated_as_timm_would(image_folder, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=2)
    cfg = {"input_size": (3, 32, 24), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg, "crop_mode": "squash"}
    folder = tmp_path / "model"
    timm.models.save_for_hf(
        model, folder, model_config={"label_names": ["ant", "bee"]}, safe_serialization=True
    )
    transform = create_transform(**resolve_model_data_config(model))
    paths = sorted((image_folder / "val").glob("*/*.png"))
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        right = model.eval()(images).argmax(1) == torch.tensor([path.parent.name == "bee" for path in paths])
    found = growtas.evaluate(folder, data=f"folder:{image_folder}")
    assert found.top1 == 100 * right.float().mean().item() and found.params == sum(
        p.numel() for p in model.parameters()
    )
    with pytest.raises(UsageError, match="32 x 24 pixels, and growtas trains on square ones"):
        growtas.transfer(folder, f"folder:{image_folder}", out=tmp_path / "out")
    with pytest.raises(UsageError, match="the embedded digits are square"):
        growtas.evaluate(folder, data="digits")


def test_evaluation_refuses_other_classes_and_no_data(vit, transferred, image_folder, tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        growtas.evaluate(tmp_path / "nowhere", data="digits")
    with pytest.raises(UsageError, match="says which images"):
        growtas.evaluate(vit)
    with pytest.raises(UsageError, match="has 10 classes, and folder.* has 2"):
        growtas.evaluate(vit, data=f"folder:{image_folder}")
    config = json.loads((transferred.path / "config.json").read_text())
    config["label_names"][3] = "drei"
    os.link(transferred.path / "model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="class 3 is 'drei' in the model's label_names and '3' in the data"):
        growtas.evaluate(tmp_path, data="digits")


# -- the card --------------------------------------------------------------------------------------------


def test_the_card_has_the_front_matter_of_the_hub_and_the_figures(transferred):
    _, header, text = (transferred.path / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert header == {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "growtas"],
        "license": "mit",
    }
    assert "fine-tuned on `digits`" in text and "| input | 1 x 16 x 16 |" in text


def test_no_folder_of_this_machine_is_named():
    assert card.title("folder:/home/me/flowers") == "folder:flowers"
    assert card.title("/home/me/best") == "best"
    assert [card.title(name) for name in ("torch/cifar10", "timm:a.b", "digits")] == [
        "torch/cifar10",
        "timm:a.b",
        "digits",
    ]


def test_the_folder_has_the_form_of_a_repository_of_the_hub(transferred, monkeypatch):
    """As uploaded to ``hf-hub:USER/NAME``: timm's downloads are answered with the folder's files."""
    from huggingface_hub.errors import EntryNotFoundError
    from timm.models import _hub

    def download(repo_id, filename, **_):
        assert repo_id == "user/name"
        if not (transferred.path / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(transferred.path / filename)

    monkeypatch.setattr(_hub, "hf_hub_download", download)
    model = timm.create_model("hf-hub:user/name", pretrained=True).eval()
    images = torch.randn(3, 1, 16, 16)
    with torch.inference_mode():
        assert torch.equal(model(images), export.load(transferred.path)(images))
    assert list(model.pretrained_cfg["label_names"]) == list("0123456789")
