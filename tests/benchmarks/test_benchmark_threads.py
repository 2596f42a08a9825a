"""The benchmark of threads: its records and table, with processes that answer at once."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import threads as benchmark
from common import results, threads_report

RATES = {(): "10", ("OMP_WAIT_POLICY",): "5", ("OMP_NUM_THREADS",): "20"}


def test_ways_are_compared_round_by_round(tmp_path, monkeypatch, capsys):
    asked = []

    @contextmanager
    def way(variables, threads):
        write = lambda line: asked.append((json.loads(line), threads))  # noqa: E731
        stdin = SimpleNamespace(write=write, flush=lambda: None)
        yield SimpleNamespace(stdin=stdin, stdout=SimpleNamespace(readline=lambda: RATES[tuple(variables)]))

    monkeypatch.setattr(benchmark, "way", way)
    monkeypatch.setattr(benchmark.environment, "processors", lambda: 2)
    monkeypatch.setattr(benchmark, "BUSY", "")
    out = tmp_path / "threads.json"
    assert benchmark.main(["--nets", "digits", "--rounds", "2", "--seconds", "0.5", "--out", str(out)]) == 0
    assert asked == [(["digits", 0.5], 2)] * (2 * 3 * (1 + 2)), "two loads, three ways, two rounds after one"
    records = results.read(out)["records"]
    found = {(record["busy"], record["way"]): record["times"] for record in records}
    assert found[0, threads_report.ONE] == found[2, threads_report.ONE] == 2
    assert found[0, threads_report.SLEEPING] == 0.5
    assert "5.00, 0.50 times (0.50 to 0.50)" in capsys.readouterr().out
    assert records[0]["params"] == 109_990
