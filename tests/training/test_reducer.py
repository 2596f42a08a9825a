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
from growtas.training import Run, TrainConfig
from growtas.training.data import load_splits
from growtas.training.loop import Trainer
from growtas.training.ranks import Ranks, reducer
from growtas.training.ranks.reducer import GradientReducer, plan

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
    "in bfloat16": (SPACE, {"reduce_dtype": "bfloat16", "subnets_per_step": 2}),
    "mobilenet": (MOBILENET, {"method": "uniform", "subnets_per_step": 2}),
    "one model": (MODEL, {"method": "single", "method_options": "subnet=largest", "stages": 1}),
}


def trainer(space, folder, ranks, **given):
    common = {"epochs": 4, "batch_size": 16, "device": "cpu", "amp": "none", "mixup": 0.8, "drop_path": 0.2}
    config = TrainConfig("small", data="digits", **{**common, **given}).resolved()
    splits = load_splits("digits", space)
    return Trainer(
        Run(folder, config, space, 10, 2, splits.summary(), {}), splits, torch.device("cpu"), ranks
    )


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
    return {n: None if p.grad is None else p.grad.clone() for n, p in made.net.named_parameters()}


def whole_averages(made, step, images, labels):
    kept, made.update.reducer = made.update.reducer, None
    made.update.gradients(step, images.clone(), labels, made.ranks.rank)
    average_whole_gradients(made.net, 2)
    made.update.reducer = kept
    return {name: parameter.grad for name, parameter in made.net.named_parameters()}


def compare(made, exact):
    """Train a few steps, and compare the gradients of each. Args: exact: to the bit, not to bfloat16's."""
    for step, (images, labels) in zip((0, 1), made.loader.batches(0), strict=False):
        stage = made.method.begins_at(step)
        if stage is not None:
            made.method.begin_stage(stage, made.context)
        ours, theirs = (each(made, step, images, labels) for each in (gradients, whole_averages))
        for name, expected in theirs.items():
            assert (ours[name] is None) == (expected is None), (step, name)
            if expected is not None:
                close = {"rtol": 0, "atol": 0} if exact else {"rtol": 2**-6, "atol": 1e-4}
                torch.testing.assert_close(ours[name], expected, **close, msg=f"step {step}, {name}")
        flat = torch.cat([each.flatten() for each in ours.values() if each is not None])
        of_first = flat.clone()
        dist.broadcast(of_first, 0)
        assert torch.equal(of_first, flat)
        made.update.unscale()
        made.method.before_update(step, made.context)
        made.update.apply(torch.nn.utils.get_total_norm([g for g in theirs.values() if g is not None]))
        made.method.after_step(step, made.context)


FEW = ("growtas", "growtas+", "several", "scaled", "mobilenet")


