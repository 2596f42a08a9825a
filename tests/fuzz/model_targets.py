"""Saved models and state dicts from elsewhere."""

from __future__ import annotations

import functools
import io
import json
import random
import struct
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from harness import INPUT, Target
from mutators import TEXTS, in_bytes, json_text, json_tokens, one_of
from torch import Tensor, nn

import growtas
from growtas import export
from growtas.architectures import growtas_mobilenet, growtas_vit
from growtas.space import MobileNetSpace, SearchSpace
from growtas.supernet import weights as foreign
from growtas.supernet.pretrained import PlainViT, load_vit
from growtas.supernet.published import load_autoformer, load_ofa
from growtas.training import external

# -- saved models --------------------------------------------------------------------------------------------

VIT = {"embed_dim": 8, "num_heads": [1], "mlp_ratio": [2], "head_dim": 8, "max_relative_position": 1} | {
    "img_size": 8,
    "patch_size": 4,
    "num_classes": 3,
}
CONV = {"kernel": [3], "expand": [2], "depth": [1], "widths": [8], "strides": [1], "stem_width": 8} | {
    "first_width": 8,
    "final_width": 8,
    "feature_width": 8,
    "activations": ["h-swish"],
    "squeeze_excite": [True],
    "img_size": 8,
    "num_classes": 3,
}
HEADS = {"growtas_vit": "head.weight", "growtas_mobilenet": "classifier.weight"}


@functools.cache
def _models() -> dict[str, dict[str, bytes]]:
    """Of each family the files of a saved model, and its head."""
    torch.manual_seed(0)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, args in (("growtas_vit", VIT), ("growtas_mobilenet", CONV)):
            path = export.save(timm.create_model(name, **args), Path(folder) / name)
            found[name] = {each: (path / each).read_bytes() for each in ("config.json", "model.safetensors")}
            config = json.loads(found[name]["config.json"])
            del config["growtas"]["sha256"]  # a digest would end every reading of changed weights
            found[name]["config.json"] = json.dumps(config, indent=1).encode()
    return found


def _place_model(changed: str, data: bytes, folder: Path) -> None:
    """Put a changed file beside the other one, of the family that it seems to be of."""
    sign = b"growtas_mobilenet" if changed == "config.json" else b"stem"
    files = _models()["growtas_mobilenet" if sign in data else "growtas_vit"]
    for name, content in (files | {changed: data}).items():
        (folder / name).write_bytes(content)


def _read_model(folder: Path) -> None:
    """Read a saved model by both readers; the head must be the saved one, and all of it finite."""
    for model in (export.load(folder), external.create(str(folder))):
        weights, own = safetensors.torch.load_file(folder / "model.safetensors"), model.state_dict()
        head = HEADS[model.architecture]
        assert torch.equal(own[head], weights[head].to(own[head].dtype)), "another head"
        assert all(value.isfinite().all() for value in own.values()), "not finite"
        model(torch.zeros(1, *model.pretrained_cfg["input_size"]))


def _read_alone(folder: Path) -> None:
    """Read a saved model as a machine without growtas does."""
    config = (folder / "config.json").read_bytes()
    module = growtas_mobilenet if b"growtas_mobilenet" in config else growtas_vit
    try:
        with warnings.catch_warnings(action="ignore"):
            model = module.load(folder)
    except (OSError, ValueError) as error:
        raise growtas.GrowtasError(foreign.first_line(error)) from error
    assert all(value.isfinite().all() for value in model.state_dict().values()), "not finite"
    assert len(model.state_dict()[HEADS[model.architecture]]) == 3, "another head"


def _in_header(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header says other names, types, shapes or places."""
    size = int.from_bytes(data[:8], "little")
    header = json_tokens(rng, data[8 : 8 + size])
    if rng.random() < 0.9:
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    return struct.pack("<Q", rng.getrandbits(rng.randint(1, 64))) + header + data[8 + size :]


def _in_numbers(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file one of whose numbers is not finite."""
    at = max(0, len(data) - 4 * rng.randint(1, 100))
    return data[:at] + struct.pack("<f", rng.choice((np.nan, np.inf, -np.inf))) + data[at + 4 :]


# -- state dicts ---------------------------------------------------------------------------------------------

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
TRANSFORMER = SearchSpace(
    "fuzzed",
    (16, 24),
    (2, 3),
    (1, 2),
    (1, 2),
    image_size=16,
    patch_size=8,
    head_dim=8,
    max_relative_position=1,
)
CONVOLUTIONS = MobileNetSpace(
    "fuzzed",
    kernel=(3, 5),
    expand=(2, 3),
    depth=(1, 2),
    stem_width=8,
    first_width=8,
    widths=(8, 16),
    final_width=16,
    feature_width=16,
    strides=(2, 1),
    activations=("relu", "h-swish"),
    squeeze_excite=(False, True),
    image_size=16,
)


@functools.cache
def _families() -> dict[str, tuple[nn.Module, Callable, dict[str, Tensor]]]:
    """Of each a net, its loader and good weights."""
    torch.manual_seed(0)
    former, ofa = (growtas.Supernet(space, num_classes=3) for space in (TRANSFORMER, CONVOLUTIONS))
    plain = growtas.Supernet(TRANSFORMER, num_classes=3, global_pool="token", norm_eps=1e-6)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, init_values=0.1, **SIZES)
    return {
        "autoformer": (former, load_autoformer, dict(former.state_dict())),
        "ofa": (ofa, load_ofa, dict(ofa.state_dict())),
        "vit": (plain, lambda net, weights: load_vit(net, PlainViT("the ViT", weights)), vit.state_dict()),
    }


