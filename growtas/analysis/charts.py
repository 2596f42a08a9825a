"""The look of the analyses' figures, and how one is saved. Imports matplotlib."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from growtas import atomic
from growtas.plotting import ACCENT, GROUP_COLOURS, STYLE

# Text stays text: small files whose words can be searched, read aloud and copied. Verdana and DejaVu have the
# same widths, and one of them is on nearly every machine.
CHART_STYLE = {
    **STYLE,
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "grid.alpha": 0.25,
}
_FONTS = "'DejaVu Sans', Verdana, sans-serif"

# Okabe and Ito's colours for what is told apart within a figure; the groups of subnets and the methods have
# theirs in growtas.plotting.
ROLE_COLOURS = {
    "extended": "#0072B2",
    "cropped": "#E69F00",
    "standard": "#0072B2",
    "pretrained": "#D55E00",
    "trained": "#666666",
    "calibrated": "#009E73",
    "as it is": "#CC79A7",
    "all tokens": "#0072B2",
    "cls": "#E69F00",
    "published": "#999999",
    "base": "#CC0000",  # the paper's red dashed line
}
_LONG_NUMBER = re.compile(r"(-?\d+\.\d{2})\d+")  # hundredths of a point are enough for a path
WIDTH = 8.6  # inches: a figure over the whole text

__all__ = ["ACCENT", "ROLE_COLOURS", "WIDTH", "group_colour", "new_figure", "save", "styled", "svg_text"]


def group_colour(number: int) -> str:
    """The colour of a group of subnets by its number, the same in every figure."""
    return GROUP_COLOURS[number % len(GROUP_COLOURS)]


def new_figure(
    height: float, rows: int = 1, columns: int = 1, width: float = WIDTH, **subplots: Any
) -> tuple:
    """A figure and its axes, to be drawn in the :func:`styled` context.

    Args:
        height, width: inches.
        rows, columns: of axes.
        subplots: further arguments of ``Figure.subplots``, such as ``sharex=True``.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **subplots)


def styled() -> Any:
    """The context in which figures of the common style are drawn and saved."""
    return matplotlib.rc_context(CHART_STYLE)


def save(figure: Figure, path: Path, alt: str) -> str:
    """Write a figure as SVG and, beside it, as PNG.

    Args:
        figure: to save.
        path: of the ``.svg`` file; the other one ends in ``.png``.
        alt: what it looks like, for who cannot see it.

    Returns:
        The text of the SVG file.
    """
    text = svg_text(figure, path.stem, alt)
    atomic.write_text(path, text)
    with styled(), atomic.replace(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
    return text


def svg_text(figure: Figure, name: str, alt: str) -> str:
    """A figure as SVG that can stand in an HTML page beside others.

    Args:
        figure: to write.
        name: that its inner names begin with, so that those of two figures of a page differ.
        alt: what it looks like, for who cannot see it.
    """
    file = io.StringIO()
    with styled():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("font-family: 'DejaVu Sans'", f"font-family: {_FONTS}")
    text = re.sub(r"<[^>]*>", lambda tag: _LONG_NUMBER.sub(r"\1", tag[0]), text)
    head, _, body = text.partition(">")
    return f'{head} role="img" aria-label={quoteattr(alt)}>\n<title>{escape(alt)}</title>{body}'
