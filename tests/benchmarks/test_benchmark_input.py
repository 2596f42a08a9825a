"""The benchmark of reading and augmenting images."""

from __future__ import annotations

import importlib

from common import input_report, results


def test_it_compares_ways_of_reading(capsys, monkeypatch, tmp_path):
    benchmark = importlib.import_module("input")
    monkeypatch.setattr(benchmark, "BATCH", 2)
    out = tmp_path / "machine" / "input.json"
    settings = ["--images", "4", "--size", "60x40", "--rounds", "3", "--seconds", "0", "--out", str(out)]
    assert benchmark.main(settings) == 0
    found = results.read(out)
    rates = {record["way"]: record for record in found["records"]}
    assert rates[input_report.BASELINE]["times"] == 1
    assert {*input_report.STORES, "torchvision v2, everything"} <= rates.keys()
    assert all(0 < each["low"] <= each["median"] <= each["high"] for each in rates.values())
    assert found["bytes_per_image"]["packed raw"] > 3 * 60 * 40
    assert input_report.BASELINE in capsys.readouterr().out
    ours = rates["growtas, JPEG files, cropped bytes"]["times"]
    assert f"reads {ours:.1f} times" in input_report.reading(tmp_path)
    assert len(input_report.cores(tmp_path).splitlines()) == 2 + len(input_report.STORES) + 2
