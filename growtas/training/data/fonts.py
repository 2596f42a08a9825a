"""Letters and digits of matplotlib's fonts as small coverage maps, drawn from the outlines in the files.

The outlines are read with fontTools and filled here: FreeType's pixels differ between its versions and with
its hinting, while the integers of an outline do not. Only sums, products and quotients of IEEE numbers
follow, one element at a time, so that the maps are the same to the bit everywhere.
"""

from __future__ import annotations

import functools
import logging
import string
from pathlib import Path

import numpy as np

from growtas.errors import GrowtasError

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase

TEST_FONTS = (
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSerif-Italic",
    "STIXGeneralBol",
    "cmss10",
)
"""One of each family; regular, bold and slanted ones."""

TRAINING_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmb10",
    "cmr10",
    "cmti10",
    "cmtt10",
)
"""The others that hold all 62 characters. cmmi10 has old-style digits, cmsy10 calligraphic capitals and
cmex10 no letters at all, whatever their character maps say; STIXNonUni, STIXSiz and the display fonts have no
plain letters, and LastResort has one box for all."""

CELL = 30  # pixels of a map on a side, without its empty border
CELL_EM = 1.25  # what they span: the widest character, a bold oblique W, is 1.2 em wide
PIXELS_PER_EM = CELL / CELL_EM
MIDDLE_EM = 0.3  # height above the baseline of a map's middle: the cell reaches from -0.325 to 0.925
FINE = 8  # lines and columns on which a pixel is probed
CURVE_PARTS = 8  # straight parts of a curve


@functools.lru_cache(maxsize=32)
def coverage_maps(font: str) -> np.ndarray:
    """Every character of a font.

    Args:
        font: the name of a file in matplotlib's fonts, without its ending.

    Returns:
        (62, CELL + 2, CELL + 2) float32, read-only: the part of each pixel that is ink, in the order of
        CHARACTERS; centred sideways, on a common baseline, with an empty border of one pixel.

    Raises:
        GrowtasError: the file is missing or lacks a character; some systems cut matplotlib's fonts down.
    """
    maps = np.zeros((len(CHARACTERS), CELL + 2, CELL + 2), np.float32)
    for place, edges in enumerate(_outlines(font)):
        maps[place, 1:-1, 1:-1] = _filled(edges)
    maps.setflags(write=False)
    return maps


def _outlines(font: str) -> list[np.ndarray]:
    """The closed outlines of every character as (n, 4) edges x0, y0, x1, y1, in pixels of the map, y down."""
    import matplotlib
    from fontTools.pens.basePen import BasePen
    from fontTools.ttLib import TTFont, TTLibError

    class Edges(BasePen):
        """Notes straight edges in the font's own units."""

        def __init__(self, glyphs: object) -> None:
            super().__init__(glyphs)
            self.edges: list[tuple[float, float, float, float]] = []

        def _moveTo(self, point):  # noqa: N802  fontTools' name
            self._first = point

        def _lineTo(self, point):  # noqa: N802
            self.edges.append((*self._getCurrentPoint(), *point))

        def _qCurveToOne(self, control, end):  # noqa: N802
            start = last = self._getCurrentPoint()
            for part in range(1, CURVE_PARTS + 1):
                t = part / CURVE_PARTS
                u = 1 - t
                here = tuple(
                    a * u * u + 2 * b * t * u + c * t * t for a, b, c in zip(start, control, end, strict=True)
                )
                self.edges.append((*last, *here))
                last = here

        def _closePath(self):  # noqa: N802
            self.edges.append((*self._getCurrentPoint(), *self._first))

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    log = logging.getLogger("fontTools.ttLib.tables._h_e_a_d")  # complains about the date of Computer Modern
    silent, log.disabled = log.disabled, True
    try:
        with TTFont(path, lazy=True) as file:
            names, glyphs, units = file.getBestCmap(), file.getGlyphSet(), file["head"].unitsPerEm
            outlines = []
            for character in CHARACTERS:
                pen = Edges(glyphs)
                glyphs[names[ord(character)]].draw(pen)
                outlines.append(_placed(np.array(pen.edges, np.float64) / units))
    except (OSError, TTLibError) as error:
        raise GrowtasError(
            f"The glyphs need matplotlib's font {path}, which cannot be read ({error}); "
            "install matplotlib anew, from PyPI."
        ) from error
    except KeyError as error:
        raise GrowtasError(
            f"The font {path} lacks the character {character!r}; install matplotlib anew, from PyPI."
        ) from error
    finally:
        log.disabled = silent
    return outlines


def _placed(edges: np.ndarray) -> np.ndarray:
    """Edges in em, y up from the baseline, as pixels of the map, y down."""
    middle = (edges[:, 0].min() + edges[:, 0].max()) / 2
    placed = np.empty_like(edges)
    placed[:, 0::2] = (edges[:, 0::2] - middle + CELL_EM / 2) * PIXELS_PER_EM
    placed[:, 1::2] = (CELL_EM / 2 + MIDDLE_EM - edges[:, 1::2]) * PIXELS_PER_EM
    return placed


def _filled(edges: np.ndarray) -> np.ndarray:
    """The part of each pixel inside the outline, by the winding number on a grid of FINE x FINE probes.

    Args:
        edges: (n, 4) x0, y0, x1, y1 in pixels.

    Returns:
        (CELL, CELL) float32.
    """
    side = CELL * FINE
    x0, y0, x1, y1 = (edges[edges[:, 1] != edges[:, 3]] * FINE).T  # level edges cross no line
    lines = np.arange(side) + 0.5
    crossed = (np.minimum(y0, y1)[:, None] <= lines) & (lines < np.maximum(y0, y1)[:, None])
    edge, line = np.nonzero(crossed)
    across = x0[edge] + (lines[line] - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    first = np.clip(np.ceil(across - 0.5), 0, side).astype(np.int64)  # the first probe right of the crossing
    upward = np.where(y1[edge] > y0[edge], 1, -1)
    turns = np.zeros((side, side + 1), np.int64)
    np.add.at(turns, (line, first), upward)
    inside = turns.cumsum(1)[:, :side] != 0
    counts = inside.reshape(CELL, FINE, CELL, FINE).sum((1, 3))
    return (counts / FINE**2).astype(np.float32)
