"""Printed objects, and those that end a notebook cell: a few lines, never the data."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import growtas
from growtas import version
from growtas.analysis.base import Table
from growtas.analysis.report import Report
from growtas.comparing.report import Comparison
from growtas.comparing.summary import Summary
from growtas.searching.result import Evaluation, SearchResult
from growtas.training.config import TrainConfig
from growtas.training.data import load_splits
from growtas.training.run import Run

SPACE = growtas.load_space("ofa-mobilenetv3")
CONFIG = TrainConfig(space=SPACE.name, data="digits", epochs=3)


def printed() -> list:
    found = Evaluation(SPACE.largest(), 71.25, 7_000_000, 300_000_000, 3)
    summary = Summary(rows=(None,) * 500, times=(None,) * 5, clock="cpu", missing=())
    return [
        SPACE,
        SPACE.largest(),
        CONFIG,
        Run(Path("runs/x"), CONFIG, SPACE, 10, 36, {"train": 1151}, {"growtas": "1"}),
        load_splits("digits", growtas.load_space("digits")),
        found,
        SearchResult(found, (found,) * 1000, 70.0, None, Path("runs/x/search.jsonl")),
        summary,
        Comparison(Path("runs/c"), "| a |\n" * 500, summary, (Path("a"),) * 9),
        Report(Path("report.html"), {}, {}),
        Table(("a", "b"), ((1, 2),) * 5000),
    ]


@pytest.mark.parametrize("value", printed(), ids=lambda value: type(value).__name__)
def test_an_object_is_printed_in_a_few_lines(value):
    assert type(value).__name__ in repr(value)
    assert len(repr(value)) < 600 and "object at 0x" not in repr(value)


def test_what_is_printed_says_what_matters():
    by_name = {type(value).__name__: value for value in printed()}
    assert repr(by_name["TrainConfig"]) == "TrainConfig(space='ofa-mobilenetv3', data='digits', epochs=3)"
    assert "uniform" not in repr(by_name["Run"]) and "'runs/x'" in repr(by_name["Run"])
    assert repr(by_name["Splits"]) == "Splits('digits': 10 classes, images 1,151 train, 287 search, 359 test)"
    assert "71.25 %" in repr(by_name["SearchResult"]) and "best of 1000" in repr(by_name["SearchResult"])
    html = by_name["Table"]._repr_html_()
    assert html.count("<tr>") == 11 and "4,990 more rows" in html
    assert "&lt;b&gt;" in Table(("<b>",), ())._repr_html_()


def git(folder, *arguments):
    options = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    subprocess.run(["git", "-C", folder, *options, *arguments], check=True, capture_output=True)


def test_the_commit_is_that_of_the_checkout_that_holds_the_package(tmp_path, monkeypatch):
    package = tmp_path / "growtas"
    for folder in ("growtas", "kernels", "csrc"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "version.py").write_text("")
    monkeypatch.setattr(version, "__file__", str(package / "version.py"))
    commit = version.commit.__wrapped__
    assert commit() is None  # no checkout
    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "first")
    assert commit() is None  # an install in another project's checkout
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "second")
    clean = commit()
    assert len(clean) == 12 and int(clean, 16)
    (tmp_path / "kernels" / "version.py").write_text("changed")
    assert commit() == f"{clean}+"
    monkeypatch.setenv("PATH", "/nonexistent")
    assert commit() is None  # no git
