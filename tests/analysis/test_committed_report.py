"""docs/report is what this code says about the numbers that are committed beside it."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

import pytest

from growtas.analysis import parts
from growtas.analysis.page import label

FOLDER = Path(__file__).parents[2] / "docs" / "report"
PAGE = (FOLDER / "index.html").read_text()


def committed(name):
    data = json.loads((FOLDER / "parts" / f"{name}.json").read_text())
    return parts.part(name).from_json(json.dumps(data["analysis"]))


@pytest.mark.parametrize("name", parts.part_names())
def test_the_page_says_what_the_code_says(name):
    """Drawn and told again from the kept numbers: the same sentences, captions, tables and files."""
    analysis = committed(name)
    section = PAGE[PAGE.index(f'<section id="{name}">') :].partition("</section>")[0]
    for text in (analysis.title, analysis.question, *analysis.findings(), *analysis.shown()):
        assert escape(text) in section
    for part in analysis.published.split("\n\n"):
        assert escape(part) in section
    drawings = analysis.drawings()
    for suffix, drawing in drawings.items():
        assert escape(drawing.caption) in section
        svg = FOLDER / "figures" / f"{'-'.join(filter(None, (name, suffix)))}.svg"
        assert svg.read_text().strip() in section, "the page shows the file beside it"
    assert section.count("<svg") == len(drawings)
    for table_name, table in analysis.tables.items():
        file = FOLDER / "figures" / f"{name}-{table_name.replace(' ', '-')}.csv"
        assert file.read_text() == table.csv()


def test_the_page_is_whole_and_small():
    assert [label(name) for name in parts.part_names()] == re.findall(r'<p class="number">([^<]+)</p>', PAGE)
    assert "Not on this page" not in PAGE and "base64" not in PAGE
    for link in re.findall(r'<a href="([^"#]+)"', PAGE):
        assert (FOLDER / link).is_file(), link
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert all(size < 100_000 for path, size in sizes.items() if path.name != "index.html")
    assert sizes[FOLDER / "index.html"] < 1_000_000
    assert {path.suffix for path in sizes} == {".html", ".svg", ".csv", ".json"}


def test_extending_beats_cropping_on_the_digits():
    """The paper's effect, with a margin, in the numbers of the page: its full recipe."""
    table = committed("figure-1").tables["subnets"]
    means = {
        side: sum(v := table.where(side=side).column("top1 (%)")) / len(v) for side in ("extended", "cropped")
    }
    assert means["extended"] > means["cropped"] + 25
