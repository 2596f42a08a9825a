"""One self-contained HTML page of analyses: pictures inside it, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from growtas.analysis.base import Table, Value

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --accent: #0b5fa5;
  --paper: #fff; --quote: #3d4755; --code: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper); line-height: 1.55;
  font: 17px/1.55 Georgia, 'Times New Roman', serif; }
main, header, footer { max-width: 58rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 3rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 .5rem; }
h3 { font: 600 .8rem/1.4 system-ui, sans-serif; letter-spacing: .05em; text-transform: uppercase;
  color: var(--soft); margin: 1.4rem 0 .3rem; }
section { border-top: 1px solid var(--line); margin-top: 3.2rem; padding-top: 2rem; }
section > p, section > ul, .here, .paper, header p { max-width: 44rem; }
.number { font: 600 .8rem/1.4 system-ui, sans-serif; letter-spacing: .05em; text-transform: uppercase;
  color: var(--accent); margin: 0 0 .2rem; }
.question { font-style: italic; color: var(--soft); margin-top: 0; }
.paper { border-left: 3px solid var(--line); padding-left: 1rem; color: var(--quote); }
figure { margin: 1.4rem 0; }
figure svg { width: 100%; height: auto; display: block; }
.picture { overflow-x: auto; }
figcaption, .files, footer, nav, table { font: 14px/1.5 system-ui, sans-serif; }
figcaption, .files, footer { color: var(--soft); }
ul { padding-left: 1.2rem; margin: .3rem 0; }
li { margin: .25rem 0; }
nav { max-width: 44rem; margin: 2rem 0 0; }
nav a { display: grid; grid-template-columns: 6.5rem 1fr; padding: .55rem 0;
  border-top: 1px solid var(--line); }
nav i { font-style: normal; }
nav span { grid-column: 2; color: var(--soft); }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 0 0 .4rem; caption-side: top; }
th, td { padding: .22rem .8rem .22rem 0; border-bottom: 1px solid var(--line); text-align: left; }
td.n, th.n { text-align: right; }
code, pre { font: 13.5px/1.5 ui-monospace, 'DejaVu Sans Mono', monospace; }
pre { background: var(--code); padding: .8rem 1rem; overflow-x: auto; border-radius: 4px; color: var(--ink); }
footer { border-top: 1px solid var(--line); margin-top: 3.5rem; padding-top: 1.4rem; padding-bottom: 3rem; }
@media (max-width: 42rem) {
  header { padding-top: 1.5rem; }
  h1 { font-size: 1.7rem; }
  .picture { margin: 0 -1.25rem; padding: 0 1.25rem; }
  .picture svg { width: 38.7rem; }  /* as wide as it was drawn: 9 px for the smallest text */
  figure::before { content: 'Swipe to see all of it'; font: 12px/1.5 system-ui, sans-serif;
    color: var(--soft); }
  nav a { grid-template-columns: 1fr; }
  nav span { grid-column: 1; }
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ec; --soft: #a3adba; --line: #363f4b; --accent: #74b9ef;
    --paper: #14181e; --quote: #c0c8d2; --code: #1f252d; }
  svg { fill: var(--ink); }  /* what names no colour */
  svg text:is([style*='fill: #000000'], [style*='fill: #262626']) { fill: var(--ink) !important; }
  svg text[style*='fill: #cc0000'] { fill: #ff7b72 !important; }
  svg :is([style*='fill: #404040'], [style*='fill: #595959'], [style*='fill: #666666']) {
    fill: var(--soft) !important; }
  svg [style*='stroke: #000000'] { stroke: var(--ink) !important; }
  svg :is([style*='stroke: #404040'], [style*='stroke: #595959']) { stroke: var(--soft) !important; }
  svg [style*='stroke: #cc0000'] { stroke: #ff7b72 !important; }
  svg [style*='stroke: #ffffff'] { stroke: var(--paper) !important; }
  svg :not(text)[style*='fill: #ffffff'] { fill: var(--paper) !important; }
  svg :is([style*='fill: #f0f0f0'], [style*='fill: #f3f3f3'], [style*='fill: #ededed'],
    [style*='fill: #dddddd']) { fill: var(--line) !important; }
  svg [style*='fill: #cfe3f1'] { fill: #24405a !important; }
  svg :not(text)[style*='fill: #000000'] { fill: var(--ink) !important; }
}
@media print { section { break-inside: avoid-page; } nav { display: none; } }
"""


