"""The benchmark of a small net's step."""

from __future__ import annotations

import json

import cpu_overhead
import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_it_compares_cpu_time_in_turns(capsys):
    assert cpu_overhead.main(["--subnet", "smallest", "--batch", "2", "--rounds", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["lower"] <= found["ratio"] <= found["upper"]
    assert 0 < found["growtas"] < 5 and 0 < found["timm"] < 5


def test_it_refuses_no_rounds(capsys):
    with pytest.raises(SystemExit):
        cpu_overhead.main(["--rounds", "0"])
    assert "must be 1 or more" in capsys.readouterr().err