def _other_value(rng: random.Random, value: Tensor) -> object:
    """Another value in the place of a tensor."""
    flat = value.clone().flatten()
    if len(flat):
        flat[rng.randrange(len(flat))] = rng.choice((np.nan, np.inf, -np.inf, 3e38, -1.0))
    shape = list(value.shape)
    rng.shuffle(shape)
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64)
    with warnings.catch_warnings(action="ignore"):
        return rng.choice(
            (
                lambda: flat.view(value.shape),
                lambda: value.reshape(shape),
                lambda: value[..., :-1] if value.ndim else value,
                lambda: value[None],
                lambda: value.flatten()[0] if value.numel() else value,
                lambda: torch.empty(0),
                lambda: torch.empty(value.shape, device="meta"),
                lambda: torch.zeros(1).expand(10**9),
                lambda: value.to(rng.choice(dtypes)),
                lambda: value.to(torch.float8_e4m3fn),
                lambda: value.to_sparse(),
                lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
                lambda: nn.Parameter(value),
                lambda: torch.nested.nested_tensor([value.flatten()]),
                lambda: rng.choice((None, 3, "text", [1.0], {}, value.tolist(), b"", 10**5000, float("nan"))),
            )
        )()


def _other_name(rng: random.Random, name: str) -> object:
    digits = [at for at, letter in enumerate(name) if letter.isdigit()] or [0]
    at = rng.choice(digits)
    return rng.choice(
        (
            "module." + name,
            name.rpartition(".")[0],
            name + ".weight",
            name[:at] + rng.choice(("7", "99999", "9" * 5000, "-1", "²", "")) + name[at + 1 :],
            rng.choice(TEXTS),
            7,
            None,
            (name,),
            name.encode(),
        )
    )


def _changed(rng: random.Random, weights: Mapping[str, Tensor]) -> object:
    """A state dict with up to three changes, perhaps in a container."""
    found: dict = dict(weights)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        name = rng.choice(list(found))
        edit = rng.randrange(5)
        if edit == 0 and len(found) > 1:
            found.pop(name)
        elif edit == 1:
            found[_other_name(rng, str(name))] = found[name]
        elif edit == 2:
            found[_other_name(rng, str(name))] = found.pop(name)
        elif isinstance(found[name], Tensor):
            found[name] = _other_value(rng, weights.get(name, torch.ones(2)))
    if rng.random() < 0.1:
        prefix = rng.choice(("module.", "_orig_mod.", "module.module."))
        found = {prefix + str(name): value for name, value in found.items()}
    for _ in range(rng.choice((0, 0, 0, 1, 2, 6))):
        found = {
            rng.choice(foreign.CONTAINERS): found,
            rng.choice(("epoch", "model", "model_ema")): rng.choice((3, {})),
        }
    return rng.choice(([found], None, found.items(), 3)) if rng.random() < 0.02 else found


def _draw_state_dict(rng: random.Random, data: bytes) -> bytes:
    return data.split()[0] + b" %d" % rng.getrandbits(64)


def _load_state_dict(folder: Path) -> None:
    """Load a state dict that the input's seed determines; a net that refuses it must be as it was."""
    family, _, seed = (folder / INPUT).read_text().partition(" ")
    net, load, weights = _families()[family]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = _changed(random.Random(seed), weights) if seed else weights
    try:
        with warnings.catch_warnings(action="ignore"):
            load(net, found)
        assert all(value.isfinite().all() for value in net.state_dict().values()), "not finite"
    except growtas.GrowtasError:
        same = all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        assert same, "a net that refused weights has changed"
        raise
    finally:
        net.load_state_dict(before)


@functools.cache
def _weights_files() -> Sequence[bytes]:
    """Small state dicts as torch.save writes them, now and formerly."""
    found = []
    for new in (True, False):
        buffer = io.BytesIO()
        weights = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}
        torch.save({"model": weights, "epoch": 3}, buffer, _use_new_zipfile_serialization=new)
        found.append(buffer.getvalue())
    return found


def _read_weights_file(folder: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        found = foreign.unwrapped(foreign.read(folder / "weights.pth"), "the file")
    assert found


def texts(*given: str) -> Callable[[], Sequence[bytes]]:
    """Seeds. Args: given: each as text."""
    return lambda: [text.encode() for text in given]


TARGETS = (
    Target(
        "model-config",
        lambda: [files["config.json"] for files in _models().values()],
        json_text,
        _read_model,
        functools.partial(_place_model, "config.json"),
    ),
    Target(
        "model-weights",
        lambda: [files["model.safetensors"] for files in _models().values()],
        one_of(in_bytes, _in_header, _in_header, _in_numbers),
        _read_model,
        functools.partial(_place_model, "model.safetensors"),
    ),
    Target(
        "model-alone",
        lambda: [files["config.json"] for files in _models().values()],
        json_text,
        _read_alone,
        functools.partial(_place_model, "config.json"),
    ),
    Target("state-dict", texts("autoformer", "ofa", "vit"), _draw_state_dict, _load_state_dict, share=3),
    Target(
        "weights-file",
        _weights_files,
        in_bytes,
        _read_weights_file,
        lambda data, folder: (folder / "weights.pth").write_bytes(data) and None,
        share=2,
    ),
)
