"""``glyphs``: 62 classes of rendered characters, in other fonts to test on than to train on."""

from __future__ import annotations

from growtas.training.data.fonts import CHARACTERS, TEST_FONTS, TRAINING_FONTS
from growtas.training.data.rendering import Rendering

GLYPHS = Rendering(
    name="glyphs",
    fonts={"train": TRAINING_FONTS, "test": TEST_FONTS},
    characters={"train": CHARACTERS, "test": CHARACTERS},
    labels="character",
    search_per_class=20,
    test_per_class=100,
    em=22.0,
    half_turn=0.13,  # 15 degrees
    shear=0.2,
    scale=(0.75, 1.15),
    shift=2.5,
    paper=(0.0, 0.35),
    ink=(0.55, 1.0),
    clutter=0.8,
    clutter_em=(0.7, 1.1),
    clutter_ink=(0.3, 0.8),
    noise=(0.05, 0.15),
)
glyph_images = GLYPHS.images
contact_sheet = GLYPHS.contact_sheet
