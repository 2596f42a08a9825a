"""The documentation says what the code does: its examples run, its tables are the code's."""

from __future__ import annotations

import csv
import dataclasses
import doctest
import inspect
import re
from pathlib import Path

import pytest

import growtas
import growtas.export
from growtas import cli, demo, doctor
from growtas.listing import CLASSES, spaces
from growtas.methods import method_names
from growtas.methods.base import _REGISTRY
from growtas.methods.schedule import stage_groups, transition_epochs
from growtas.methods.shrinking import LARGEST_RATE, phases
from growtas.ops.dispatch import BACKENDS, OPERATIONS
from growtas.space import preset_names
from growtas.training import TrainConfig
from growtas.training.data import rendered
from growtas.training.log import read_log
from growtas.training.recipes import NAMED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def table(path: Path, first_cell: str) -> list[list[str]]:
    """The rows below the header that begins with a cell, as lists of cells."""
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_cell} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_readmes_example_runs(tmp_path, monkeypatch, capsys):
    """In small: two epochs of few images in place of 40, and eight evaluations in place of a thousand."""
    few = dataclasses.replace(rendered.RENDERED["glyphs"], test_per_class=5)
    monkeypatch.setitem(rendered.RENDERED, "glyphs", few)
    monkeypatch.chdir(tmp_path)
    (source,) = blocks(ROOT / "README.md", "python")
    small = source.replace("epochs=40", "epochs=2").replace('data="glyphs"', 'data="glyphs:620"')
    small = small.replace("max_params=60_000", "max_params=60_000, population=4, generations=2")
    assert small.count("epochs=2") == small.count("glyphs:620") == small.count("generations=2") == 1
    names: dict = {}
    exec(compile(small, "README.md", "exec"), names)
    assert names["found"].best.params <= 60_000
    assert str(names["found"].best.subnet) in capsys.readouterr().out
    assert (tmp_path / "runs" / "glyphs" / "best" / "model.safetensors").is_file()


def test_the_table_of_backends_is_the_codes():
    rows = {row[0].strip("`"): row[1:] for row in table(DOCS / "kernels.md", "operation")}
    assert rows == {
        operation: ["yes" if name in kernels else "" for name in BACKENDS]
        for operation, kernels in ((name, found.backends) for name, found in OPERATIONS.items())
    }


def test_the_table_of_presets_is_the_codes():
    rows = {row[0].strip("`"): row[1:] for row in table(DOCS / "search-spaces.md", "preset")}
    assert set(rows) == set(preset_names())
    for name, (count, low, high, sizes) in rows.items():
        space = growtas.load_space(name)
        ends = growtas.cost.parameter_range(space, CLASSES.get(name, 1000))
        assert (count, low, high) == (f"{space.count():,}", *(f"{end:,}" for end in ends))
        patch = getattr(space, "patch_size", None)
        assert sizes == (f"{space.image_size}, {patch}" if patch else f"{space.image_size}")


def test_the_table_of_recipes_is_the_codes():
    rows = {row[0].strip("`"): row[1:] for row in table(DOCS / "recipes.md", "setting")}
    recipes = {None: {}, **{name: {"recipe": name} for name in NAMED}}
    assert len(rows) > 20
    for column, (name, given) in enumerate(recipes.items()):
        space = "ofa-mobilenetv3" if name == "ofa" else "autoformer-tiny"
        config = TrainConfig.from_dict({"space": space, "data": "folder:/data", **given}).resolved(
            name == "ofa"
        )
        assert {key: row[column] for key, row in rows.items()} == {
            key: str(getattr(config, key)) for key in rows
        }
        plain = TrainConfig(space, data="folder:/data").resolved(name == "ofa").to_dict()
        told = {key for key, value in config.to_dict().items() if value != plain[key]}
        assert told <= {*rows, "recipe", "gradients"}


