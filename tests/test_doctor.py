"""The report of growtas doctor, and its exit status."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from growtas import __version__, doctor, native
from growtas.ops import dispatch

RUN = "import sys; from growtas import doctor; sys.exit(doctor.main({require!r}, as_json={json}))"


@pytest.fixture
def run(run_script, monkeypatch):
    """The doctor in a process of its own, where environment variables are read afresh."""
    for name in list(os.environ):
        if name.startswith("GROWTAS_B"):
            monkeypatch.delenv(name)

    def run(require=(), as_json=False, **environment):
        return run_script(RUN.format(require=list(require), json=as_json), **environment)

    return run


@pytest.fixture
def facts(monkeypatch):
    for name in ("GROWTAS_BACKEND", "GROWTAS_BUILD"):
        monkeypatch.delenv(name, raising=False)
    return doctor.collect()


def test_the_facts(facts):
    assert facts == json.loads(json.dumps(facts))
    assert (
        facts["versions"]["growtas"] == __version__
        and facts["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    assert set(facts["backends"]) == set(dispatch.BACKENDS)
    assert facts["backends"]["torch"]["ok"] and facts["backends"]["cpu"]["ok"]
    assert facts["cpu"]["vector_level"] == native.load("cpu").vector_level()
    assert facts["cpu"]["shares_torch_threads"]
    assert facts["environment"]["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"]
    assert len(facts["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    for state in facts["backends"].values():
        assert state["ok"] or (state["reason"] and state["remedy"])


def test_looking_changes_nothing(facts):
    before = torch.get_num_threads()
    doctor.collect()
    assert torch.get_num_threads() == before


def test_the_vector_level_is_the_processors():
    try:
        flags = open("/proc/cpuinfo").read()
    except OSError:
        pytest.skip("needs /proc/cpuinfo")
    level = native.load("cpu").vector_level()
    if "x86-64-v4" in native.metadata("cpu")["target_clones"]:
        v3 = all(f" {f}" in flags for f in ("avx2", "fma", "bmi2"))
        v4 = v3 and all(f" {f}" in flags for f in ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))
        assert level.startswith("x86-64-v4" if v4 else "x86-64-v3" if v3 else "baseline")


def test_all_is_well_unless_something_was_asked_for(facts):
    assert doctor.complaints(facts) == []
    assert doctor.complaints(facts, ["torch", "cpu"]) == []
    text = doctor.report(facts, [])
    assert text.endswith("All that was asked for is there.")
    for word in (
        "torch   available",
        "cpu     available",
        "vectors",
        "GPUs",
        torch.__version__.split("+")[0],
    ):
        assert word in text


def broken(facts, name, **environment):
    state = {"ok": False, "reason": f"{name} is out", "remedy": "Mend it."}
    return facts | {"backends": facts["backends"] | {name: state}, "environment": environment}


def test_what_was_asked_for_and_is_missing_is_told(facts):
    for name in ("triton", "cuda"):
        sick = broken(facts, name)
        assert doctor.complaints(sick) == []
        assert doctor.complaints(sick, [name]) == [f"--require asks for {name}, and {name} is out. Mend it."]
        for variable in ("GROWTAS_BACKEND", "GROWTAS_BUILD"):
            (told,) = doctor.complaints(broken(facts, name, **{variable: name}))
            assert told == f"{variable} asks for {name}, and {name} is out. Mend it."
            assert doctor.complaints(broken(facts, name, **{variable: "auto"})) == []
        text = doctor.report(sick, doctor.complaints(sick, [name]))
        assert f"not available: {name} is out" in text and "Problem: --require" in text
    (told,) = doctor.complaints(broken(facts, "cpu"))
    assert told.startswith("The C++ module is broken: cpu is out")


def test_a_build_without_a_device_is_all_that_growtas_build_asks(facts):
    sick = broken(facts, "cuda", GROWTAS_BUILD="cuda")
    sick["backends"]["cuda"]["build"] = {"nvcc": "13.0", "archs": ["80"]}
    assert doctor.complaints(sick) == []
    assert doctor.complaints(sick, ["cuda"])


def test_sources_newer_than_the_build_are_told(facts, monkeypatch):
    if facts["backends"]["cpu"].get("warning"):
        pytest.fail(facts["backends"]["cpu"]["warning"])  # the tests themselves would run old code
    monkeypatch.setattr(doctor, "sources_digest", lambda root: "0" * 16)
    stale = doctor.collect()
    assert "built from older sources" in stale["backends"]["cpu"]["warning"]
    assert "older sources" in doctor.report(stale, [])
    assert doctor.complaints(stale) == []


def test_a_request_that_is_met(run):
    done = run(GROWTAS_BACKEND="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "backends" in done.stdout


def test_no_request_makes_the_doctor_crash(run):
    done = run(["cpu", "cdua"], as_json=True, GROWTAS_BACKEND="nonsense")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    problems = json.loads(done.stdout)["problems"]
    assert len(problems) == 2
    assert any("GROWTAS_BACKEND asks for 'nonsense', which is no backend." in told for told in problems)
    start = "--require asks for 'cdua', which is no backend. Did you mean 'cuda'"
    assert any(told.startswith(start) for told in problems)


def test_without_torch_the_doctor_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.main() == 1
    assert "Problem: torch does not import" in capsys.readouterr().out
