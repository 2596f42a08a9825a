"""The record: its key, who is looked up first, what is kept when a tuning is cut, and what is shipped."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch

from growtas import load_space
from growtas.ops import dispatch, records
from growtas.tuning import children, driver
from growtas.tuning.cases import cases
from growtas.tuning.decide import decide
from growtas.tuning.report import summaries, table

CPU = torch.device("cpu")


def record(choices: dict, key: dict | None = None) -> records.Record:
    key = records.key(CPU) if key is None else key
    return {"format": 1, "key": key, "choices": choices, "finished": [], "measurements": []}


WINS = {"mlp": {"float32": {"64": "cpu"}}, "linear": {"float32": {"64": "cpu"}}}


def test_the_users_record_comes_first(cache):
    records.write(records.path_of(records.key(CPU)), record(WINS))
    dispatch.changed()
    found = dispatch.record(CPU)
    assert found.source == "user" and found.path.is_relative_to(cache)
    with dispatch.use("auto"):
        assert dispatch.choose("linear", CPU, torch.float32, 48) == "cpu"
        assert dispatch.choose("mlp", CPU, torch.float32, 48) == "torch"  # there is no such kernel


@pytest.mark.parametrize("field", sorted(records.key(CPU)))
def test_a_change_of_the_key_puts_it_out_of_force(cache, monkeypatch, field):
    records.write(records.path_of(records.key(CPU)), record(WINS))
    other = {**records.key(CPU), field: "another"}
    monkeypatch.setattr(records, "key", lambda device: other)
    dispatch.changed()
    found = records.find(CPU)
    assert found is None or found.source == "shipped"


def test_a_torn_record_is_not_used_and_told(cache):
    path = records.path_of(records.key(CPU))
    path.parent.mkdir(parents=True)
    for torn in ('{"format": 1, "cho', "[]", '{"format": 99, "choices": {}}'):
        path.write_text(torn)
        with pytest.warns(UserWarning, match=f"{path.name} is not used"):
            assert records.find(CPU).source == "shipped"


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("GROWTAS_CACHE", str(tmp_path / "own"))
    assert records.folder() == tmp_path / "own" / "tuning"
    monkeypatch.delenv("GROWTAS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert records.folder() == tmp_path / "xdg" / "growtas" / "tuning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records.folder() == tmp_path / ".cache" / "growtas" / "tuning"


# -- shipped ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "expected", "gemms"),
    [
        ("AuthenticAMD", "amd-epyc.json", "cpu"),
        ("GenuineIntel", "cpu.json", "torch"),
        (None, "cpu.json", "torch"),
    ],
)
def test_a_processor_without_a_record_takes_its_vendors(cache, monkeypatch, vendor, expected, gemms):
    other = {**records.key(CPU), "device": "x", "vendor": vendor, "family": "0", "model": "0"}
    monkeypatch.setattr(records, "key", lambda device: other)
    dispatch.changed()
    assert dispatch.record(CPU).path.name == expected
    with dispatch.use("auto"):
        assert dispatch.choose("linear", CPU, torch.float32, 256) == gemms
        assert dispatch.choose("layer_norm", CPU, torch.float32, 256) == "cpu"
        assert dispatch.choose("relative_attention", CPU, torch.float32, 64) == "cpu"


def test_a_gpus_shipped_record_fits_its_capability_and_best_its_name(monkeypatch, tmp_path):
    def gpu(name: str, capability: str) -> dict:
        return {"type": "cuda", "device": name, "capability": capability, "driver": "1", "torch": "9"}

    for file, key in (
        ("h100", gpu("H100", "9.0")),
        ("h200", gpu("H200", "9.0")),
        ("a100", gpu("A100", "8.0")),
    ):
        records.write(tmp_path / f"{file}.json", record({}, key))
    monkeypatch.setattr(records, "SHIPPED", tmp_path)
    device = torch.device("cuda", 0)
    for asked, expected in (("H200", "h200.json"), ("H100 PCIe", "h100.json"), ("B200", None)):
        own = gpu(asked, "10.0" if asked == "B200" else "9.0") | {"torch": "2"}
        monkeypatch.setattr(records, "key", lambda device, own=own: own)
        found = records.find(device)
        assert (found and found.path.name) == expected


def test_shipped_choices_name_existing_kernels_and_follow_from_measurements():
    """A kernel may be chosen only where a committed measurement shows that it wins."""
    shipped = {path.stem: one for path, one in records.shipped()}
    measured = shipped["amd-epyc"]
    assert measured["choices"] == decide(measured["measurements"])
    assert {"key", "machine", "versions", "date", "about"} <= set(measured)
    for name, one in shipped.items():
        for op, by_dtype in one["choices"].items():
            for dtype, by_class in by_dtype.items():
                for width, choice in by_class.items():
                    assert records.name_of(choice) in dispatch.OPERATIONS[op].backends
                    where = (op, dtype, width, records.name_of(choice))
                    # cpu.json keeps some of the choices measured on the AMD processor, and says which.
                    source = measured if name == "cpu" else one
                    own = [m for m in source["measurements"] if _where(m) == where]
                    assert own and not any("refused" in m for m in own), where
                    for step in ("forward", "step"):
                        assert statistics.geometric_mean(m[step][0] for m in own) > 1, (where, step)


def _where(one: dict) -> tuple[str, ...]:
    return one["op"], one["dtype"], one["class"], one["backend"]


# -- kept class by class ---------------------------------------------------------------------------------


def fake_answers(monkeypatch, stop_at: int | None = None) -> list[str]:
    """Workers that answer at once, and Ctrl-C at some question; what they were asked."""
    asked: list[str] = []

    def ask(self, request):
        case = driver.Case.parse(request["case"])
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        asked.append(str(case))
        fast = {"forward": [1.5, 1.4, 1.6], "step": [1.5, 1.4, 1.6], "own_us": [1.0, 1.0]}
        return {"measurements": [{"size": j.name, "rows": j.batch, **fast} for j in case.jobs]}

    monkeypatch.setattr(children.Child, "ask", ask)
    return asked


def test_ctrl_c_keeps_finished_classes_and_the_next_run_goes_on(cache, monkeypatch, capsys):
    with monkeypatch.context() as first:
        fake_answers(first, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            driver.tune("digits", "cpu")
    path = records.path_of(records.key(CPU))
    kept = records.read(path)
    assert len(kept["finished"]) == 3 and kept["choices"]
    asked = fake_answers(monkeypatch)
    assert driver.tune("digits", "cpu") == path
    done = {f"{one['op']} {one['dtype']} {one['class']}" for one in kept["finished"]}
    assert asked and done.isdisjoint(asked)
    whole = records.read(path)
    assert whole["finished"][:3] == kept["finished"]
    assert dispatch.record(CPU).source == "user"  # in force at once
    asked.clear()
    copy = cache / "sent" / "mine.json"
    driver.tune("digits", "cpu", out=str(copy))
    assert records.read(copy) == records.read(path)
    assert asked == [] and "classes need no race" in capsys.readouterr().out
    driver.tune("digits", "cpu", again=True)
    assert len(asked) == len(whole["finished"])
    again = records.read(path)
    assert len(again["measurements"]) == len(whole["measurements"])  # replaced, not added


def test_another_space_adds_its_sizes_to_a_class(cache, monkeypatch):
    fake_answers(monkeypatch)
    path = driver.tune("digits", "cpu")
    before = records.read(path)["measurements"]
    driver.tune("autoformer-tiny", "cpu")
    after = records.read(path)
    assert all(one in after["measurements"] for one in before)
    assert {"64", "256", "1024"} <= {one["class"] for one in after["finished"]}


def test_a_choice_of_many_sizes_needs_all_of_them(cache, monkeypatch):
    """A class that won for one space does not stay chosen where another's sizes lose."""
    fake_answers(monkeypatch)
    driver.tune("digits", "cpu")
    session = driver.Session(records.path_of(records.key(CPU)), CPU)
    case = next(
        case for case in cases(load_space("digits"), 8, ("float32",), "cpu") if case.op == "layer_norm"
    )
    slow = {"op": case.op, "dtype": case.dtype, "class": case.width_class, "backend": "cpu", "size": "other"}
    session._keep(case, [{**slow, "rows": 1, "forward": [0.5] * 3, "step": [0.5] * 3}], 1.0)
    assert "layer_norm" not in session.record["choices"]


