"""Tables, analyses kept as JSON, remembered evaluations, figures as SVG, the page."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import torch

import growtas
from growtas.analysis import evaluations
from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import new_figure, save, svg_text
from growtas.analysis.evaluations import top1_of
from growtas.analysis.page import Page, Picture, Section, label, page_text
from growtas.errors import GrowtasError
from growtas.searching.evaluate import Evaluator
from growtas.space import seeded_rng
from growtas.training.data import load_splits

NUMBERS = Table.of(("init", "seed", "top1"), [["standard", 0, 1 / 3], ["pretrained", 0, None]])


class Example(Analysis):
    name, title, question, published = "figure-x", "Title", "What?", "That."

    @classmethod
    def make(cls, workspace):
        return EXAMPLE

    def draw(self):
        figure, axes = new_figure(2.0)
        axes.plot([0, 1], [0.123456, 2], marker="o", label="a < b & c")
        axes.set_title("0.123456")
        axes.legend()
        return {"": Drawing(figure, "n = 2", 'a "line" & more')}

    def findings(self):
        return [f"{self.facts['n']} rows"]


EXAMPLE = Example({"numbers": NUMBERS}, {"n": 2})


def test_a_table_is_columns_and_rows():
    assert NUMBERS.column("init") == ["standard", "pretrained"]
    assert NUMBERS.where(init="pretrained", seed=0).rows == (("pretrained", 0, None),)
    read = list(csv.reader(io.StringIO(NUMBERS.csv())))
    assert read[0] == ["init", "seed", "top1"] and float(read[1][2]) == 1 / 3 and read[2][2] == ""
    with pytest.raises(KeyError, match="no column 'top5', only init, seed, top1"):
        NUMBERS.column("top5")
    with pytest.raises(ValueError, match="one value for each"):
        Table.of(("a", "b"), [[1]])


def test_an_analysis_comes_back_as_it_was():
    again = Example.from_json(EXAMPLE.to_json())
    assert again == EXAMPLE and again.tables["numbers"].rows == NUMBERS.rows


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tables": {"a": 1}, "facts": {}}', '{"tables": []}'])
def test_what_is_no_analysis_is_refused(text):
    with pytest.raises(GrowtasError, match="not an analysis"):
        Example.from_json(text)


# -- evaluations -----------------------------------------------------------------------------------------


def test_evaluations_are_made_once_and_go_on_after_a_kill(tmp_path, monkeypatch):
    torch.manual_seed(0)
    space = growtas.load_space("digits")
    net, splits = growtas.Supernet(space, 10), load_splits("digits", space)
    rng = seeded_rng("test")
    subnets = [space.sample(rng) for _ in range(4)]
    done = []

    class Counted(Evaluator):
        def top1(self, subnet):
            if len(done) == 2 and not killed:
                raise KeyboardInterrupt
            done.append(subnet)
            return super().top1(subnet)

    monkeypatch.setattr(evaluations, "Evaluator", Counted)
    log, killed = tmp_path / "new" / "log.jsonl", []
    with pytest.raises(KeyboardInterrupt):
        top1_of(net, splits, subnets, log=log)
    killed.append(True)
    with open(log, "ab") as file:
        file.write(b'{"of": "unfinished')
    found = top1_of(net, splits, [*subnets, subnets[0]], log=log)
    assert done == subnets, "each was evaluated once"
    plain = Evaluator(net, splits.test)
    assert found == [plain.top1(subnet) for subnet in [*subnets, subnets[0]]]
    assert top1_of(net, splits, subnets, log=log) == found[:4] and len(done) == 4
    assert top1_of(net, splits, subnets[:1], split="search", log=log) != [None] and len(done) == 5
    with torch.no_grad():
        for each in net.head.parameters():  # other weights: what is remembered is not theirs
            each.neg_()
    assert top1_of(net, splits, subnets[:1], log=log) == [plain.top1(subnets[0])] != found[:1]


def test_a_net_with_batchnorm_is_left_as_it_was(tmp_path):
    torch.manual_seed(0)
    net = growtas.Supernet("digits-mobilenet", 10)
    splits, subnet = load_splits("digits", net.space), net.space.smallest()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    log = tmp_path / "log.jsonl"
    with_own = top1_of(net, splits, [subnet], log=log)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    as_it_is = top1_of(net, splits, [subnet], calibrated=False, log=log)
    assert len(log.read_text().split()) and with_own != as_it_is


# -- figures and page ------------------------------------------------------------------------------------


def test_an_svg_is_small_searchable_and_can_stand_beside_others():
    (drawing,) = EXAMPLE.drawings().values()
    texts = [svg_text(drawing.figure, name, drawing.alt) for name in ("figure-1", "figure-2")]
    roots = [ET.fromstring(text) for text in texts]
    ids = [{element.get("id") for element in root.iter() if element.get("id")} for root in roots]
    assert ids[0] and not ids[0] & ids[1]
    for text, own in zip(texts, ids, strict=True):
        assert set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text)) <= own
    assert "0.123456" in texts[0] and "a &lt; b &amp; c" in texts[0], "words stay words, numbers whole"
    assert roots[0].get("aria-label") == drawing.alt and len(texts[0]) < 20_000
    (again,) = EXAMPLE.drawings().values()
    assert svg_text(again.figure, "figure-1", again.alt) == texts[0], "the same picture, the same file"


def test_a_figure_is_saved_as_svg_and_png(tmp_path):
    (drawing,) = EXAMPLE.drawings().values()
    save(drawing.figure, tmp_path / "a.svg", drawing.alt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


class Balanced(HTMLParser):
    """Every element that is opened is closed; collects addresses and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.links, self.ids, self.loads = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.loads += [attrs.get("src")] if tag in ("img", "script", "iframe") else []
        self.loads += [attrs.get("href")] if tag == "link" else []
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing():
    (drawing,) = EXAMPLE.drawings().values()
    section = Section(
        EXAMPLE.name,
        "A < B & C",
        EXAMPLE.question,
        [Picture(svg_text(drawing.figure, "figure-x", drawing.alt), "<caption>", "figures/figure-x.svg")],
        [("Some numbers", NUMBERS)],
        ["1 < 2"],
        "One.\n\nTwo.",
        ["figures/figure-x-numbers.csv"],
    )
    page = Page("On <data>", ["It is."], [section], [("table-a", "not <made>")], "growtas report", ["v1"])
    text = page_text(page)
    parser = Balanced()
    parser.feed(text)
    assert not parser.open and not parser.loads
    assert len(parser.ids) == len(set(parser.ids))
    assert {"#figure-x", "figures/figure-x.svg", "figures/figure-x-numbers.csv"} == set(parser.links)
    for shown in (
        "A &lt; B &amp; C",
        "&lt;caption&gt;",
        "1 &lt; 2",
        "<p>Two.</p>",
        "0.3333",
        "not &lt;made&gt;",
    ):
        assert shown in text
    assert "On <data>" not in text and "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)


def test_names_as_readers_know_them():
    assert [label(name) for name in ("figure-1", "figure-e", "table-a", "interference")] == [
        "Figure 1",
        "Figure E",
        "Table A",
        "Interference",
    ]
