"""All blocks of a small net in one operation: against block by block, and when it is taken."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import growtas
from growtas.errors import GrowtasError, UsageError
from growtas.nn import block as block_module
from growtas.ops import direct_gradients, dispatch, one_call
from growtas.space import load_space

SPACE = dataclasses.replace(load_space("digits"), depth=(2, 3))
LARGEST = SPACE.largest()


@pytest.fixture(autouse=True)
def cpp():
    with dispatch.use("cpu"):
        yield


def small_net(drop_path_rate: float = 0.0, **options) -> nn.Module:
    """A supernet in training, with every weight different from 0."""
    torch.manual_seed(0)
    net = growtas.Supernet(SPACE, num_classes=10, drop_path_rate=drop_path_rate, **options).train()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def stacked(logits: torch.Tensor) -> bool:
    """Return whether a stack is in the graph behind logits, and no branch of its own."""
    seen, waiting = set(), [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [each for each, _ in node.next_functions]
    names = {type(node).__name__ for node in seen}
    assert not {"_StackBackward", "attention_branchBackward"} <= names
    return "_StackBackward" in names


def outcome(net: nn.Module, subnet, x: torch.Tensor) -> tuple[bool, list[torch.Tensor | None]]:
    """Return whether the blocks ran as a stack, and the logits, dx and all gradients."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(2)  # of the drop path
    logits = net(x, subnet)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    found = [logits.detach(), x.grad, *[p.grad for p in net.parameters()]]
    return stacked(logits), found


def equal(found: list[torch.Tensor | None], expected: list[torch.Tensor | None]) -> bool:
    """Return whether the same are there, with the same bits."""
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)


def warm(net: nn.Module, subnet, x: torch.Tensor) -> None:
    """Let the blocks' own operations check them once."""
    with torch.no_grad():
        net(x, subnet)


@pytest.mark.parametrize("options", [{}, {"drop_path_rate": 0.5}, {"qkv_bias": "published"}])
def test_a_stack_has_the_bits_of_its_blocks(options, monkeypatch):
    net, x, rng = small_net(**options), images(), random.Random(0)
    for subnet in (LARGEST, SPACE.smallest(), *[SPACE.sample(rng) for _ in range(6)]):
        warm(net, subnet, x)
        taken, found = outcome(net, subnet, x)
        with torch.no_grad():
            torch.manual_seed(2)
            assert torch.equal(net(x, subnet), found[0])
        with monkeypatch.context() as patch:
            patch.setattr(block_module, "block_stack", lambda *given: given[-1]())
            apart, expected = outcome(net, subnet, x)
        assert taken and not apart and equal(found, expected)


def test_the_first_time_the_blocks_check_themselves():
    net = small_net()
    assert not outcome(net, LARGEST, images(11))[0]  # no other test has eleven images
    assert outcome(net, LARGEST, images(11))[0]
    assert not outcome(net, LARGEST, images(13))[0]


def hooked(net: nn.Module) -> None:
    net.blocks[1].attn.register_forward_hook(lambda module, given, found: None)


def replaced(net: nn.Module) -> None:
    class Own(type(net.blocks[0].mlp)):
        """A branch of the user's."""

    net.blocks[0].mlp.__class__ = Own


def patched(net: nn.Module) -> None:
    block = net.blocks[0]
    block.forward = type(block).forward.__get__(block)


def recomputing(net: nn.Module) -> None:
    net.checkpoint_activations = True


@pytest.mark.parametrize("change", [hooked, replaced, patched, recomputing])
def test_blocks_that_do_more_run_one_by_one(change):
    net, x = small_net(), images()
    warm(net, LARGEST, x)
    taken, expected = outcome(net, LARGEST, x)
    change(net)
    apart, found = outcome(net, LARGEST, x)
    assert taken and not apart and equal(found, expected)


def test_hooks_of_all_modules_are_called():
    net, x, seen = small_net(), images(), []
    warm(net, LARGEST, x)
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, found: seen.append(module))
    with handle:
        net(x, LARGEST)
    assert all(block in seen and block.attn in seen for block in net.blocks[: LARGEST.depth])


def test_large_nets_other_backends_and_other_dtypes_run_one_by_one(monkeypatch):
    net, x = small_net(), images()
    warm(net, LARGEST, x)
    assert stacked(net(x, LARGEST))
    with dispatch.use("torch"):
        assert not stacked(net(x, LARGEST)) and not stacked(net(x, LARGEST))
    with torch.autocast("cpu", torch.bfloat16):
        assert not stacked(net(x, LARGEST))
    monkeypatch.setattr(one_call, "MOST_OPERATIONS", 0)
    dispatch.changed()
    assert not stacked(net(x, LARGEST)) and not stacked(net(x, LARGEST))


