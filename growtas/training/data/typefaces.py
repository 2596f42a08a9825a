"""``typefaces``: rendered characters whose class is the font, with other characters to test on.

The distortions were chosen on runs of uniform sampling over 12 epochs on the space of the glyphs, one seed
each, for a task on which size matters. With more of them (neighbours on every second side, noise of 0.05 to
0.12, shifts of 2.5 pixels, scales of 0.85 to 1.1) the smallest and the largest subnet reached 29.8 and 36.8 %
of the search split (27.4 and 30.4 % of the test split) at a rate of 3e-3, 31.8 and 34.8 % (27.1 and 29.3 %)
at 6e-3; docs/typefaces.md has those of the constants below. Chance is 4.8 %.
"""

from __future__ import annotations

import string

from growtas.training.data.fonts import CHARACTERS, TEST_FONTS, TRAINING_FONTS
from growtas.training.data.rendering import Rendering

TEST_CHARACTERS = "".join(
    alphabet[1::3] for alphabet in (string.digits, string.ascii_uppercase, string.ascii_lowercase)
)
"""Every third digit and every third letter, in both cases: a capital and its small letter look alike."""

_FONTS = tuple(sorted(TRAINING_FONTS + TEST_FONTS))

TYPEFACES = Rendering(
    name="typefaces",
    fonts={"train": _FONTS, "test": _FONTS},
    characters={
        "train": "".join(each for each in CHARACTERS if each not in TEST_CHARACTERS),
        "test": TEST_CHARACTERS,
    },
    labels="font",
    search_per_class=60,
    test_per_class=300,
    em=22.0,
    half_turn=0.05,  # 5.7 degrees: slanted fonts are to stay so
    shear=0.03,
    scale=(0.9, 1.1),
    shift=2.0,
    paper=(0.0, 0.35),
    ink=(0.55, 1.0),
    clutter=0.3,
    clutter_em=(0.8, 1.1),
    clutter_ink=(0.2, 0.5),
    noise=(0.02, 0.08),
)
