"""An extracted model as a folder that serves itself: its weights, its sizes and the code that runs it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from growtas import atomic
from growtas.errors import UsageError
from growtas.export.card import CARD_NAME, card
from growtas.export.sizes import Model, macs_of, sides_of, subnet_of
from growtas.locks import locked
from growtas.supernet import saved
from growtas.supernet.saved import CODE, CONFIG_NAME, WEIGHTS_NAME
from growtas.version import __version__

LOCK_NAME = ".model.lock"


def save(
    model: Model, folder: str | os.PathLike, overwrite: bool = False, license: str | None = None
) -> Path:
    """Write a model's weights, the configuration that builds it again, its code and its card.

    The code, ``growtas_vit.py`` or ``growtas_mobilenet.py``, needs torch and timm only: where growtas is not
    installed, import it and call its ``load(folder)``. After ``import growtas.export``, or that file's,
    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` gives the model too. Each file is written whole
    or not at all, the weights first.

    Args:
        model: what :func:`growtas.extract` returned, fine-tuned or not.
        folder: created if missing.
        overwrite: replace a model that the folder holds already.
        license: of the weights, such as ``cc-by-4.0``, for config.json; nothing is said where None.

    Returns:
        The folder.

    Raises:
        UsageError: the folder holds another model and ``overwrite`` is off, another process is writing one,
            or it is a file.
        GrowtasError: the device is full; what was there is untouched.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose a folder for the model.")
    weights = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        metadata={"format": "pt"},  # one entry: safetensors writes several in any order
    )
    about = json.loads(json.dumps(config(model, license)))
    about["growtas"]["sha256"] = hashlib.sha256(weights).hexdigest()
    contents = {
        WEIGHTS_NAME: weights,
        CONFIG_NAME: (json.dumps(about, indent=2) + "\n").encode(),
        CARD_NAME: card(about).encode(),
    }
    if about["architecture"] in CODE:
        code = CODE[about["architecture"]]
        contents[code.name] = code.read_bytes()
    _check_free(folder, contents, overwrite)
    with locked(folder / LOCK_NAME, f"Another process is writing a model to {folder}; wait.", remove=True):
        _check_free(folder, contents, overwrite)
        for name, content in contents.items():
            atomic.write_bytes(folder / name, content)
    return folder


def _check_free(folder: Path, contents: Mapping[str, bytes], overwrite: bool) -> None:
    """Raises: UsageError: the folder holds another model, and is to keep it."""
    for name in (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME):  # the code may be another version's
        path = folder / name
        if path.exists() and not overwrite and path.read_bytes() != contents[name]:
            raise UsageError(
                f"{folder} holds another model ({name}); choose another folder, or pass overwrite=True."
            )


def config(model: Model, license: str | None = None) -> dict[str, Any]:
    """The content of config.json: timm's fields, and under ``growtas`` what the subnet is and costs."""
    cfg = {
        k: v
        for k, v in model.pretrained_cfg.items()
        if k not in ("url", "file", "hf_hub_id", "source", "state_dict")
    }
    architecture = cfg.pop("architecture", None) or model.architecture
    own = architecture in CODE  # else one of timm's that growtas.transfer has fine-tuned
    args = model.model_args() if own else model._model_args
    cfg["num_classes"] = model.num_classes
    if own:
        cfg["input_size"] = [args["in_chans"], *sides_of(args)]
    names = cfg.pop("label_names", None) or ()
    if license is not None:
        cfg["license"] = license
    return {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        **({"global_pool": model.global_pool} if isinstance(model.global_pool, str) else {}),
        "model_args": args,
        **({"label_names": list(names)} if names and len(names) == model.num_classes else {}),
        "pretrained_cfg": cfg,
        "growtas": {
            "version": __version__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **(_of_subnet(model) if own else {}),
            "trained": getattr(model, "trained", {}),
        },
    }


def _of_subnet(model: Model) -> dict[str, Any]:
    return {
        "subnet": str(subnet_of(model)),
        "macs": macs_of(model),
        "extraction_error": getattr(model, "extraction_error", None),
    }


def load(folder: str | os.PathLike, fused: bool = False) -> Model:
    """Read a saved model, in evaluation mode: timm's ``local-dir:`` with sentences for what can be wrong.

    Args:
        folder: that :func:`save` wrote.
        fused: call the model's ``fuse()``.

    Raises:
        UsageError: the folder holds no saved model.
        GrowtasError: a file is damaged or foreign, or the weights are not those that config.json describes.
    """
    folder = Path(folder)
    if saved.read_config(folder)["architecture"] not in CODE:
        raise UsageError(f"{folder / CONFIG_NAME} describes another model than {' or '.join(CODE)}.")
    model = saved.open_model(folder)
    return model.fuse() if fused else model
