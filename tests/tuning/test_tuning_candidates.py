"""Candidates of a race: right ones may win; wrong, changing, crashing, hanging and broken ones do not."""

from __future__ import annotations

import json

import pytest
import torch
from forked_worker import Forked

from growtas import load_space
from growtas.ops import dispatch, records
from growtas.space import SearchSpace
from growtas.tuning import calls, checks, children, clock, decide, driver, worker
from growtas.tuning.cases import Case, cases
from growtas.tuning.children import Child

CPU = torch.device("cpu")


def request(case: Case, place: str, **more) -> dict:
    """As the parent asks, through JSON as on its way to a worker."""
    asked = {
        "case": case.to_dict(),
        "backend": "cpu",
        "place": place,
        "choices": {},
        "device": "cpu",
        "threads": 1,
    }
    return json.loads(json.dumps({**asked, "seconds": 0.0, "repeats": 4, **more}))


@pytest.fixture
def answer(monkeypatch):
    """The worker's answer, in this process."""

    def ask(case: Case, prefix: str, **more) -> dict:
        operation = dispatch.OPERATIONS[case.op]
        monkeypatch.setattr(operation, "backends", dict(operation.backends))
        return worker.answer(request(case, f"fake_backends:{prefix}", **more))

    return ask


@pytest.mark.parametrize(
    ("prefix", "kind", "reason"),
    [
        ("wrong", "wrong", "the error of the result against fp64"),
        ("wronggradient", "wrong", "the error of the gradient of norm_bias against fp64"),
        ("unwritten", "wrong", "is inf, over"),
        ("changing", "bits", "3 runs gave different bits"),
        ("broken", "error", "RuntimeError: ptxas fatal: register allocation failed"),
        ("missing", "error", "AttributeError: module 'fake_backends' has no attribute 'missing'"),
    ],
)
def test_a_candidate_that_must_not_win_is_refused(norm, answer, prefix, kind, reason):
    found = answer(norm, prefix)
    assert found["kind"] == kind and reason in found["refused"] and "\n" not in found["refused"]


def test_a_right_candidate_is_timed(norm, answer):
    (one,) = answer(norm, "right")["measurements"]
    assert one["size"] == norm.jobs[0].name and one["rounds"] >= 5
    for what in ("forward", "step"):
        middle, low, high = one[what]
        assert 0 < low <= middle <= high
    assert len(one["torch_us"]) == len(one["own_us"]) == len(one["host_us"]) == 2


def test_what_would_win_is_repeated(norm, answer, monkeypatch):
    """The long test of equal bits is for winners: it sees a change that the short one missed."""
    fast = {"forward": [2.0, 2.0, 2.0], "step": [2.0, 2.0, 2.0]}
    monkeypatch.setattr(clock, "race", lambda *_: fast)
    asked = []
    monkeypatch.setattr(
        checks,
        "same_bits",
        lambda call, way, repeats: asked.append(repeats) or ("" if repeats == 3 else "no"),
    )
    assert answer(norm, "right", repeats=100) == {"refused": "no", "kind": "bits"}
    assert asked == [3, 100]
    monkeypatch.setattr(clock, "race", lambda *_: {name: [0.5, 0.5, 0.5] for name in fast})
    assert "measurements" in answer(norm, "right", repeats=100)
    assert asked == [3, 100, 3]


def test_what_does_not_fit_is_unsupported(monkeypatch):
    from growtas.ops.relative_attention import cpu

    (case,) = [c for c in cases(load_space("digits"), 1, ("float32",), "cpu") if c.op == "relative_attention"]
    monkeypatch.setattr(cpu, "unsupported", lambda *_: "the head is too wide")
    asked = request(case, dispatch.place_of(cpu))
    dispatch.changed()
    try:
        assert worker.answer(asked) == {"refused": "the head is too wide", "kind": "unsupported"}
    finally:
        dispatch.changed()


