"""The model of a step's bytes and FLOPs, held against the launches' own counts and against the addresses."""

from __future__ import annotations

import json
from pathlib import Path

import count_step_bytes
import pytest
from common import step_bytes, steps

import growtas
from growtas.kernels.common import launch
from growtas.ops import dispatch

SCRIPT = Path(__file__).with_name("count_step_bytes.py")


@pytest.mark.parametrize("preferred", step_bytes.BACKENDS)
def test_the_model_agrees_with_what_each_kernel_is_given(preferred, run_script):
    """Launches, bytes and FLOPs of a step of T at batch 128, kernel by kernel."""
    space = growtas.load_space("autoformer-tiny")
    model = step_bytes.step_bytes(space, steps.pick_subnet(space, "middle"), 128, preferred)
    done = run_script(SCRIPT, preferred)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout.splitlines()[-1])
    whole, work = (sum(counts[i] for counts in counted.values()) for i in (1, 2))
    assert whole > 1e10 and work > 1e12, "too little to be a whole step"
    for name, (launches, moved, flops) in counted.items():
        own = model.get(name, step_bytes.Launches())
        assert abs(own.moved - moved) <= max(0.02 * moved, step_bytes.SMALL * whole), name
        assert abs(own.flops - flops) <= max(0.02 * flops, step_bytes.SMALL * work), name
        if "." in name:  # kernels of growtas; the head's are left out of the model
            assert launches - 1 <= len(own.launches) <= launches, name
    assert set(model) <= set(counted)
    assert sum(own.moved for own in model.values()) == pytest.approx(whole, rel=0.01)
    assert sum(own.flops for own in model.values()) == pytest.approx(work, rel=0.01)


@pytest.mark.skipif(not dispatch.interpreted(), reason="needs Triton's interpreter, off where there is a GPU")
def test_the_count_is_what_the_kernels_touch():
    """The bytes that a launch counts are the addresses that it loads from and stores to, in a whole block."""
    launch.forget()
    found = count_step_bytes.traced()
    launch.forget()
    assert len(found) >= 12, "too few to be a block"
    for name, counted, touched in found:
        assert counted == pytest.approx(touched, rel=0.01), name


def test_what_is_least_depends_on_the_slower_of_both():
    step = {"a": step_bytes.Launches([(8.0, 1.0), (8.0, 100.0)]), "b": step_bytes.Launches([(1.0, 0.0)])}
    assert step_bytes.least(step, bandwidth=4.0, peak=10.0) == 2.0 + 10.0 + 0.25


def test_a_fused_step_moves_less_and_a_larger_batch_more():
    space = growtas.load_space("autoformer-tiny")
    subnet = steps.pick_subnet(space, "middle")
    moved = {
        (backend, batch): sum(
            own.moved for own in step_bytes.step_bytes(space, subnet, batch, backend).values()
        )
        for backend in step_bytes.BACKENDS for batch in (128, 256)
    }  # fmt: skip
    assert moved["triton", 128] < 0.8 * moved["cublas", 128]
    assert 1.7 < moved["triton", 256] / moved["triton", 128] < 2
