"""The benchmark of reading and augmenting images."""

from __future__ import annotations

import importlib
import json


def test_it_compares_ways_of_reading(capsys, monkeypatch):
    benchmark = importlib.import_module("input")
    monkeypatch.setattr(benchmark, "BATCH", 2)
    settings = ["--images", "4", "--size", "60x40", "--rounds", "3", "--seconds", "0", "--json"]
    assert benchmark.main(settings) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rates = found["images_per_second"]
    assert rates["timm, everything"]["times"] == 1
    assert {"growtas, packed raw, cropped bytes", "torchvision v2, everything"} <= rates.keys()
    assert all(0 < each["low"] <= each["median"] <= each["high"] for each in rates.values())
    assert found["bytes_per_image"]["packed raw"] > 3 * 60 * 40
