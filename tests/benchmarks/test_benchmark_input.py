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
    said = input_report.reading(tmp_path)
    assert f"reads {rates[f'growtas, JPEG files, {input_report.CROPS}']['times']:.1f} times" in said
    on_cpu = rates[f"growtas, packed raw, {input_report.RESIZED}"]["times"]
    assert f"({on_cpu:.1f} times if the CPU resized them)" in said
    assert len(input_report.cores(tmp_path).splitlines()) == 2 + len(input_report.STORES) + 2
