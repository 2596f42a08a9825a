"""Replayed launches: those of a recorded run at other addresses; and blocks of a net that are replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from kernel_cases import needs_interpreter, poisoned_outputs
from torch import Tensor, nn

import growtas
from growtas.errors import GrowtasError
from growtas.kernels.common import launch, plan, replay, workspace
from growtas.kernels.linear import linear_backward_weight, linear_forward
from growtas.nn import block as block_module
from growtas.ops import direct_gradients, dispatch
from growtas.ops.block_stack import triton as stack

pytestmark = needs_interpreter

SPACE = dataclasses.replace(growtas.load_space("digits"), depth=(1, 2))
LARGEST = SPACE.largest()
SMALLER = dataclasses.replace(SPACE.smallest(), depth=2, num_heads=(2, 2), mlp_ratio=LARGEST.mlp_ratio[:2])


# -- the recorder --------------------------------------------------------------------------------------------


def twice(x: Tensor, weight: Tensor) -> Tensor:
    """Two launches; the tensor between them is scratch."""
    return linear_forward(linear_forward(x, weight, None, 8), weight, None, 8)


def recorded(work: Callable[..., Tensor], *given: Tensor) -> tuple[replay.Replay | None, str]:
    with replay.Recorder(given) as recorder:
        result = work(*given)
    return recorder.replay([result]), recorder.refusal


def run_again(again: replay.Replay, *given: Tensor) -> Tensor:
    """The only result of a replay with other tensors, in fresh memory."""
    result = torch.full(again.results[0].shape, float("nan"))
    scratch = torch.zeros(max(again.scratch, 1), dtype=torch.uint8)
    tensors = (*given, result, scratch)
    again.start([t.data_ptr() for t in tensors], lambda: tensors)
    return result


def test_a_replay_reads_and_writes_the_tensors_that_it_is_given():
    again, refusal = recorded(twice, torch.randn(6, 8), torch.randn(8, 8))
    assert not refusal
    x, weight = torch.randn(6, 8), torch.randn(8, 8)
    with launch.counted() as names:
        assert torch.equal(run_again(again, x, weight), twice(x, weight))
    assert names == ["linear.forward._forward"] * 4


def test_parts_of_given_tensors_are_found_again():
    def halves(x: Tensor, weight: Tensor) -> Tensor:
        return linear_forward(x[2:], weight[:4], None, 4)

    again, _ = recorded(halves, torch.randn(6, 8), torch.randn(8, 8))
    x, weight = torch.randn(6, 8), torch.randn(8, 8)
    assert torch.equal(run_again(again, x, weight), halves(x, weight))


def test_scratch_is_shared_by_tensors_that_never_meet():
    assert replay._packed([(512, 0, 1), (512, 1, 2), (512, 2, 3), (1024, 4, 5)]) == ([0, 512, 0, 0], 1024)

    def four(x: Tensor, weight: Tensor) -> Tensor:
        return twice(twice(x, weight), weight)

    again, _ = recorded(four, torch.randn(6, 8), torch.randn(8, 8))
    assert again.scratch == 2 * replay.ALIGNMENT  # of three tensors
    x, weight = torch.randn(6, 8), torch.randn(8, 8)
    assert torch.equal(run_again(again, x, weight), four(x, weight))


def test_work_that_is_not_seen_whole_is_refused():
    x, weight, other = torch.randn(6, 8), torch.randn(8, 8), torch.randn(8, 8)
    cases = {
        "torch ran add": (lambda x, w: twice(x + 1, w), (x, weight)),
        "nobody knows a tensor": (lambda x: twice(x, other), (x,)),
        "given tensors overlap": (lambda x, y: twice(x, weight), (x, x[3:])),
        "launched nothing": (lambda x: x.new_empty(3), (x,)),
        "not a tensor of its own": (lambda x, w: twice(x, w)[1:], (x, weight)),
    }
    for reason, (work, given) in cases.items():
        again, refusal = recorded(work, *given)
        assert again is None and reason in refusal, (reason, refusal)


def test_two_results_in_one_tensor_are_refused():
    x, weight = torch.randn(6, 8), torch.randn(8, 8)
    with replay.Recorder((x, weight)) as recorder:
        y = twice(x, weight)
    assert recorder.replay([y, y.view(48)]) is None and "two results" in recorder.refusal


def test_tensors_that_last_are_known():
    weight, x = workspace.lasting(torch.randn(8, 8)), torch.randn(6, 8)
    again, refusal = recorded(lambda x: linear_forward(x, weight, None, 8), x)
    assert not refusal and torch.equal(run_again(again, x + 1), linear_forward(x + 1, weight, None, 8))


def test_an_error_ends_the_recording():
    with pytest.raises(ZeroDivisionError), replay.Recorder(()):
        raise ZeroDivisionError
    assert not plan.recorders


class Compiled:
    """Stands for what Triton compiled: keeps what it was run with."""

    function, packed_metadata = 17, (4, 1, 0)

    def __init__(self) -> None:
        self.runs: list[tuple] = []

    def run(self, *arguments: object) -> None:
        self.runs.append(arguments)


@pytest.fixture
def compiled(monkeypatch):
    """Every launch through Triton is answered with a compiled kernel of its own; in order."""
    made: list[Compiled] = []

    def run(*arguments: object, **constants: object) -> Compiled:
        made.append(Compiled())
        return made[-1]

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(plan, "_current_device", lambda: -1)
    monkeypatch.setattr(plan, "_current_stream", lambda index: 0)
    monkeypatch.setattr(plan, "_capturing", lambda: False)
    return made


def test_compiled_kernels_are_started_directly_with_what_their_plan_would_give(compiled):
    """Also with partial sums and counters; a pattern of pointers that is new goes through Triton once."""
    dy, x = torch.randn(70, 8), torch.randn(70, 16)
    weight, bias = torch.randn(8, 16), torch.randn(8)
    with replay.Recorder((dy, x, weight, bias)) as recorder:
        results = linear_backward_weight(dy, x, weight, bias)
    again = recorder.replay(results)
    (first,) = compiled
    given = (dy, x, weight, bias, *results, torch.empty(1, dtype=torch.uint8))
    again.start([t.data_ptr() for t in given], lambda: given)
    linear_backward_weight(dy, x, weight, bias)
    replayed, planned = first.runs
    outputs = {a for t in results for a in [t.data_ptr()]}
    assert [a for a in replayed if a in outputs] == [t.data_ptr() for t in results]
    differing = [(a, b) for a, b in zip(replayed, planned, strict=True) if a != b]
    assert len(differing) <= len(results) and {a for a, _ in differing} <= outputs
    moved = torch.randn(71 * 8 + 1)[1 : 70 * 8 + 1].view(70, 8)  # not at a multiple of 16 bytes
    assert moved.data_ptr() % 16
    given = (moved, *given[1:])
    for count in (2, 2):
        again.start([t.data_ptr() for t in given], lambda: given)
        assert len(compiled) == count
    assert moved.data_ptr() in compiled[1].runs[0]


# -- blocks --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def on_triton():
    with dispatch.use("triton"):
        yield


def a_net(drop_path_rate: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    net = growtas.Supernet(SPACE, num_classes=10, drop_path_rate=drop_path_rate).train()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def images() -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def outcome(net: nn.Module, subnet, seed: int = 2, grad: bool = True) -> list[Tensor | None]:
    """Logits, dx and all gradients under float16 autocast."""
    net.zero_grad()
    torch.manual_seed(seed)
    x = images().requires_grad_(grad)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.float16):
        logits = net(x, subnet).float()
    if not grad:
        return [logits]
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return [logits.detach(), x.grad, *[p.grad for p in net.parameters()]]


def equal(found: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)


@pytest.fixture
def apart(monkeypatch):
    """Runs a function with blocks one by one."""

    def run(function: Callable, *arguments: object, **options: object):
        with monkeypatch.context() as patch:
            patch.setattr(block_module, "block_stack", lambda *given: given[-1]())
            return function(*arguments, **options)

    return run


@pytest.fixture
def starts(monkeypatch) -> list[int]:
    """The number of launches of every replay, one per block and pass; each has the scratch that it needs."""
    found: list[int] = []
    start = replay.Replay.start

    def noted(self, addresses, owners):
        found.append(len(self._steps))
        assert len(owners()[-1]) >= self.scratch
        return start(self, addresses, owners)

    monkeypatch.setattr(replay.Replay, "start", noted)
    return found


def test_replayed_blocks_have_the_bits_of_their_own_operations(apart, starts):
    net = a_net(drop_path_rate=0.4)
    expected = [apart(outcome, net, LARGEST, seed) for seed in (2, 3)]
    with poisoned_outputs():
        compare_passes(net, expected, starts)


def compare_passes(net: nn.Module, expected: list[list[Tensor | None]], starts: list[int]) -> None:
    """The first passes; then others, with other images dropped; gradients added by autograd, or directly."""
    assert equal(outcome(net, LARGEST), expected[0]) and not starts, "the first time they check themselves"
    assert equal(outcome(net, LARGEST), expected[0]) and not starts, "the second time they are recorded"
    for direct in (False, True):
        starts.clear()
        with direct_gradients() if direct else nullcontext():
            assert equal(outcome(net, LARGEST, 3), expected[1])
        forward, backward = starts[0], starts[-1]
        assert starts == [forward, forward, backward, backward] and forward >= 4 and backward >= 8
    assert equal(outcome(net, LARGEST, 3, grad=False), expected[1][:1])
    assert len(starts) == 6


def test_a_block_is_replayed_in_the_pass_that_recorded_one_like_it(apart, starts):
    net = a_net()
    expected = apart(outcome, net, LARGEST)
    outcome(net, LARGEST, grad=False)
    assert equal(outcome(net, LARGEST), expected) and len(starts) == 2


def test_another_subnet_is_recorded_anew_and_changed_weights_are_read(apart, starts):
    net = a_net()
    for subnet in (LARGEST, SMALLER):
        for _ in range(2):
            outcome(net, subnet, grad=False)
    started = len(starts)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(-1.5)
    for subnet in (LARGEST, SMALLER):
        assert equal(outcome(net, subnet, grad=False), apart(outcome, net, subnet, grad=False))
    assert len(starts) == started + 4


def prepared(monkeypatch) -> nn.Module:
    """A net whose blocks are replayed, and whose kernels are not run."""
    monkeypatch.setattr(launch, "run", lambda *arguments, **constants: None)
    net = a_net()
    for _ in range(2):
        outcome(net, LARGEST)
    return net


def test_wide_rows_leave_tensors_to_each_other_in_both_passes(monkeypatch, starts):
    """Over 256 channels: LayerNorm and the hidden layer are launches of their own."""
    monkeypatch.setattr(launch, "run", lambda *arguments, **constants: None)
    wide = dataclasses.replace(SPACE, embed_dim=(320,), super_embed_dim=320)
    net = growtas.Supernet(wide, num_classes=10).train()
    for _ in range(2):
        outcome(net, wide.largest())
    forward, backward = starts
    assert forward > 4 and backward > 8
    assert all(known.forward.scratch and known.backward.scratch for known in stack._known.values())


def test_several_ranks_have_a_node_for_every_block(monkeypatch, starts):
    net = prepared(monkeypatch)
    nodes: list[int] = []
    apply = stack._Stack.apply
    monkeypatch.setattr(
        stack._Stack, "apply", lambda x, layers, *rest: nodes.append(len(layers)) or apply(x, layers, *rest)
    )
    outcome(net, LARGEST)
    monkeypatch.setattr(stack.distributed, "is_initialized", lambda: True)
    outcome(net, LARGEST)
    assert nodes == [2, 1, 1]


def test_profilers_and_captures_see_launches_one_by_one(monkeypatch, starts):
    net = prepared(monkeypatch)
    outcome(net, LARGEST)
    started = len(starts)
    for place, name in ((plan, "observed"), (workspace, "capturing")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *_: True)
            outcome(net, LARGEST, grad=False)
        assert len(starts) == started
    launch.forget()
    outcome(net, LARGEST, grad=False)
    assert len(starts) == started, "plans were forgotten, and replays with them"


def test_saved_tensors_that_are_put_elsewhere_are_not_replayed(monkeypatch, starts):
    """A replay counts on the addresses of the forward pass."""
    net = prepared(monkeypatch)
    started = len(starts)
    with torch.autograd.graph.save_on_cpu():
        outcome(net, LARGEST)
    assert len(starts) == started


def test_weights_that_are_not_alike_are_not_replayed(monkeypatch, starts):
    net = prepared(monkeypatch)
    started = len(starts)
    net.blocks[0].norm1.bias.data = torch.randn(2 * len(net.blocks[0].norm1.bias))[::2]
    outcome(net, LARGEST, grad=False)
    outcome(net, LARGEST, grad=False)
    assert len(starts) == started


def test_blocks_that_launch_something_else_are_refused_once(monkeypatch, starts):
    monkeypatch.setattr(launch, "run", lambda *arguments, **constants: None)
    forward = stack.mlp_forward
    monkeypatch.setattr(stack, "mlp_forward", lambda x, *rest: forward(x + 0, *rest))
    net = a_net()
    for _ in range(3):
        outcome(net, LARGEST, grad=False)
    assert not starts and all(known.refused for known in stack._known.values())


@pytest.mark.parametrize("direct", [False, True])
def test_weights_changed_between_the_passes_are_refused(monkeypatch, direct):
    net = prepared(monkeypatch)
    with direct_gradients() if direct else nullcontext(), torch.autocast("cpu", torch.float16):
        loss = net(images().requires_grad_(), LARGEST).sum()
    with torch.no_grad():
        net.blocks[0].mlp.fc1.weight.add_(1)
    with pytest.raises(GrowtasError if direct else RuntimeError, match="in place|inplace"):
        loss.backward()
