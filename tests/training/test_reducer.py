"""Gradients averaged over ranks: as averaging whole gradients gives them, and no more is sent than needed."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
import torch.distributed as dist
from runs import SPACE, Child
from test_mobilenet_run import SPACE as MOBILENET

import growtas
from growtas.errors import GrowtasError
from growtas.methods import method_names
from growtas.space import load_space, seeded_rng
from growtas.spaces.model import ModelSpace
from growtas.training import Run, TrainConfig, reducer
from growtas.training.data import load_splits
from growtas.training.distributed import Ranks
from growtas.training.loop import Trainer
from growtas.training.reducer import GradientReducer, plan

MODEL = ModelSpace("model", "test_resnet", {"in_chans": 1}, 16, 1, (0.5,), (0.5,), (1.0,), (0.0,), 1.0)
LITTLE = {
    "focusformer": {"method_options": "update_every=1,images=8,samples=1"},
    "prenas": {"method_options": "images=2"},
}
CASES = {
    **{name: (SPACE, {"method": name, **LITTLE.get(name, {})}) for name in method_names()},
    "shrinking": (MOBILENET, {"method": "shrinking", "method_options": "largest_epochs=0"}),
    "several": (SPACE, {"subnets_per_step": 3, "gradients": "sum", "sandwich": True, "accumulate": 2}),
    "distilled": (SPACE, {"distill": "inplace", "qkv_bias": "published"}),
    "averaged": (SPACE, {"distill": "ema", "ema_decay": 0.9, "unused_blocks": "zero"}),
    "again": (SPACE, {"checkpoint_activations": True, "amp": "bfloat16"}),
    "scaled": (SPACE, {"amp": "float16"}),
    "mobilenet": (MOBILENET, {"method": "uniform", "subnets_per_step": 2}),
    "one model": (MODEL, {"method": "single", "method_options": "subnet=largest", "stages": 1}),
}


def trainer(space, folder, ranks, **given):
    common = {"epochs": 4, "batch_size": 16, "device": "cpu", "amp": "none", "mixup": 0.8, "drop_path": 0.2}
    config = TrainConfig("small", data="digits", **{**common, **given}).resolved()
    splits = load_splits("digits", space)
    return Trainer(Run(folder, config, space, 10, 2, splits.summary(), {}), splits, torch.device("cpu"), ranks)


def average_whole_gradients(net, world):
    """The way before the reducer: after the backward pass, every gradient there is, at its full size."""
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat.div_(world)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def gradients(made, step, images, labels):
    made.update.gradients(step, images.clone(), labels, made.ranks.rank)  # mixup mixes in place
    return {name: each.grad for name, each in made.net.named_parameters()}


def compare(made):
    """The gradients of some steps, of an update with the reducer and of one that averages them whole."""
    for step, (images, labels) in zip((0, 1, 2), made.loader.batches(0), strict=False):
        stage = made.method.begins_at(step)
        if stage is not None:
            made.method.begin_stage(stage, made.context)
        ours = {name: each if each is None else each.clone() for name, each in gradients(made, step, images, labels).items()}
        kept, made.update.reducer = made.update.reducer, None
        theirs = gradients(made, step, images, labels)
        average_whole_gradients(made.net, 2)
        made.update.reducer = kept
        for name, expected in theirs.items():
            assert (ours[name] is None) == (expected is None), (step, name)
            assert expected is None or torch.equal(ours[name], expected), (step, name)
        made.update.unscale()
        made.method.before_update(step, made.context)
        made.update.apply(torch.nn.utils.get_total_norm([g for g in theirs.values() if g is not None]))
        made.method.after_step(step, made.context)


def every_case(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    reducer.LEAST_BYTES = 500  # these nets are small: several buckets, as large ones have
    for name, (space, given) in CASES.items():
        import time; print(name, time.process_time(), flush=True)
        made = trainer(space, folder, Ranks(rank, 2), **given)
        made.method.prepare(made.context)
        compare(made)
    # a rank that fails in its backward pass takes the other along
    net, images = growtas.Supernet(SPACE, num_classes=10), torch.ones(2, 1, 8, 8)
    made = GradientReducer(net, 2)
    if rank:
        net.blocks[0].norm2.bias.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError if rank else RuntimeError), made.last_backward((SPACE.largest(),)):
        net(images, SPACE.largest()).sum().backward()
    dist.destroy_process_group()


def test_every_method_has_the_gradients_of_whole_averages_to_the_bit(tmp_path):
    ranks = [Child(lambda rank=rank: every_case(rank, tmp_path), tmp_path / f"{rank}") for rank in (0, 1)]
    for status, output in [rank.finish() for rank in ranks]:
        assert status == 0, output
