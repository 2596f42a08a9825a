"""The OFA-MobileNetV3 golden: outputs of the published code for weights that a seed determines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SPEC = json.loads((Path(__file__).parents[1] / "data" / "ofa_mobilenetv3.json").read_text())


def published_weights() -> dict[str, Tensor]:
    """The golden's weights by published name: drawn from one generator, in the order of the sorted names."""
    rng = np.random.RandomState(SPEC["seed"])
    weights = {}
    for name, shape in sorted(SPEC["shapes"].items()):
        drawn = rng.standard_normal(shape)
        weights[name] = torch.from_numpy(_shaped(name, drawn).astype(np.float32))
    return weights


def _shaped(name: str, drawn: np.ndarray) -> np.ndarray:
    """Standard normal numbers, turned into what a parameter of this name may be after training."""
    if name.endswith("_matrix"):
        return np.identity(len(drawn)) + 0.02 * drawn
    if drawn.ndim > 1:
        return drawn * np.sqrt(2 / np.prod(drawn.shape[1:]))
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(drawn)
    return 1 + 0.1 * drawn if name.endswith("bn.weight") else 0.05 * drawn


def images() -> Tensor:
    """The golden's input batch."""
    drawn = np.random.RandomState(SPEC["image_seed"]).standard_normal(SPEC["image_shape"])
    return torch.from_numpy(drawn.astype(np.float32))
