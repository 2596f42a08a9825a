"""The benchmark of a search."""

from __future__ import annotations

import importlib

from common import results, search_report

from growtas.searching.evolution import EvolutionConfig


def test_it_compares_ways_of_evaluating(capsys, monkeypatch, tmp_path):
    benchmark = importlib.import_module("search")
    for name, value in (("TRAINED_ON", 90), ("STEPS", 1), ("SETTINGS", EvolutionConfig(4, 2, 2, 2, 2))):
        monkeypatch.setattr(benchmark, name, value)
    out = tmp_path / "machine" / "search.json"
    arguments = ["--images", "40", "--size", "80x60", "--rounds", "2", "--device", "cpu", "--out", str(out)]
    assert benchmark.main(arguments) == 0
    found = {record["way"]: record for record in results.read(out)["records"]}
    assert found[search_report.BASELINE]["rate"] < found[search_report.KEPT]["rate"]
    assert found[search_report.ALL]["subnets"] == found[search_report.RACED]["subnets"] == 8
    assert found[search_report.ALL]["images"] == 8 * 40
    assert search_report.KEPT in capsys.readouterr().out
    said = search_report.cost(tmp_path)
    assert "evaluated 8 subnets and ended with the same one" in said and "100 % of the images" in said