def test_a_weight_that_became_too_small_is_refused():
    net, x = small_net(), images()
    warm(net, LARGEST, x)
    fc1 = net.blocks[1].mlp.fc1
    fc1.weight = nn.Parameter(fc1.weight.detach()[:4].clone())
    with pytest.raises(UsageError, match=r"mlp needs a \(\d+, \d+\) slice of fc1"):
        net(x, LARGEST)


def test_a_weight_that_shrinks_between_the_passes_is_refused():
    net, x = small_net(), images()
    warm(net, LARGEST, x)
    logits = net(x, LARGEST)
    weight = net.blocks[1].mlp.fc1.weight
    weight.data = weight.data[:4].clone()
    with pytest.raises((GrowtasError, RuntimeError), match="than in the forward pass"):
        logits.sum().backward()


def test_a_weight_that_changes_between_the_passes_is_refused():
    net, x = small_net(), images()
    warm(net, LARGEST, x)
    logits = net(x, LARGEST)
    with torch.no_grad():
        net.blocks[0].attn.proj.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_a_graph_can_be_walked_twice_and_not_differentiated():
    net, x = small_net(), images()
    warm(net, LARGEST, x)
    loss = net(x, LARGEST).square().sum()
    weights = [p for name, p in net.named_parameters() if name.startswith("blocks.")]
    first, second = (torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for _ in "ab")
    assert equal(first, second)
    with pytest.raises(GrowtasError, match="no second derivative"):
        torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)


def test_a_net_under_checkpoint_saves_the_same_each_time():
    """Also where its blocks come for the first time, and would be a stack the second time."""
    net, x = small_net(), images(7)  # no other test has seven images
    found = []
    for _ in range(3):
        net.zero_grad()
        again = x.clone().requires_grad_()
        torch.manual_seed(2)
        logits = checkpoint(net, again, LARGEST, use_reentrant=False)
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        found.append([logits.detach(), again.grad, *[p.grad for p in net.parameters()]])
        outcome(net, LARGEST, x)
    taken, expected = outcome(net, LARGEST, x)
    assert taken and all(equal(one, expected) for one in found)


def directly(net: nn.Module, subnet, x: torch.Tensor, passes: int = 1) -> list[torch.Tensor | None]:
    """The gradients of all parameters after some passes, which a stack adds itself where it may."""
    net.zero_grad()
    for _ in range(passes):
        with direct_gradients():
            logits = net(x, subnet)
        logits.square().sum().backward()
    return [p.grad for p in net.parameters()]


def test_gradients_that_a_stack_adds_itself_are_those_of_autograd():
    """Over two passes, of which the second adds to the first; a frozen parameter gets none."""
    net, x = small_net(), images()
    warm(net, LARGEST, x)
    net.blocks[0].mlp.fc1.weight.requires_grad_(False)
    for _ in range(2):
        net(x, LARGEST).square().sum().backward()
    expected = [p.grad for p in net.parameters()]
    assert equal(directly(net, LARGEST, x, 2), expected)
    assert net.blocks[0].mlp.fc1.weight.grad is None


def test_a_direct_stack_has_no_parameters_in_its_graph():
    net, x = small_net(), images()
    warm(net, LARGEST, x)
    with direct_gradients():
        logits = net(x, LARGEST)
    parameter = net.blocks[0].mlp.fc1.weight
    assert stacked(logits)
    assert torch.autograd.grad(logits.sum(), [parameter], allow_unused=True) == (None,)
    assert torch.autograd.grad(net(x, LARGEST).sum(), [parameter])[0] is not None, "outside it is as ever"


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_parameters_leave_the_gradients_to_autograd(register):
    net, x, seen = small_net(), images(), []
    warm(net, LARGEST, x)
    expected = directly(net, LARGEST, x)
    getattr(net.blocks[0].norm1.weight, register)(lambda _: seen.append(1))
    assert equal(directly(net, LARGEST, x), expected) and seen == [1]


def test_weights_changed_between_the_passes_are_refused_by_a_direct_stack_too():
    net, x = small_net(), images()
    warm(net, LARGEST, x)
    with direct_gradients():
        logits = net(x, LARGEST)
    with torch.no_grad():
        net.blocks[0].mlp.fc1.weight.add_(1)
    with pytest.raises(GrowtasError, match="changed in place"):
        logits.sum().backward()


def test_a_parameter_of_two_blocks_gets_the_gradients_of_both():
    net, x = small_net(), images()
    net.blocks[1].mlp.fc1.weight = net.blocks[0].mlp.fc1.weight
    warm(net, LARGEST, x)
    for _ in range(2):
        net(x, LARGEST).square().sum().backward()
    expected = [p.grad for p in net.parameters()]
    found = directly(net, LARGEST, x, 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)  # added in another order
