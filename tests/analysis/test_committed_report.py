"""benchmarks/results/report-digits: the report page is drawn from these numbers alone."""

from __future__ import annotations

import json
import re
import shutil
from html import escape
from pathlib import Path

import pytest

import growtas
from growtas.analysis import parts
from growtas.analysis.page import label

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results" / "report-digits"
DRAWN = ("figure-1", "table-a")


def committed(name):
    data = json.loads((FOLDER / f"{name}.json").read_text())
    return parts.part(name).from_json(json.dumps(data["analysis"]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two of the parts, copied to where the command keeps them; it trains nothing and draws them again."""
    out = tmp_path_factory.mktemp("report")
    kept = out / "report" / "parts"
    kept.mkdir(parents=True)
    for name in DRAWN:
        shutil.copy(FOLDER / f"{name}.json", kept)
    report = growtas.report(out=out, data="digits", only=DRAWN, device="cpu")
    assert tuple(report.parts) == DRAWN and not report.failed
    assert not (out / "report" / "networks").exists() and not (out / "report" / "compare").exists()
    return report.path


@pytest.mark.parametrize("name", DRAWN)
def test_the_page_shows_the_committed_numbers(made, name):
    analysis = committed(name)
    section = made.read_text().partition(f'<section id="{name}">')[2].partition("</section>")[0]
    for text in (analysis.title, analysis.question, *analysis.findings(), *analysis.shown()):
        assert escape(text) in section
    assert (made.parent / "figures" / f"{name}.svg").read_text().strip() in section
    for table_name, table in analysis.tables.items():
        file = made.parent / "figures" / f"{name}-{table_name.replace(' ', '-')}.csv"
        assert file.read_text() == table.csv()


def test_the_page_needs_nothing_from_elsewhere(made):
    page = made.read_text()
    assert [label(name) for name in DRAWN] == re.findall(r'<p class="number">([^<]+)</p>', page)
    assert (
        "<script" not in page and "base64" not in page and "http" not in re.sub(r'xmlns\S*="\S+"', "", page)
    )
    for link in re.findall(r'<a href="([^"#]+)"', page):
        assert (made.parent / link).is_file(), link


def test_every_part_is_committed_and_small():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(parts.part_names())
    assert all(path.stat().st_size < 100_000 for path in FOLDER.iterdir())
    assert all(committed(name).findings() for name in parts.part_names())


def test_extending_beats_cropping_on_the_digits():
    """The paper's effect, with a margin, in the numbers of the page: its full recipe."""
    table = committed("figure-1").tables["subnets"]
    means = {
        side: sum(v := table.where(side=side).column("top1 (%)")) / len(v) for side in ("extended", "cropped")
    }
    assert means["extended"] > means["cropped"] + 25
