"""host.py: what a warm training step of T does on the host, counted; nothing here depends on the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DEPTH = 13


@pytest.fixture(scope="module")
def found(run_script) -> dict:
    """One measurement of T, in a process whose Triton kernels are not interpreted."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "host.py"
    done = run_script(script, "--spaces", "T", "--seconds", "0.01", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])[0]


def test_a_step_is_a_whole_one(found):
    assert (
        found["by_kernel"]["mlp.fused_forward._forward"]
        == found["by_kernel"]["qkv.backward._weight"]
        == DEPTH
    )
    assert found["launches"] == sum(found["by_kernel"].values()) > DEPTH * 10
    assert found["milliseconds"] > 0 and found["forward_milliseconds"] > 0
    assert (
        found["one_by_one_milliseconds"] > 0
        and found["quickest_milliseconds"] > found["ends_milliseconds"] > 0
    )


def test_blocks_are_replayed_and_look_no_plan_up(found):
    """Two replays per block; what lies around the blocks are nine launches, each looked up as ever."""
    assert found["replays"] == 2 * DEPTH
    assert found["looked_up"] <= 9


def test_nothing_is_worked_out_again(found):
    """A warm step binds no signature, and no launch of it goes through Triton's own run."""
    assert found["signature_bind"] == 0
    assert found["jit_run"] == 0
    assert found["planned"] == 0
    assert found["triton_cdiv"] == 0
    assert found["long_way"] == {}, "launched through Triton"


def test_allocations_are_what_a_step_keeps_or_returns(found):
    """Per block: one forward, and backward a gradient per parameter and one of the residual stream."""
    assert found["allocations"] <= DEPTH * 25, found["allocations"]


def test_every_launcher_is_measured_alone(found):
    launchers = found["launchers"]
    assert {"norm_qkv_forward", "mlp_backward", "relative_attention_backward"} <= set(launchers)
    for name, row in launchers.items():
        assert row["microseconds"] > 0, name
    assert launchers["mlp_backward"]["launches"] == 2
    assert len(found["where"]) == 12 and sum(share for *_, share in found["where"]) <= 1
