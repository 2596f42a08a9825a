"""The memory that a dry run tells, beside the peak that torch's profiler sees in an update."""

from __future__ import annotations

import json

import pytest
import torch
from test_mobilenet_run import SPACE as CONVOLUTIONAL
from test_training_loop import CPU

from growtas.space import SearchSpace
from growtas.training import Run, TrainConfig
from growtas.training.data import Splits
from growtas.training.data.images import MemoryImages
from growtas.training.dry_run import dry_run
from growtas.training.loop import Trainer
from growtas.training.ranks import Ranks

SPACE = SearchSpace(
    "six-blocks",
    embed_dim=(32, 48, 64),
    mlp_ratio=(3, 4),
    num_heads=(2, 4),
    depth=(4, 5, 6),
    image_size=32,
    patch_size=4,
    in_channels=3,
    head_dim=16,
    max_relative_position=7,
)


def trainer(tmp_path, space, batch=32, ranks=1, **given) -> Trainer:
    """Of a run whose every update trains the largest subnet."""
    images = torch.randn(batch, space.in_channels, space.image_size, space.image_size)
    split = MemoryImages(images, torch.zeros(batch, dtype=torch.int64), 0.0, space)
    splits = Splits("noise", 10, split, split, split)
    options = {"method": "single", "method_options": "subnet=largest", "mixup": 0.0, "cutmix": 0.0}
    config = TrainConfig(
        space.name, data="folder:/x", device="cpu", batch_size=batch, hflip=0.0, **options, **given
    )
    config = config.resolved(space is CONVOLUTIONAL)
    made = Trainer(Run(tmp_path, config, space, 10, 1, splits.summary(), {}), splits, CPU, Ranks(0, ranks))
    made.log = made.curves = None
    return made


def peak(made, file) -> int:
    """Bytes that an update allocates at most, by the events of torch's profiler."""
    batch = next(made.loader.batches(0))
    made._step(*batch, [])
    made.optimizer.zero_grad(set_to_none=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        made._step(*batch, [])
    profiler.export_chrome_trace(str(file))
    events = [e for e in json.loads(file.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    first = events[0]["args"]
    held = first["Total Allocated"] - first["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events) - held


@pytest.mark.parametrize(
    "given",
    [
        {"space": SPACE},
        pytest.param({"space": SPACE, "checkpoint_activations": True}, marks=pytest.mark.slow),
        pytest.param({"space": SPACE, "accumulate": 4}, marks=pytest.mark.slow),
        {"space": CONVOLUTIONAL, "batch": 64},
    ],
    ids=["transformer", "computed again", "in parts", "convolutional"],
)
def test_the_memory_is_within_15_per_cent(tmp_path, given):
    told = dry_run(trainer(tmp_path, **given))
    measured = peak(trainer(tmp_path, **given), tmp_path / "trace.json")
    besides = sum(told.weights.values()) - told.weights["gradients"] + told.inputs
    assert told.memory() - besides == pytest.approx(measured, rel=0.15)


def test_what_is_kept_is_counted(tmp_path):
    made = trainer(tmp_path, SPACE, ema_decay=0.9, ranks=2, reduce_dtype="bfloat16")
    bare = sum(each.nbytes for each in made.net.parameters())
    told = dry_run(made)
    assert told.weights["gradients"] == bare <= told.weights["weights"] == told.weights["averages"]
    assert told.weights["gradients sent"] == bare / 2
    assert told.weights["optimizer"] == pytest.approx(2 * bare, rel=0.01)
    assert told.inputs == 32 // 2 * 3 * 32 * 32 * 4
    assert told.images_per_second(2) == 500 * 32 / 172_800
    assert "stage 1: epochs 0 to 499, embed_dim 64" in str(told)
