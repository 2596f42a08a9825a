"""Every method, with what it combines with, ends bit for bit alike after a SIGKILL, and can be searched.

GrowTAS+ is in test_finetune.py, the methods of convolutional spaces in test_mobilenet_run.py.
"""

from __future__ import annotations

import signal

import pytest
from runs import SMALL, assert_same_result, records

import growtas
from growtas.training import Run, checkpoint

VARIANTS = {
    "sandwich, distilled from averaged weights": {
        "method": "uniform",
        "sandwich": True,
        "subnets_per_step": 2,
        "gradients": "sum",
        "distill": "ema",
        "ema_decay": 0.9,
    },
    "moments reset at the transition": {"method": "growtas", "new_region_moments": "reset"},
    "focusformer, whose sampler learns": {
        "method": "focusformer",
        "method_options": "update_every=4,images=32,samples=2,uniform=0.2",
    },
    "prenas, whose choice is in the checkpoint": {"method": "prenas", "method_options": "images=4"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sigkill(child, tmp_path, variant):
    settings = {**SMALL, **VARIANTS[variant], "epochs": 2}
    whole = growtas.train(**settings, out=tmp_path / "whole")
    out = tmp_path / "killed"
    process = child(**settings, out=out, checkpoint_every_steps=7)
    process.wait_until(lambda: (out / "log.jsonl").exists() and len(lines(out)) >= 16)
    status, _ = process.kill()
    assert status == -signal.SIGKILL and not Run.open(out).finished
    assert 7 <= checkpoint.load(out / "checkpoint.pt")["step"] < 22
    growtas.train(resume=out)
    assert_same_result(out, whole.path)
    assert sum(record["event"] == "step" for record in records(out)) == 22
    found = growtas.search(out, population=4, generations=2, parents=2)
    model = growtas.extract(out, found.best.subnet)
    assert len(found.history) == 8 and model.extraction_error < 1e-5


def lines(folder):
    return (folder / "log.jsonl").read_bytes().splitlines()
