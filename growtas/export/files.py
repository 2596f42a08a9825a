"""An extracted model as files that timm reads: model.safetensors and config.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from safetensors import SafetensorError

from growtas import atomic, cost
from growtas.errors import GrowtasError, UsageError
from growtas.export.timm_mobilenet import GrowtasMobileNet
from growtas.export.timm_model import GrowtasViT
from growtas.version import __version__

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"

Model = GrowtasViT | GrowtasMobileNet
ARCHITECTURES = (GrowtasViT.architecture, GrowtasMobileNet.architecture)


def save(
    model: Model, folder: str | os.PathLike, overwrite: bool = False, license: str | None = None
) -> Path:
    """Write a model's weights and the configuration with which timm builds and loads it again.

    Afterwards ``timm.create_model("local-dir:FOLDER", pretrained=True)`` gives the model in any process that
    has imported ``growtas.export``. Each file is written whole or not at all, the weights first.

    Args:
        model: what :func:`growtas.extract` returned, fine-tuned or not.
        folder: created if missing.
        overwrite: replace a model that the folder holds already.
        license: of the weights, such as ``cc-by-4.0``, for config.json; nothing is said where None.

    Returns:
        The folder.

    Raises:
        UsageError: the folder holds another model and ``overwrite`` is off, or it is a file.
        GrowtasError: the device is full; what was there is untouched.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose a folder for the model.")
    weights = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        metadata={"format": "pt"},  # one entry: safetensors writes several in any order
    )
    contents = {
        WEIGHTS_NAME: weights,
        CONFIG_NAME: (json.dumps(config(model, license), indent=2) + "\n").encode(),
    }
    for name, content in contents.items():
        path = folder / name
        if path.exists() and not overwrite and path.read_bytes() != content:
            raise UsageError(
                f"{folder} holds another model ({name}); choose another folder, or pass overwrite=True."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        atomic.write_bytes(folder / name, content)
    return folder


def config(model: Model, license: str | None = None) -> dict[str, Any]:
    """The content of config.json: timm's fields, and under ``growtas`` what the subnet is and costs."""
    cfg = {
        k: v
        for k, v in model.pretrained_cfg.items()
        if k not in ("url", "file", "hf_hub_id", "source", "state_dict")
    }
    cfg.pop("architecture", None)
    cfg["num_classes"] = model.num_classes
    names = cfg.pop("label_names", None) or ()
    if license is not None:
        cfg["license"] = license
    return {
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
        "model_args": model.model_args(),
        **({"label_names": list(names)} if names and len(names) == model.num_classes else {}),
        "pretrained_cfg": cfg,
        "growtas": {
            "version": __version__,
            "subnet": str(model.subnet),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "macs": cost.macs(model.subnet, model.own_space(), model.num_classes),
            "extraction_error": getattr(model, "extraction_error", None),
        },
    }


def load(folder: str | os.PathLike) -> Model:
    """Read a saved model, in evaluation mode: timm's ``local-dir:`` with sentences for what can be wrong.

    Args:
        folder: that :func:`save` wrote.

    Raises:
        UsageError: the folder holds no saved model.
        GrowtasError: a file is truncated or foreign.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder} holds no saved model: {name} is missing. Save one with growtas extract."
            )
    try:
        if json.loads((folder / CONFIG_NAME).read_text()).get("architecture") not in ARCHITECTURES:
            known = " or ".join(ARCHITECTURES)
            raise UsageError(f"{folder / CONFIG_NAME} describes another model than {known}.")
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise GrowtasError(f"{folder / CONFIG_NAME} is damaged ({error}). Save the model again.") from error
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise GrowtasError(
            f"{folder / WEIGHTS_NAME} is truncated or does not belong to its {CONFIG_NAME} ({reason}). "
            "Save the model again."
        ) from error
