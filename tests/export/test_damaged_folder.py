"""Folders of saved models whose config.json or weights were changed: one sentence, and no other model."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import random
import shutil
import struct

import pytest
import safetensors.torch
import timm
import torch
from test_folder import CONV, VIT
from thinning import thinned

from growtas import export
from growtas.architectures import growtas_mobilenet, growtas_vit
from growtas.errors import GrowtasError
from growtas.training import external

HEADS = {"growtas_vit": "head", "growtas_mobilenet": "classifier"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Of each family a folder; not to be changed."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("saved")
    models = {"growtas_vit": VIT, "growtas_mobilenet": CONV}
    return {name: export.save(timm.create_model(name, **args), root / name) for name, args in models.items()}


@pytest.fixture(params=HEADS)
def folder(request, saved, tmp_path):
    """A copy of one, named after its architecture."""
    return shutil.copytree(saved[request.param], tmp_path / request.param)


def refused(folder, told=""):
    """Both readers end in a sentence of one line."""
    for read in (export.load, lambda folder: external.create(str(folder))):
        with pytest.raises(GrowtasError, match=told) as error:
            read(folder)
        assert "\n" not in str(error.value) and len(str(error.value)) < 1500


def change(folder, **values):
    """Give entries of config.json other values; ``model_args__NAME`` is one of model_args; ... removes it."""
    path = folder / "config.json"
    about = json.loads(path.read_text())
    for name, value in values.items():
        owner, _, key = name.rpartition("__")
        place = about[owner] if owner else about
        if value is ...:
            del place[key]
        else:
            place[key] = value
    path.write_text(json.dumps(about))


def module_of(folder):
    """The file in the folder, which needs no growtas."""
    spec = importlib.util.spec_from_file_location(folder.name, folder / f"{folder.name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_reader_takes_a_flipped_bit(folder):
    path, rng = folder / "model.safetensors", random.Random(0)
    whole = path.read_bytes()
    begin = 8 + struct.unpack("<Q", whole[:8])[0]  # behind the header
    readers = (export.load, external.create, module_of(folder).load)
    for number in range(9):
        changed = bytearray(whole)
        bit = rng.randrange(8 * begin, 8 * len(whole))
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises((GrowtasError, ValueError), match="is damaged, or another one|not finite"):
            readers[number % 3](str(folder))
    path.write_bytes(whole)
    for read in readers:
        assert read(str(folder)) is not None


def test_weights_that_were_changed_on_purpose_load_without_the_digest(folder):
    path = folder / "model.safetensors"
    weights = {name: 2 * value for name, value in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    refused(folder, "SHA-256 starts with .* remove sha256 from config.json")
    with pytest.raises(ValueError, match="remove sha256 from config.json"):
        module_of(folder).load(folder, num_classes=3)
    change(folder, growtas__sha256=3)
    refused(folder, "SHA-256 starts with .*, not 3. Save")
    change(folder, growtas__sha256=...)
    for model in (export.load(folder), module_of(folder).load(folder)):
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_both_files_check_the_digest_alike():
    assert inspect.getsource(growtas_vit.check_digest) == inspect.getsource(growtas_mobilenet.check_digest)


@pytest.mark.parametrize("place", ["num_classes", "model_args__num_classes"])
def test_no_reader_gives_a_random_head(folder, place):
    change(folder, **{place: 3})
    refused(folder, "num_classes is [35], and [35] in model_args")
    for read in (
        module_of(folder).load,
        lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
    ):
        with pytest.raises(ValueError, match="head of the weights has 5 classes, but config.json says"):
            read(folder)


def test_a_new_head_is_given_to_who_asks(folder):
    whole = export.load(folder).state_dict()
    for model in (
        module_of(folder).load(folder, num_classes=3),
        external.create(str(folder), num_classes=3),
        timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3),
    ):
        own = model.state_dict()
        assert len(own.pop(f"{HEADS[folder.name]}.weight")) == len(own.pop(f"{HEADS[folder.name]}.bias")) == 3
        assert all(torch.equal(value, whole[name]) for name, value in own.items())


def test_a_new_head_hides_no_missing_tensor(folder):
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights.pop(next(name for name in weights if name.endswith("weight") and HEADS[folder.name] not in name))
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match="1 tensors are missing"):
        module_of(folder).load(folder, num_classes=3)
    refused(folder, "1 tensors are missing")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"architecture": ...}, "architecture must be text"),
        ({"architecture": 3}, "architecture must be text"),
        ({"architecture": "growtas_vitt"}, "describes another model|has no model"),
        ({"pretrained_cfg": 3}, "must hold names and values"),
        ({"pretrained_cfg": ...}, "."),
        ({"model_args": [1]}, "must hold names and values"),
        ({"num_classes": -1}, "num_classes must be a whole number"),
        ({"num_classes": "5"}, "num_classes must be a whole number"),
        ({"num_classes": True}, "num_classes must be a whole number"),
        ({"num_classes": 10**12, "model_args__num_classes": 10**12}, "num_classes must be a whole number"),
        ({"label_names": "abcde"}, "label_names must be a list of text"),
        ({"label_names": ["a", "b"]}, "label_names has 2 entries for num_classes=5"),
        ({"model_args__img_size": 10**9}, "img_size is a number beyond"),
        ({"model_args__img_size": -16}, "img_size=-16 is not possible|does not describe"),
        ({"model_args__img_size": None}, "img_size|does not describe"),
        ({"model_args__in_chans": 4}, "in_chans is .* in model_args and 3 in input_size"),
        ({"model_args__depth": 10**6}, "depth is a number beyond"),
        ({"model_args__other": 1}, "other"),
        ({"model_args__drop_rate": float("nan")}, "drop_rate is nan beyond"),
        ({"model_args__drop_rate": 3}, "drop_rate=3 is not possible"),
        ({"model_args__num_heads": [], "model_args__kernel": []}, "list of 1 to|does not describe"),
        ({"pretrained_cfg__input_size": [3, 16]}, "input_size must be channels, height and width"),
        ({"pretrained_cfg__input_size": [1, 16, 16]}, "in_chans is .* in model_args and 1 in input_size"),
        ({"pretrained_cfg__mean": "0.5"}, "mean must be a list of finite numbers"),
        ({"pretrained_cfg__std": [0, 0, 0]}, "std must be a list of finite numbers above 0"),
        ({"pretrained_cfg__crop_pct": "1"}, "crop_pct must be a number"),
        ({"pretrained_cfg__interpolation": [1]}, "interpolation must be text"),
        ({"pretrained_cfg__other": 1}, "other"),
    ],
)
def test_a_value_that_no_model_has(folder, values, told):
    change(folder, **values)
    refused(folder, told)


@pytest.mark.parametrize(
    "values",
    [
        {"model_args__num_heads": 3, "model_args__kernel": 3},
        {"model_args__other": 1},
        {"model_args": [1]},
        {"architecture": "none"},
        {"model_args__img_size": 32, "model_args__final_width": 16_384},
        {"model_args__embed_dim": 65_536, "model_args__feature_width": 65_536},
    ],
)
def test_the_folders_own_file_raises_one_kind_of_error(folder, values):
    change(folder, **values)
    with pytest.raises(ValueError):
        module_of(folder).load(folder)


SIZES = {
    "growtas_vit": ("embed_dim", "num_heads", "mlp_ratio", "patch_size", "head_dim", "max_relative_position"),
    "growtas_mobilenet": ("kernel", "expand", "depth", "widths", "strides", "activations", "squeeze_excite")
    + ("stem_width", "first_width", "final_width", "feature_width", "stem_stride"),
}


@pytest.mark.parametrize("value", [None, "16", 0, 2.5, 65_536, [], True])
def test_sizes_that_no_model_has(folder, value):
    for name in SIZES[folder.name]:
        before = (folder / "config.json").read_text()
        args = json.loads(before)["model_args"]
        for new in (value, [value] * len(args[name])) if isinstance(args[name], list) else (value,):
            if new == args[name]:
                continue
            change(folder, **{f"model_args__{name}": new})
            refused(folder, "config.json|is not possible")
            (folder / "config.json").write_text(before)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\x80",
        b"[" * 10**5,
        b'{"num_classes": ' + b"9" * 5000 + b"}",
        b" " * 2**25,
    ],
    ids=["empty", "list", "null", "torn", "byte", "nested", "number", "long"],
)
def test_a_config_that_is_no_json_object(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json is damaged")


def test_a_byte_that_is_no_text(folder):
    path = folder / "config.json"
    path.write_bytes(path.read_bytes().replace(b"bicubic", b"bicub\x80c"))
    refused(folder, "config.json is damaged")


def rewritten(path, **tensors):
    weights = safetensors.torch.load_file(path) | tensors
    safetensors.torch.save_file({k: v for k, v in weights.items() if v is not None}, path, {"format": "pt"})


def first(path):
    """A weight that is no head."""
    weights = safetensors.torch.load_file(path)
    return next(
        (k, v) for k, v in weights.items() if v.ndim > 1 and k not in ("head.weight", "classifier.weight")
    )


DAMAGES = {
    "empty": (lambda p: p.write_bytes(b""), "cannot be read as weights"),
    "torn": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "cannot be read as weights"),
    "header": (lambda p: p.write_bytes(struct.pack("<Q", 2**63) + p.read_bytes()[8:]), "cannot be read"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "cannot be read"),
    "dtype": (lambda p: p.write_bytes(p.read_bytes().replace(b'"F32"', b'"X32"', 1)), "cannot be read"),
    "name": (
        lambda p: p.write_bytes(p.read_bytes().replace(b'.weight"', b'.wei\xffht"', 1)),
        "cannot be read",
    ),
    "missing": (lambda p: rewritten(p, **{first(p)[0]: None}), "1 tensors are missing"),
    "unknown": (lambda p: rewritten(p, other=torch.zeros(1)), "1 are unknown .other."),
    "counter": (lambda p: rewritten(p, **{"x.num_batches_tracked": torch.tensor(1)}), "1 are unknown"),
    "shape": (lambda p: rewritten(p, **{first(p)[0]: first(p)[1][:-1].contiguous()}), "but .* in this net"),
    "nan": (lambda p: rewritten(p, **{first(p)[0]: first(p)[1] * torch.nan}), "not finite"),
    "infinite": (lambda p: rewritten(p, **{first(p)[0]: first(p)[1] / 0}), "not finite"),
    "whole": (lambda p: rewritten(p, **{first(p)[0]: first(p)[1].long()}), "is torch.int64"),
}


@pytest.mark.parametrize("folder", thinned(HEADS, fast=("growtas_vit",)), indirect=True)
@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_are_damaged(folder, damage):
    make, told = DAMAGES[damage]
    make(folder / "model.safetensors")
    refused(folder, told)


def test_weights_that_are_no_file(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors is missing")
    os.mkfifo(folder / "model.safetensors")
    refused(folder, "model.safetensors is missing")


def test_a_folder_of_timm_keeps_its_head(tmp_path):
    """Of timm's architectures too, whose own loading replaces it."""
    model = timm.create_model("resnet10t", num_classes=5)
    about = {"architecture": "resnet10t", "num_classes": 3, "model_args": {"num_classes": 5}}
    about["pretrained_cfg"] = {"num_classes": 5, "classifier": "fc", "input_size": [3, 176, 176]}
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(GrowtasError, match="num_classes is 3, and 5 in model_args"):
        external.create(str(tmp_path))
    change(tmp_path, num_classes=5)
    assert torch.equal(external.create(str(tmp_path)).fc.weight, model.fc.weight)
    rewritten(
        tmp_path / "model.safetensors",
        **{"conv1.0.weight": torch.full_like(model.conv1[0].weight, torch.nan)},
    )
    with pytest.raises(GrowtasError, match="conv1.0.weight has .* not finite"):
        external.create(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "pytorch_model.bin")
    with pytest.raises(GrowtasError, match="pytorch_model.bin is no file of weights"):
        external.create(str(tmp_path))
