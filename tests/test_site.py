"""The documentation as a website: links, the API pages, the notebook. ``make docs`` builds it strictly."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import growtas
from growtas import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks" / "results").rglob("README.md")]
)
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
DOCUMENTED = [
    name for page in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
]


def prose(path: Path) -> str:
    """The text of a page without its code blocks, or of a notebook's Markdown cells."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The headings' anchors that GitHub and MkDocs agree on."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        words = re.sub(r"[^\w\s-]", "", title).strip().lower()
        github = words.replace(" ", "-")
        if github == re.sub(r"[-\s]+", "-", words):
            found.add(github)
    return found


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file() and ROOT in file.parents, target
        if anchor and file.suffix == ".md" and not (file.parent == DOCS / "api"):
            assert anchor in anchors(file), target


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    shown = set(re.findall(r"([\w./-]+\.(?:md|ipynb))$", text.partition("\nnav:")[2], re.MULTILINE))
    kept = {str(path.relative_to(DOCS)) for path in (*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb"))}
    assert shown == kept | {"CONTRIBUTING.md", "CHANGELOG.md"}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_api_pages_name_what_exists(name):
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        break
    assert found.__doc__


def test_every_public_name_is_documented():
    packages = (growtas, growtas.ops, growtas.analysis)
    public = {name for package in packages for name in package.__all__} - {"__version__", "analysis", "ops"}
    assert public <= {name.rpartition(".")[2] for name in DOCUMENTED}


def test_the_tutorial_of_ones_own_images_runs(tmp_path, monkeypatch):
    """In small: two epochs, and eight evaluations in the search."""
    monkeypatch.chdir(tmp_path)
    for part, count in (("train", 40), ("val", 4)):
        for shade, name in ((40, "daisy"), (200, "rose")):
            folder = tmp_path / "flowers" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (80, 72), (shade, 6 * number, 60)).save(folder / f"{number}.jpg")
    text = (DOCS / "your-images.md").read_text()
    (yaml,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "small.yaml").write_text(yaml)
    short = "--max-params 400000 --population 4 --generations 2"
    quick = {"--epochs 30": "--epochs 2", "--max-params 400000": short}
    for line in re.findall(r"^growtas .*", text, re.MULTILINE):
        for full, less in quick.items():
            line = line.replace(full, less)
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line
    (source,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(source, "your-images.md", "exec"), names)
    assert names["logits"].shape == (1, 2)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_runs_from_top_to_bottom(notebook, tmp_path, run_script):
    """Its cells are plain Python: one process executes them in order."""
    cells = json.loads(notebook.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in code))
    done = run_script(script, cwd=tmp_path, MPLBACKEND="agg")
    assert done.returncode == 0, done.stderr[-2000:]
    (difference,) = re.findall(r"largest difference of the logits: (\S+)", done.stdout)
    assert float(difference) < 1e-5
    assert list(tmp_path.iterdir()) == [script]