def test_less_memory_means_fewer_images(cache, monkeypatch):
    batches = []

    def ask(self, request):
        batches.append(request["case"]["jobs"][0]["batch"])
        if batches[-1] > 2:
            return {"refused": "it does not fit", "kind": "memory"}
        return {"refused": "no", "kind": "wrong"}

    monkeypatch.setattr(children.Child, "ask", ask)
    case = cases(load_space("digits"), 8, ("float32",), "cpu")[0]
    driver.Session(cache / "record.json", CPU).race([case], {case: ["cpu"]}, 0.0, 1.0)
    assert batches == [8, 4, 2]


def test_the_table_says_what_won_and_what_was_left_out():
    one = record({"qkv": {"float32": {"64": "cpu"}}})
    fast = {"forward": [1.5, 1.4, 1.6], "step": [1.2, 1.1, 1.3], "rows": 8, "size": "d24"}
    head = {"dtype": "float32", "class": "64", "backend": "cpu"}
    one["measurements"] = [
        {**head, "op": "qkv", **fast},
        {**head, "op": "linear", "refused": "its process crashed (SIGSEGV)", "kind": "crash"},
    ]
    lines = table(summaries(one)).splitlines()
    assert lines[1].split() == "qkv float32 to 64 cpu cpu 1.50 (1.50), 1.20 (1.20)".split()
    assert lines[2].endswith("left out: its process crashed (SIGSEGV)") and " torch " in lines[2]


@pytest.mark.slow
def test_a_real_tuning_survives_a_kill_and_auto_follows_it(cache):
    """Killed after its first class and started again; then another process chooses by the record."""
    command = [sys.executable, "-m", "growtas", "tune", "digits", "--device", "cpu", "--seconds", "0.1"]
    path = records.path_of(records.key(CPU))
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=one, **quiet)
    try:
        for _ in range(6000):
            if path.exists() and records.read(path)["finished"]:
                break
            assert process.poll() is None, "it ended before its first class"
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    first = records.read(path)["measurements"]
    done = subprocess.run(command, env=one, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    whole = records.read(path)
    assert whole["measurements"][: len(first)] == first and len(whole["finished"]) > 1
    assert not [one for one in whole["measurements"] if "refused" in one], whole["measurements"]
    code = (
        "import json, torch\nfrom growtas.ops import dispatch\n"
        "asked = json.loads(input())\nfound = dispatch.record(torch.device('cpu'))\n"
        "print(found.source, *(dispatch.choose(op, torch.device('cpu'), torch.float32, int(width)) "
        "for op, width in asked))\n"
    )
    asked = [(one["op"], one["class"]) for one in whole["finished"]]
    told = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(asked), capture_output=True, text=True
    )
    wanted = [whole["choices"].get(op, {}).get("float32", {}).get(width, "torch") for op, width in asked]
    assert told.stdout.split() == ["user", *wanted], told.stderr