def test_memory_that_does_not_suffice_is_told(norm, answer, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(calls, "make", full)
    assert answer(norm, "right")["kind"] == "memory"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_operation_passes_with_its_own_kernels(dtype):
    """All cases of the digits, in C++ where there is some, or torch against itself; no job misses a check."""
    for case in cases(load_space("digits"), 2, (dtype,), "cpu"):
        name = "cpu" if "cpu" in dispatch.OPERATIONS[case.op].backends else "torch"

        def way(case=case, name=name):
            return dispatch.assigned({case.op: name})

        for job in (*case.jobs, *case.checks):
            with way():
                call = calls.make(job, CPU, 0)
            assert len(call.step()) == 1 + len(call.leaves)
            assert checks.compare(call, way) == ""
            assert checks.same_bits(call, way, 3) == ""


def test_shadows_are_read_in_16_bits():
    from growtas import shadow

    (case,) = [c for c in cases(load_space("digits"), 2, ("bfloat16",), "cpu") if c.op == "mlp"]
    call = calls.make(case.jobs[0], CPU, 0)
    for name in ("fc1", "fc2"):
        assert shadow.read(call.leaves[name], torch.bfloat16).dtype is torch.bfloat16


# -- the parent ------------------------------------------------------------------------------------------


def tuned(case: Case, tmp_path, patience: float = 600.0) -> records.Record:
    """The record after racing one case in a process forked from this one, which has imported everything."""
    session = driver.Session(tmp_path / "record.json", CPU)
    session.race([case], {case: ["cpu"]}, 0.0, patience)
    return records.read(tmp_path / "record.json")


@pytest.mark.parametrize(
    ("prefix", "kind", "reason", "patience"),
    [
        ("crash", "crash", "its process crashed (SIGSEGV)", 600.0),
        ("hang", "hang", "it did not answer within 1 s", 1.0),
        ("wrong", "wrong", "against fp64", 600.0),
    ],
)
def test_each_is_left_out_with_one_notice_and_its_reason_kept(
    norm, fake, forked, tmp_path, capfd, prefix, kind, reason, patience
):
    fake(prefix)
    record = tuned(norm, tmp_path, patience)
    (one,) = record["measurements"]
    assert one["kind"] == kind and reason in one["refused"]
    assert record["choices"] == {} and record["finished"] == [norm.identity()]
    told = [line for line in capfd.readouterr().err.splitlines() if "left out" in line]
    assert len(told) == 1 and reason in told[0] and str(norm) in told[0]


@pytest.mark.slow
def test_after_a_crash_the_next_class_runs(norm, monkeypatch):
    """The first worker is a process that imports everything; the second is forked."""
    child = Child("cpu", 600.0)
    try:
        assert child.ask(request(norm, "fake_backends:crash"))["kind"] == "crash"
        monkeypatch.setattr(children.subprocess, "Popen", Forked)
        assert "measurements" in child.ask(request(norm, "fake_backends:printing"))
        child.failures = 3
        assert child.ask(request(norm, "fake_backends:right")) == {
            "refused": "not tried after 3 crashes",
            "kind": "untried",
        }
    finally:
        child.close()


# -- decisions -------------------------------------------------------------------------------------------


def measured(size: str, low: float, *, op="layer_norm", name="cpu", step: float | None = None, **more):
    ratios = {"forward": (low + 0.1, low, low + 0.2)}
    ratios["step"] = ratios["forward"] if step is None else (step + 0.1, step, step + 0.2)
    head = {"op": op, "dtype": "float32", "class": "256", "size": size, "rows": 1, "backend": name}
    return {**head, **ratios, **more}


@pytest.mark.parametrize(
    ("measurements", "chosen"),
    [
        ([measured("a", 1.2), measured("b", 1.04)], "cpu"),
        ([measured("a", 1.2), measured("b", 0.9)], "cpu"),  # as fast as torch at one size
        ([measured("a", 1.9), measured("b", 0.7)], None),  # slower at one size beyond doubt
        ([measured("a", 0.92), measured("b", 0.92)], None),  # within the margin everywhere
        ([measured("a", 1.2, step=0.9)], None),  # forward wins, the training step loses
        ([measured("a", 1.2, name="triton"), measured("a", 1.5, name="cuda")], "cuda"),
        ([measured("a", 2.0), {**measured("b", 2.0), "refused": "wrong"}], None),
        ([], None),
    ],
)
def test_a_backend_enters_only_where_it_wins_on_the_whole_and_loses_nowhere(measurements, chosen):
    expected = {"layer_norm": {"float32": {"256": chosen}}} if chosen else {}
    assert decide.decide(measurements) == expected


def test_what_is_timed_within_a_branch_has_a_smaller_margin():
    close = {"own_us": [1, 1]}
    for op, chosen in (("linear_gelu", True), ("norm_qkv", True), ("mlp", False)):
        assert bool(decide.decide([measured("a", 0.92, op=op, **close)])) is chosen


@pytest.mark.parametrize("name", ["triton", "cublas"])
def test_the_kernels_of_a_gpu_pass_the_checks_of_a_race(name):
    """Interpreted, at small sizes: results, gradients and bits, on NaN memory, with NaN around the slices."""
    pytest.importorskip("triton")
    if not dispatch.interpreted():
        pytest.skip("Triton compiles for the GPU in this process")
    space = SearchSpace(
        "small", embed_dim=(16, 32), mlp_ratio=(1, 2), num_heads=(1, 2), depth=(1, 2), image_size=8,
        patch_size=4, in_channels=1, head_dim=16, max_relative_position=1,
    )  # fmt: skip
    raced = set()
    for case in cases(space, 2, ("float16",), "cuda"):
        if name not in dispatch.OPERATIONS[case.op].backends:
            continue

        def way(op=case.op):
            return dispatch.assigned({op: name})

        for job in (case.jobs[0], *case.checks[:1]):
            with way():
                call = calls.make(job, CPU, 0)
            assert checks.compare(call, way) == ""
            assert checks.same_bits(call, way, 2) == ""
        raced.add(case.op)
    assert raced == {op for op, found in dispatch.OPERATIONS.items() if name in found.backends}