def each_case(rank, folder, names):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    reducer.LEAST_BYTES = 500  # these nets are small: several buckets, as large ones have
    for name in names:
        space, given = CASES[name]
        print(name, flush=True)
        made = trainer(space, folder, Ranks(rank, 2), **given)
        made.method.prepare(made.context)
        compare(made, exact=made.config.reduce_dtype == "float32")
    # a rank that fails in its backward pass takes the other along
    net, images = growtas.Supernet(SPACE, num_classes=10), torch.ones(2, 1, 8, 8)
    made = GradientReducer(net, 2)
    if rank:
        net.blocks[0].norm2.bias.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError if rank else RuntimeError), made.last_backward((SPACE.largest(),)):
        net(images, SPACE.largest()).sum().backward()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "names", [FEW, pytest.param(tuple(CASES), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_every_method_has_the_gradients_of_whole_averages_to_the_bit(tmp_path, names):
    load_splits("digits", SPACE)  # what it imports is imported once
    ranks = [
        Child(lambda rank=rank: each_case(rank, tmp_path, names), tmp_path / f"{rank}") for rank in (0, 1)
    ]
    for status, output in [rank.finish() for rank in ranks]:
        assert status == 0, output


# -- in one process ----------------------------------------------------------------------------------------


class Twice:
    """The other rank has twice the gradients of this one. It notes how many numbers are sent."""

    def __init__(self, patch, backend="gloo"):
        self.sent = []
        patch.setattr(reducer.dist, "get_backend", lambda: backend)
        patch.setattr(reducer.dist, "all_reduce", self)
        patch.setattr(reducer, "LEAST_BYTES", 500)

    def __call__(self, values, op, async_op):
        assert async_op
        self.sent.append(values.numel())
        values.mul_({dist.ReduceOp.SUM: 3, dist.ReduceOp.AVG: 1.5}[op])
        return self

    def wait(self):
        pass


def random_net():
    torch.manual_seed(0)
    return growtas.Supernet(SPACE, num_classes=10), torch.randn(2, 1, 8, 8)


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_only_boxes_are_sent_and_during_the_backward_pass(monkeypatch, backend):
    other, (net, images), subnet = Twice(monkeypatch, backend), random_net(), SPACE.smallest()
    net(images, subnet).sum().backward()
    before = {name: each.grad for name, each in net.named_parameters()}
    net.zero_grad(set_to_none=True)
    made = GradientReducer(net, 2)
    with made.last_backward((subnet,)):
        net(images, subnet).sum().backward()
        sent = len(other.sent)
    boxes = net.subnet_shapes(subnet)
    assert sum(other.sent) == sum(map(math.prod, boxes.values())) and sent == len(other.sent) > 4
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (name not in boxes) == (before[name] is None)
        if name in boxes:
            torch.testing.assert_close(parameter.grad, before[name] * 1.5)


def test_what_the_last_subnet_does_not_use_is_sent_before_its_backward_pass(monkeypatch):
    other, (net, images), subnets = Twice(monkeypatch), random_net(), (SPACE.largest(), SPACE.smallest())
    made = GradientReducer(net, 2)
    net(images, subnets[0]).sum().backward()
    assert not other.sent
    with made.last_backward(subnets):
        first = sum(other.sent)
        net(images, subnets[1]).sum().backward()
    assert first >= sum(p.numel() for block in net.blocks[1:] for p in block.parameters()) / 2
    assert sum(other.sent) == sum(parameter.numel() for parameter in net.parameters())


def test_buckets_are_sent_in_one_order_whatever_is_complete_first(monkeypatch):
    other, (net, images) = Twice(monkeypatch), random_net()
    made = GradientReducer(net, 2)
    net(images, SPACE.largest()).sum().backward()
    *others, last = made.parameters  # the first bucket holds the last layers
    with made.last_backward((SPACE.largest(),)):
        for name in others:
            made.complete(name)
        assert not other.sent
        made.complete(last)
        assert other.sent == [len(flat) for flat, _ in made._buckets] and len(other.sent) > 4


def test_a_step_sends_one_box_for_all_of_its_subnets():
    shapes = [{"a": (4, 2), "b": (3,)}, {"a": (1, 5)}]
    planned = plan(["a", "b", "c"], shapes, 2**18)
    assert planned.buckets == ({"b": (3,), "a": (4, 5)},) and planned.numel == 23
    assert planned.last == {"a"}
    huge = plan(["a", "b"], [{"a": (2**22,), "b": (2**22,)}])
    assert huge.buckets == ({"b": (2**22,)}, {"a": (2**22,)})


def test_a_layer_that_the_graph_went_around_is_sent_at_the_end(monkeypatch):
    other, (net, images) = Twice(monkeypatch), random_net()
    made = GradientReducer(net, 2)
    with made.last_backward((SPACE.largest(),)):
        net(images, SPACE.smallest()).sum().backward()
        assert len(other.sent) < len(made._buckets)
    assert sum(other.sent) == sum(parameter.numel() for parameter in net.parameters())
    assert net.blocks[-1].norm1.weight.grad is None


def test_gradients_that_would_not_be_averaged_are_refused(monkeypatch):
    Twice(monkeypatch)
    net, images = random_net()
    made = GradientReducer(net, 2)
    with pytest.raises(GrowtasError, match=r"blocks\.[12].* subnet_shapes does not name it"):
        with made.last_backward((SPACE.smallest(),)):
            net(images, SPACE.largest()).sum().backward()
    with pytest.raises(GrowtasError, match=r"head\..* changed after it was sent"):
        with made.last_backward((SPACE.largest(),)):
            net(images, SPACE.largest()).sum().backward()
            net(images, SPACE.largest()).sum().backward()
    net(images, SPACE.largest()).sum().backward()  # outside it looks at nothing
    leaves, itself = weakref.ref(net.head), weakref.ref(made)
    del net, made
    gc.collect()
    assert leaves() is None and itself() is None


@pytest.mark.parametrize(
    ("name", "whole", "boxes", "stage_1"),
    [
        ("autoformer-tiny", 43.6, 31.1, 28.1),
        ("autoformer-small", 129.3, 89.6, 77.0),
        ("autoformer-base", 299.0, 230.0, 217.0),
    ],
)
def test_megabytes_of_a_step(name, whole, boxes, stage_1):
    space = load_space(name)
    with torch.device("meta"):
        net = growtas.Supernet(space, num_classes=1000)
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}

    def megabytes(groups):
        rng, all_whole, all_boxes = seeded_rng("bytes", name), 0, 0
        for _ in range(100):
            planned = plan(list(sizes), [net.subnet_shapes(space.sample(rng, groups))])
            all_boxes += planned.numel
            all_whole += sum(sizes[name] for bucket in planned.buckets for name in bucket)
        return [each * 4 / 100 / 1e6 for each in (all_whole, all_boxes)]

    assert megabytes((0, 1, 2)) == pytest.approx([whole, boxes], rel=0.02)
    assert megabytes((0, 1))[1] == pytest.approx(stage_1, rel=0.02)