@dataclass(frozen=True)
class Picture:
    """One drawing on the page. Args: svg: its text; caption: below it; file: the same, beside the page."""

    svg: str
    caption: str
    file: str


@dataclass(frozen=True)
class Section:
    """One analysis on the page.

    Args:
        name: such as ``figure-1``; also the section's address.
        title, question: of the analysis.
        pictures: of it.
        tables: printed, by caption.
        findings: sentences from the numbers, the most important one first.
        published: the paper's finding, paragraphs apart by blank lines.
        numbers: CSV files beside the page.
    """

    name: str
    title: str
    question: str
    pictures: Sequence[Picture]
    tables: Sequence[tuple[str, Table]]
    findings: Sequence[str]
    published: str
    numbers: Sequence[str]


@dataclass(frozen=True)
class Page:
    """The whole page.

    Args:
        title: its heading.
        intro: paragraphs below it.
        sections: in order.
        missing: names of analyses that are not there, and why.
        command: that makes the page again.
        foot: lines at its end.
    """

    title: str
    intro: Sequence[str]
    sections: Sequence[Section]
    missing: Sequence[tuple[str, str]]
    command: str
    foot: Sequence[str]


def label(name: str) -> str:
    """The name of an analysis as a reader knows it: ``Figure 1``, ``Table A``, ``Interference``."""
    kind, _, which = name.partition("-")
    return f"{kind.capitalize()} {which.upper()}".strip()


def page_text(page: Page) -> str:
    """The page as HTML."""
    links = "\n".join(
        f'<a href="#{escape(s.name)}"><b>{escape(label(s.name))}</b><i>{escape(s.title)}</i>'
        f"<span>{escape(s.findings[0])}</span></a>"
        for s in page.sections
    )
    intro = "\n".join(f"<p>{escape(text)}</p>" for text in page.intro)
    sections = "\n".join(_section(section) for section in page.sections)
    foot = "\n".join(f"<p>{escape(text)}</p>" for text in page.foot)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(page.title)}</h1>
{intro}
<nav>
{links}
</nav>
</header>
<main>
{sections}
{_missing(page.missing)}
</main>
<footer>
<p>This command makes every number of this page; repeated with the same folder, it draws the page again from
the numbers kept there:</p>
<pre>{escape(page.command)}</pre>
{foot}
</footer>
</body>
</html>
"""


def _section(section: Section) -> str:
    pictures = "\n".join(_picture(picture) for picture in section.pictures)
    tables = "\n".join(_table(caption, table) for caption, table in section.tables)
    findings = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in section.findings)
    published = "\n".join(f"<p>{escape(part.strip())}</p>" for part in section.published.split("\n\n"))
    files = [*(picture.file for picture in section.pictures), *section.numbers]
    links = " · ".join(f'<a href="{escape(file)}">{escape(file.rpartition("/")[2])}</a>' for file in files)
    return f"""<section id="{escape(section.name)}">
<p class="number">{escape(label(section.name))}</p>
<h2>{escape(section.title)}</h2>
<p class="question">{escape(section.question)}</p>
{pictures}
{tables}
<div class="here">
<h3>Findings</h3>
<ul>
{findings}
</ul>
</div>
<div class="paper">
<h3>In the paper</h3>
{published}
</div>
<p class="files">{links}</p>
</section>"""


def _picture(picture: Picture) -> str:
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
    return f'<figure>\n<div class="picture">{picture.svg}</div>\n{caption}\n</figure>'


def _table(caption: str, table: Table) -> str:
    numeric = [
        all(isinstance(v, int | float) or v is None for v in (row[at] for row in table.rows))
        for at in range(len(table.columns))
    ]
    kinds = ['class="n"' if number else "" for number in numeric]
    head = "".join(f"<th {k}>{escape(name)}</th>" for k, name in zip(kinds, table.columns, strict=True))
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td {k}>{escape(cell_text(v))}</td>" for k, v in zip(kinds, row, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="wide"><table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def cell_text(value: Value) -> str:
    """A value as a reader's table shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else value


def _missing(missing: Sequence[tuple[str, str]]) -> str:
    if not missing:
        return ""
    items = "\n".join(f"<li>{escape(label(name))}: {escape(reason)}</li>" for name, reason in missing)
    return f'<section id="missing">\n<h2>Not on this page</h2>\n<ul>\n{items}\n</ul>\n</section>'
