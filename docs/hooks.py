"""MkDocs hooks: add the report page, drawn from its committed numbers, and the root's pages to the site."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / "benchmarks" / "results" / "report-digits"
ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")


def report_files() -> Iterator[tuple[str, bytes]]:
    """``growtas report`` of the committed numbers: the page, its pictures and tables, by path in the site."""
    import growtas

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        out = Path("runs/evidence")  # stands in the page as the command that makes it again
        shutil.copytree(NUMBERS, out / "report" / "parts", ignore=shutil.ignore_patterns("*.md"))
        made = growtas.report(out=out, data="digits", device="cpu")
        yield "report-digits/index.html", made.path.read_bytes()
        for path in (out / "figures").iterdir():
            yield f"report-digits/figures/{path.name}", path.read_bytes()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root of the repository, and the report."""
    for name in ROOT_PAGES:
        text = re.sub(r"\]\(docs/", "](", (ROOT / name).read_text())
        files.append(File.generated(config, name, content=text))
    for path, content in report_files():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ lead to the same content in the site."""
    up = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace(
        f"]({up}../benchmarks/results/report-digits/README.md", f"]({up}report-digits/index.html"
    )
    for name in ROOT_PAGES:
        markdown = markdown.replace(f"]({up}../{name}", f"]({up}{name}")
    return markdown
