"""Keep a run of the present format: python tests/data/runs/make.py NAME

It stopped behind the checkpoint of its first epoch; tests/training/test_old_formats.py continues it. Do this
before a change to what a run's folder holds.
"""

from __future__ import annotations

import os
import platform
import sys
import tarfile
import tempfile
from pathlib import Path

import torch

import growtas
from growtas.space import SearchSpace
from growtas.training.loop import Trainer

SPACE = SearchSpace(
    "tiny",
    embed_dim=(4, 8),
    mlp_ratio=(1,),
    num_heads=(1,),
    depth=(1,),
    image_size=8,
    patch_size=4,
    in_channels=1,
    head_dim=4,
    max_relative_position=1,
)


def main(name: str) -> None:
    """Write NAME.tar.xz beside this file."""
    target, step = Path(__file__).resolve().with_name(f"{name}.tar.xz"), Trainer._step

    def dying(self: Trainer, *args: object) -> object:
        if self.progress.step == 3:
            raise InterruptedError
        return step(self, *args)

    Trainer._step, platform.platform = dying, lambda: "Linux"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            settings = {"epochs": 2, "batch_size": 500, "opt": "sgd", "eval_subnets": 0, "tensorboard": False}
            growtas.train(SPACE, "digits", device="cpu", out="run", **settings)
        except InterruptedError:
            pass
        with tarfile.open(target, "w:xz") as archive:
            archive.add("run")


if __name__ == "__main__":
    main(*sys.argv[1:])
