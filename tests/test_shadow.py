"""16-bit shadows: valid exactly as long as the weight is unchanged, and without a trace in any result."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from timm.utils import ModelEmaV3

import growtas
from growtas import shadow
from growtas.ops.qkv.reference import qkv_rows
from growtas.shadow import Shadows, read, read_qkv

BF16 = torch.bfloat16


@pytest.fixture
def weight() -> torch.nn.Parameter:
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(24, 10))


def test_without_shadows_the_weight_is_read(weight):
    assert read(weight, BF16) is weight
    assert read_qkv(weight, BF16, 4) == (weight, 1, 3)


def test_a_shadow_is_the_whole_weight_in_16_bits(weight):
    shadows = Shadows([weight])
    assert shadows.refresh(BF16)
    assert torch.equal(read(weight, BF16), weight.to(BF16))
    assert read(weight, torch.float16) is weight and not shadows.refresh(BF16)
    assert shadows.nbytes == 2 * weight.numel()
    assert not shadows.refresh(torch.float32) and read(weight, torch.float32) is weight


def test_a_view_of_the_weight_reads_the_same_shadow():
    weight = torch.nn.Parameter(torch.randn(8, 3, 2, 2))
    shadows = Shadows([weight])
    shadows.refresh(BF16)
    assert torch.equal(read(weight.flatten(1), BF16), weight.flatten(1).to(BF16))


def by_hand(weight):
    with torch.no_grad():
        weight.mul_(2)


def by_optimizer(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1).step()


def by_state_dict(weight):
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = weight
    layer.load_state_dict({"weight": torch.zeros_like(weight)})


def by_data_in_an_optimizer(weight):
    class Careless(torch.optim.Optimizer):
        def step(self):
            for parameter in self.param_groups[0]["params"]:
                parameter.data.add_(1)

    Careless([weight], {}).step()


def by_data(weight):
    weight.data.add_(1)
    shadow.expire()


def by_another_tensor(weight):
    weight.data = torch.randn_like(weight)


@pytest.mark.parametrize(
    "change", [by_hand, by_optimizer, by_state_dict, by_data_in_an_optimizer, by_data, by_another_tensor]
)
def test_a_changed_weight_has_no_shadow_until_the_next_refresh(weight, change):
    shadows = Shadows([weight])
    shadows.refresh(BF16)
    change(weight)
    assert read(weight, BF16) is weight
    assert shadows.refresh(BF16)
    assert torch.equal(read(weight, BF16), weight.to(BF16))


def test_averaged_weights_have_shadows_of_their_own():
    net = torch.nn.Linear(4, 4)
    average = ModelEmaV3(net, decay=0.5)
    own = average.module.weight
    shadows = Shadows([own])
    shadows.refresh(BF16)
    with torch.no_grad():
        net.weight.add_(1)
    average.update(net)
    assert read(own, BF16) is own
    shadows.refresh(BF16)
    assert torch.equal(read(own, BF16), own.to(BF16))


def test_rows_of_a_qkv_weight_are_sorted_by_head(weight):
    head_dim, heads = 4, 2
    bias = torch.nn.Parameter(torch.randn(24))
    shadows = Shadows([weight, bias], {0: head_dim, 1: head_dim}, sort=True)
    shadows.refresh(BF16)
    for own in (weight, bias):
        matrix, part_step, step = read_qkv(own, BF16, head_dim)
        assert (part_step, step) == (head_dim, 1) and matrix.shape == own.shape
        for part in range(3):
            rows = [
                3 * head_dim * j + part_step * part + step * e for j in range(heads) for e in range(head_dim)
            ]
            assert torch.equal(matrix[rows], qkv_rows(own, heads, head_dim, part).to(BF16))
    assert read(weight, BF16) is weight, "sorted rows are for those who ask for them"
    assert read_qkv(weight, BF16, 8) == (weight, 1, 3)


def test_shadows_go_with_their_owner(weight):
    shadows = Shadows([weight])
    shadows.refresh(BF16)
    assert copy.deepcopy(shadows) is None
    del shadows
    gc.collect()
    assert read(weight, BF16) is weight


def gradients(net: torch.nn.Module, images: torch.Tensor, subnets: list) -> tuple[list, dict]:
    """Losses and gradients of a step that sums over subnets, under autocast."""
    losses = []
    for subnet in subnets:
        with torch.autocast("cpu", BF16):
            loss = net(images, subnet).float().square().mean()
        loss.backward()
        losses.append(loss.item())
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    return losses, found


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_step_has_the_same_bits_with_and_without(backend, monkeypatch):
    torch.manual_seed(0)
    net = growtas.Supernet("digits", 10).train()
    images = torch.randn(4, 1, 8, 8)
    subnets = [net.space.largest(), net.space.smallest()]
    with growtas.ops.use(backend):
        losses, found = gradients(net, images, subnets)
        assert read(net.blocks[0].mlp.fc1.weight, BF16).dtype is BF16, "the step ran without shadows"
        with monkeypatch.context() as patch:
            patch.setattr(Shadows, "refresh", lambda *_: False)
            shadow.expire()
            expected_losses, expected = gradients(net, images, subnets)
    assert losses == expected_losses and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_weights_changed_between_steps_are_seen():
    torch.manual_seed(0)
    net = growtas.Supernet("digits", 10).eval()
    images, subnet = torch.randn(2, 1, 8, 8), net.space.largest()
    with torch.no_grad(), torch.autocast("cpu", BF16):
        before = net(images, subnet)
        net.blocks[0].mlp.fc1.weight.mul_(-1)
        after = net(images, subnet)
        fresh = copy.deepcopy(net)
        assert not torch.equal(before, after) and torch.equal(after, fresh(images, subnet))


def test_a_change_between_the_passes_is_refused_as_ever():
    net = growtas.Supernet("digits", 10).train()
    with torch.autocast("cpu", BF16):
        loss = net(torch.randn(2, 1, 8, 8), net.space.largest()).sum()
    by_hand(net.blocks[0].mlp.fc2.weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_operator_under_compile_takes_the_weight(weight):
    """Strides that a compiled graph was told must hold: its operators know no shadows."""
    shadows = Shadows([weight], {0: 4}, sort=True)
    shadows.refresh(BF16)
    x = torch.randn(2, 5, 10, dtype=BF16)
    with torch.no_grad():
        eager = growtas.ops.qkv(x, weight, None, 2, 4)
        compiled = torch.ops.growtas.qkv(x, weight, None, 2, 4, "interleaved")
    assert eager.stride(-1) == 1 and compiled.stride(0) == 1
    torch.testing.assert_close(eager, compiled)


def test_of_two_owners_of_a_weight_the_last_that_refreshed_is_read(weight):
    first, second = Shadows([weight]), Shadows([weight])
    first.refresh(BF16)
    second.refresh(BF16)
    by_hand(weight)
    first.refresh(BF16)
    assert torch.equal(read(weight, BF16), weight.to(BF16))
    del second
    gc.collect()
    assert torch.equal(read(weight, BF16), weight.to(BF16))
