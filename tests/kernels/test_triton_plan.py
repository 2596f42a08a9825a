"""Plans: a launch that is looked up gets what one that is worked out would get, also while captured."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import needs_interpreter, parameter, rows

from growtas import shadow
from growtas.errors import UsageError
from growtas.kernels import layer_norm, linear, norm_qkv, qkv
from growtas.kernels.common import launch, plan, tiles, workspace

pytestmark = needs_interpreter


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
    made: list[tuple[tuple, Compiled]] = []

    def run(jitted, grid, device, *arguments, **constants):
        made.append(((jitted, grid, *arguments, constants), Compiled()))
        return made[-1][1]

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(plan, "_current_device", lambda: -1)
    monkeypatch.setattr(plan, "_current_stream", lambda index: 5)
    monkeypatch.setattr(plan, "_capturing", lambda: False)
    launch.forget()
    yield made
    launch.forget()


def _linear(x=None, features=20):
    x = torch.zeros(60, 24) if x is None else x
    weight, bias = torch.zeros(32, 24), torch.zeros(32)
    return x, weight, bias, linear.linear_forward(x, weight, bias, features)


def test_the_second_launch_starts_the_compiled_kernel(compiled):
    _linear()
    with launch.counted() as names:
        x, weight, bias, y = _linear()
    assert len(compiled) == 1, "the second launch went through Triton again"
    assert names == ["linear.forward._forward"]
    (_, grid, *arguments, constants), kernel = compiled[0]
    (found,) = kernel.runs
    assert found[:9] == (*grid, 1, 1, 5, kernel.function, kernel.packed_metadata, None, None, None)
    pointers = [x, weight, bias, y, None, None, None]
    assert found[9:16] == tuple(0 if t is None else t.data_ptr() for t in pointers)
    sizes = arguments[len(pointers) :]
    assert found[16 : 16 + len(sizes)] == tuple(sizes) == (60, 20, 24, 1, 24, 24, 20, 0)
    options = ("num_warps", "num_stages")
    assert found[16 + len(sizes) :] == tuple(v for k, v in constants.items() if k not in options)
    names = launch.constexprs(linear.forward._forward)
    assert list(names) == [k for k in constants if k not in options], "constexprs are passed in their order"


def test_pointers_that_16_bytes_do_not_divide_have_a_kernel_of_their_own(compiled):
    memory = torch.zeros(60 * 24 + 1)
    aligned, other = memory[:-1].view(60, 24), memory[1:].view(60, 24)
    for x in (aligned, other, aligned, other, other):
        _linear(x)
    assert [len(kernel.runs) for _, kernel in compiled] == [1, 2]
    assert {run[9] for run in compiled[0][1].runs} == {aligned.data_ptr()}
    assert {run[9] for run in compiled[1][1].runs} == {other.data_ptr()}


def test_whoever_watches_launches_sees_them(compiled, monkeypatch):
    for _ in range(2):
        _linear()
    hook = plan._runtime.launch_enter_hook
    seen = lambda *_: None  # noqa: E731
    hook.add(seen)
    try:
        _linear()
    finally:
        hook.remove(seen)
    assert len(compiled) == 2, "a launch hook was passed by"
    monkeypatch.setattr(plan._runtime, "launch_exit_hook", seen)
    _linear()
    assert len(compiled) == 3
    monkeypatch.undo()


def test_another_device_is_made_current_for_the_launch(compiled, monkeypatch):
    _linear()
    entered = []

    class Guard:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            entered.append(self.index)
            monkeypatch.setattr(plan, "_current_device", lambda: self.index)

        def __exit__(self, *_):
            monkeypatch.setattr(plan, "_current_device", lambda: 3)

    monkeypatch.setattr(plan, "_current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    _linear()
    assert entered == [-1]
    assert len(compiled) == 1 and len(compiled[0][1].runs) == 1


def test_parts_and_counters_follow_the_pointers(compiled):
    dy, x, weight = torch.zeros(4096, 20), torch.zeros(4096, 24), torch.zeros(32, 24)
    for _ in range(2):
        grad, _ = linear.linear_backward_weight(dy, x, weight, None)
    space = workspace.acquire(x.device, 0, 0)
    (run,) = compiled[0][1].runs
    assert run[9:16] == (dy.data_ptr(), x.data_ptr(), grad.data_ptr(), 0, 0, *space.addresses)
    assert (space.counters == 0).all()


def _captured(monkeypatch):
    monkeypatch.setattr(workspace, "capturing", lambda device: True)
    monkeypatch.setattr(plan, "_capturing", lambda: True)


def test_a_captured_launch_has_counters_of_its_own(compiled, monkeypatch):
    dy, x, weight = torch.zeros(4096, 20), torch.zeros(4096, 24), torch.zeros(32, 24)
    device = x.device
    linear.linear_backward_weight(dy, x, weight, None)
    eager = workspace.acquire(device, 0, 0)
    _captured(monkeypatch)
    for _ in range(3):
        linear.linear_backward_weight(dy, x, weight, None)
    runs = compiled[0][1].runs
    counters = [run[15] for run in runs]
    assert len(runs) == 3 and len({*counters, eager.counters.data_ptr()}) == 4
    zeros = workspace._devices[device].zeros
    for address in counters:
        assert zeros.data_ptr() <= address < zeros.data_ptr() + zeros.nbytes
        assert address % 128 == zeros.data_ptr() % 128
    monkeypatch.setattr(workspace, "capturing", lambda device: False)
    monkeypatch.setattr(plan, "_capturing", lambda: False)
    linear.linear_backward_weight(dy, x, weight, None)
    assert runs[-1][14:16] == eager.addresses, "an eager launch after a capture has the stream's again"


def test_nothing_made_during_a_capture_is_kept(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(workspace, "_devices", {})
    monkeypatch.setattr(workspace, "_by_stream", {})
    _captured(monkeypatch)
    assert workspace.one(device) == 1 and (workspace.counters(device, 5) == 0).all()
    assert workspace.acquire(device, 7, 5).partials.numel() == 7
    assert not workspace._devices and not any(workspace._by_stream.values())


def test_counters_for_captures_can_run_out(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(workspace, "_devices", {})
    monkeypatch.setattr(workspace, "RESERVED", 64)
    workspace.one(device)
    _captured(monkeypatch)
    first, second, third = (workspace.counters(device, 3) for _ in range(3))
    zeros = workspace._devices[device].zeros
    assert first.data_ptr() == zeros.data_ptr() and second.data_ptr() == zeros.data_ptr() + 128
    assert (third == 0).all() and third.data_ptr() not in range(zeros.data_ptr(), zeros.data_ptr() + 256)


def test_a_regrown_counter_stays_zero_and_is_the_streams():
    device = torch.device("cpu")
    before = workspace.counters(device, 4)
    after = workspace.counters(device, before.numel() + 1)
    assert (after == 0).all() and after.numel() > before.numel()
    assert workspace.counters(device, 4) is after


def test_a_plan_is_looked_up_by_all_that_it_depends_on(compiled):
    x, weight, bias = torch.zeros(60, 24), torch.zeros(32, 24), torch.zeros(32)
    arguments = [x, weight, bias, 20, torch.float32, False, None, None, 1, "ieee"]
    first = linear.forward._plan(*arguments)
    assert linear.forward._plan(torch.ones(60, 24), *arguments[1:]) is first
    for place, other in (
        (0, torch.zeros(61, 24)),
        (0, torch.zeros(60, 32)[:, :24]),
        (0, torch.zeros(60, 24, dtype=torch.float16)),
        (1, torch.zeros(33, 24)[:32, :]),
        (1, torch.zeros(32, 30)[:, :24]),
        (2, None),
        (3, 21),
        (4, torch.float16),
        (5, True),
        (6, torch.zeros(60, 20)),
        (8, 2),
        (9, "tf32"),
    ):
        changed = [*arguments[:place], other, *arguments[place + 1 :]]
        if place == 1 and other.stride() == weight.stride():
            assert linear.forward._plan(*changed) is first, "a view of the same sizes and strides is the same"
        else:
            assert linear.forward._plan(*changed) is not first, (place, other)
    launch.forget()
    assert linear.forward._plan(*arguments) is not first


def test_a_refusal_is_not_remembered(device):
    x, weight = torch.zeros(6, 24, device=device), torch.zeros(32, 24, device=device)
    for _ in range(2):
        with pytest.raises(UsageError, match="not inside a shared weight"):
            linear.linear_forward(x, weight, None, 33)
    assert linear.linear_forward(x, weight, None, 32).shape == (6, 32)


def test_forced_tiles_are_not_remembered(compiled):
    arguments = [torch.zeros(60, 24), torch.zeros(32, 24), None, 20]
    arguments += [torch.float32, False, None, None, 1, "ieee"]
    before = linear.forward._plan(*arguments).constants
    with tiles.constrained(rows=16):
        assert linear.forward._plan(*arguments).constants["BLOCK_ROWS"] == 16
    assert linear.forward._plan(*arguments).constants == before


def test_a_planner_starts_over_when_it_remembers_too_much(monkeypatch):
    monkeypatch.setattr(plan, "LIMIT", 3)
    made = []

    def planner(width: int) -> str:
        made.append(width)
        return f"plan {width}"

    look_up = plan.planned(planner)
    known = launch.remembered.pop()
    for width in (1, 2, 3, 1, 2, 3, 4, 4, 1):
        assert look_up(width) == f"plan {width}"
    assert made == [1, 2, 3, 4, 1] and len(known) == 2


def test_nothing_to_launch_gives_zeros(compiled):
    x, dy, weight = torch.zeros(0, 24), torch.zeros(0, 20), torch.full((32, 24), 3.0)
    grad, _ = linear.linear_backward_weight(dy, x, weight, None)
    dx, dweight, dbias = layer_norm.layer_norm_backward(
        x, x, torch.ones(32), torch.ones(32), torch.zeros(0), torch.zeros(0)
    )
    assert not compiled and (grad == 0).all() and (dweight == 0).all() and (dbias == 0).all()
    assert grad.shape == weight.shape and dx.shape == x.shape


@pytest.mark.parametrize("width", [40, 264], ids=["one-launch", "wide"])
def test_a_shadow_sorted_by_head_gives_the_same_bits(width, device, monkeypatch):
    """Forward and both input gradients of q, k, v, with and without LayerNorm, from rows in another order."""
    heads, all_heads, head_dim, full_width = 2, 3, 8, width + 8
    torch.manual_seed(0)
    x = rows(2 * 5, width, torch.float16, device).view(2, 5, width)
    size = 3 * head_dim * all_heads
    weight = parameter((size, full_width), (3 * head_dim * heads, width), torch.float16, device, 0.1)
    bias = parameter((size,), (3 * head_dim * heads,), torch.float32, device, 0.5)
    norm = [parameter((full_width,), (width,), torch.float32, device, 1.0) for _ in range(2)]
    dqkv = torch.randn(3, 2, heads, 5, head_dim, device=device).to(torch.float16)

    def everything():
        yield qkv.qkv_forward(x, weight, bias, heads, head_dim)
        yield qkv.qkv_backward_input(dqkv, weight, width)
        made = norm_qkv.norm_qkv_forward(
            x, *norm, 1e-5, weight, bias, heads, head_dim, "interleaved", torch.float16
        )
        yield made[0]
        yield from norm_qkv.norm_qkv_backward(dqkv, x, *made[1:], *norm, weight, bias, "interleaved", None)

    expected = list(everything())
    order = torch.arange(size).view(all_heads, head_dim, 3).transpose(1, 2).reshape(-1)
    matrix = weight[order]
    calls = []

    def read_qkv(asked, dtype, asked_head_dim):
        calls.append(asked_head_dim)
        assert asked is weight and dtype is torch.float16
        return matrix, head_dim, 1

    monkeypatch.setattr(shadow, "read_qkv", read_qkv)
    for a, b in zip(expected, everything(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    assert calls == [head_dim] * 4