def test_the_spaces_page_runs(tmp_path):
    (yaml,) = blocks(DOCS / "search-spaces.md", "yaml")
    (tmp_path / "my-space.yaml").write_text(yaml)
    assert growtas.load_space(tmp_path / "my-space.yaml").name == "my-space"
    session = "".join(blocks(DOCS / "search-spaces.md", "python"))
    test = doctest.DocTestParser().get_doctest(session, {}, "search-spaces.md", None, None)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_tables_of_stages_and_transitions_are_the_codes():
    for row in table(DOCS / "training.md", "`--stages`")[:3]:
        stages = [tuple(int(group) for group in cell.split(", ")) for cell in row[1:] if cell]
        assert tuple(stages) == stage_groups(int(row[0].split()[0]), 3)
    sizes = {f"size-aware, {name}": size for name, size in (("T", 9e6), ("S", 34e6), ("B", 75e6))}
    rows = table(DOCS / "training.md", "T = 500")
    assert [row[0] for row in rows] == ["midpoint", *sizes]
    for rule, first, second in rows:
        expected = transition_epochs(rule.split(",")[0], 3, 500, sizes.get(rule, 0.0))
        assert (int(first), int(second)) == expected


def test_the_table_of_methods_is_the_codes():
    rows = {row[0].strip("`") for row in table(DOCS / "methods.md", "`--method`")}
    assert rows == set(method_names())


