"""The benchmark of averaging gradients."""

from __future__ import annotations

import importlib

import pytest
from common import reduce_report, results


@pytest.mark.slow
def test_it_compares_ways_of_averaging(capfd, monkeypatch, tmp_path):
    benchmark = importlib.import_module("reduce")
    for name, value in {"BATCH": 2, "PIXELS": 8, "CLASSES": 10, "SUBNETS": 5}.items():
        monkeypatch.setattr(benchmark, name, value)
    out = tmp_path / "machine" / "reduce.json"
    settings = ["--ranks", "2", "--space", "digits", "--count", "digits", "--rounds", "3", "--out", str(out)]
    assert benchmark.main(settings) == 0
    found = results.read(out)
    (count,) = found["counts"]
    assert count["boxes"] < count["whole"] < count["all"] and count["stage_1_boxes"] < count["boxes"]
    sent = {record["way"]: record["megabytes"] for record in found["records"]}
    assert set(sent) == set(reduce_report.WAYS)
    assert sent[reduce_report.FIND] == sent[reduce_report.STATIC] == pytest.approx(count["all"], rel=1e-4)
    assert 0 < sent[reduce_report.OURS] < sent[reduce_report.AFTER] < sent[reduce_report.FIND]
    assert sent[reduce_report.BF16] == pytest.approx(sent[reduce_report.OURS] / 2, rel=1e-4)
    for record in found["records"]:
        assert all(record[key][1] <= record[key][0] <= record[key][2] for key in ("wall", "cpu_exposed"))
    assert "digits at 8 pixels, 2 images a rank, 3 rounds" in capfd.readouterr().out
    assert len(reduce_report.exposed(tmp_path).splitlines()) == 2 + 2 + len(reduce_report.WAYS)
    assert "| `digits` " in reduce_report.sent(tmp_path)
    assert len(reduce_report.clusters(tmp_path).splitlines()) == 2 + 3


def test_the_model_of_a_ring():
    """Of 8 GPUs each sends and receives 14 eighths of the bytes."""
    assert reduce_report.ring_seconds(450e9, *reduce_report.CLUSTERS["8 GPUs, NVLink"]) == 1.75
    assert reduce_report.ring_seconds(1e9, 1, 1.0) == 0