def test_a_method_of_ones_own_is_the_pages_thirty_lines(tmp_path):
    (source,) = blocks(DOCS / "add-a-method.md", "python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 30
    try:
        exec(compile(source, "add-a-method.md", "exec"), {"__name__": __name__})
        run = growtas.train(
            "digits", method="nearing", method_options="most=60", epochs=2, eval_every=0, out=tmp_path / "run"
        )
        subnets = [record["subnets"][0] for record in read_log(run.path, "step")]
    finally:
        _REGISTRY.pop("nearing", None)
    sizes = [growtas.cost.parameters(growtas.Subnet.parse(text), run.space, 10) for text in subnets]
    distances = [abs(size - 25_000) for size in sizes]
    assert len(distances) == 70 and sum(distances[35:]) < sum(distances[:35]) / 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_and_options_exist(page):
    """Every GROWTAS_ variable is read somewhere; every option of a growtas command is one of its verbs'."""
    folders = ("growtas", "kernels", "building")
    sources = [*ROOT.glob("*.py"), *(p for d in folders for p in (ROOT / d).rglob("*.py"))]
    code = "\n".join(path.read_text() for path in sources)
    text = page.read_text()
    for variable in set(re.findall(r"GROWTAS_[A-Z_]+", text)):
        assert variable in code, variable
    verbs = "train|search|latency|extract|evaluate|export|transfer|finetune|emit|compare|report|demo|doctor"
    for command in re.findall(rf"growtas (?:{verbs}) .*", text):
        assert set(re.findall(r"(?<![\w-])--([a-z0-9-]+)", command)) <= OPTIONS, command
    if page.name in OPTION_PAGES:
        assert set(re.findall(r"`--([a-z0-9-]+)", text)) <= OPTIONS


OPTION_PAGES = (
    *(
        "training.md",
        "search.md",
        "export.md",
        "methods.md",
        "add-a-method.md",
        "your-images.md",
        "compare.md",
        "results.md",
        "comparisons.md",
        "report.md",
    ),
    *("growtas-plus.md", "prenas.md", "focusformer.md", "once-for-all.md"),
)


def test_the_table_of_phases_is_the_codes():
    space = growtas.load_space("ofa-mobilenetv3")
    rows = table(DOCS / "once-for-all.md", "phase")
    for row, phase in zip(rows, phases(space), strict=True):
        name, epochs, rate, warmup, subnets, drawn = row
        lists = {
            "K": (space.kernel, phase.kernels),
            "D": (space.depth, phase.depths),
            "E": (space.expand, phase.expands),
        }
        expected = {letter: choices[-count:] for letter, (choices, count) in lists.items()}
        for part in drawn.split(", "):
            letter, *values = part.split()
            assert tuple(map(int, values)) == expected[letter], part
        assert (name, float(epochs), float(warmup), int(subnets)) == (
            phase.name,
            phase.epochs,
            phase.warmup,
            phase.subnets,
        )
        assert float(rate) == pytest.approx(phase.rate * LARGEST_RATE, rel=0.01)


COMPARISONS = (DOCS / "comparisons.md").read_text()
COMPARED = ROOT / "benchmarks" / "results" / "compare"


def test_the_tables_of_comparisons_are_the_reports():
    reports = [p.read_text() for p in COMPARED.glob("*/report.md")]
    page, own, rest = re.split(
        r"(?=^\| method, epochs \|)|(?=^In these runs)", COMPARISONS, flags=re.MULTILINE
    )
    rows = [line for line in (page + rest).splitlines() if line.startswith("|")]
    assert len(rows) > 40 and own.count("\n|") == 7  # the one table that is no report's
    for row in rows:
        assert any(row in report for report in reports), row


def test_the_table_of_plateaus_is_the_committed_one():
    found: dict[str, list[dict[str, str]]] = {}
    for file in COMPARED.glob("*/plateau.csv"):
        for row in csv.DictReader(file.open()):
            found.setdefault(f"{row['method']}, {row['epochs']}", []).append(row)
    shown = table(DOCS / "comparisons.md", "method, epochs")
    assert len(shown) == 6
    for name, left, top1 in shown:
        runs = sorted(found[name.replace("`", "")], key=lambda run: int(run["seed"]))
        epochs = [run["left_at_epoch"] for run in runs]
        assert left == ", ".join(f"{float(epoch):.1f}" if epoch else "never" for epoch in epochs)
        if top1:
            assert top1 == ", ".join(f"{float(run['top1_all_groups']):.1f}" for run in runs)


@pytest.mark.parametrize("data", ["digits", "glyphs"])
def test_the_epochs_of_the_rules_are_the_committed_ones(data):
    rows = list(csv.DictReader((COMPARED / f"transitions-{data}" / "transitions.csv").open()))
    for rule in ("interference", "plateau"):
        runs = [row for row in rows if row["method"] == f"growtas:transition={rule}"]
        assert {run["opened_by"] for run in runs} == {rule} and len(runs) == {"digits": 7, "glyphs": 5}[data]
        epochs = ", ".join(run["began_at_epoch"] for run in sorted(runs, key=lambda run: int(run["seed"])))
        assert f"{epochs} ({rule}" in COMPARISONS


def options() -> set[str]:
    """The options of all verbs, as they are written in a shell."""
    functions = (TrainConfig, growtas.search, growtas.finetune, growtas.emit, growtas.compare, growtas.report)
    functions += (growtas.transfer, growtas.export.convert, growtas.latency)
    functions += (cli.extract, growtas.evaluate, spaces, demo.demo, doctor.main, growtas.data_pack)
    parameters = [each for function in functions for each in inspect.signature(function).parameters.values()]
    names = {each.name for each in parameters} | {"resume", "config", "dry_run", "help"}
    names |= {f"latency_{name}" for name in ("on", "batch", "threads")}  # of growtas search
    names |= {f"no_{each.name}" for each in parameters if isinstance(each.default, bool)}
    return {name.replace("_", "-") for name in names}


OPTIONS = options()


def test_titles_name_the_thing_itself():
    """No docstring or heading opens with What or Whether."""
    folders = ("growtas", "kernels", "benchmarks", "building", "tests")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
    assert len(sources) > 400 and len(pages) > 30
    for paths, opening in ((sources, r'"""Wh(at|ether)\b'), (pages, r"(?m)^#+ Wh(at|ether)\b")):
        found = [path.name for path in paths if re.search(opening, path.read_text())]
        assert not found, found
