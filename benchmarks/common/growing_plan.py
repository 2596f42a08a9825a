"""The plan of the map that benchmarks/growing.py runs: when does growing from small to large help?

A :class:`Setting` is one comparison, in a folder of its own; a :class:`Batch` is a part of it that runs at
once. Batches run in the order of :data:`BATCHES`, seeds from 0, all methods of a seed before the next seed,
so that what is finished when the time is over is whole. Nothing here depends on a result, but for what is
amended.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from growtas.space import SearchSpace, load_space

UNIFORM, TWO, THREE = "uniform", "growtas", "growtas:stages=3"
MAP = (UNIFORM, TWO, THREE)
COARSE, DECISIVE = "coarse", "decisive"
AMENDED = "amended"  # added after the first results were seen: in no pool

JUDGED = {"subnets": 3, "population": 8, "generations": 2}
"""How cells are judged: random subnets of each group besides the smallest and the largest, and the size of
each search. Training takes most of a cell's time."""

MEASUREMENTS = 4  # of interference, after the first one

NARROW, WIDE = (32, 40, 48), (12, 30, 48)
"""Widths of 1 : 1.5 and 1 : 4; the preset's are 24, 36 and 48."""


@dataclass(frozen=True)
class Setting:
    """The settings that the runs of one comparison share.

    Args:
        key: its name, and that of its folder.
        lr, epochs: of training.
        data: as :func:`growtas.train` names it.
        space: a preset.
        widths: embed_dim of the space in place of the preset's.
        warmup: epochs of warm-up; the recipe's where None.
    """

    key: str
    lr: float
    epochs: int
    data: str = "glyphs"
    space: str = "glyphs"
    widths: tuple[int, ...] | None = None
    warmup: float | None = None

    def search_space(self) -> SearchSpace:
        """The preset, with its widths where they are others."""
        space = load_space(self.space)
        if self.widths is None:
            return space
        name = f"{self.space}-{'-'.join(map(str, self.widths))}"
        return dataclasses.replace(space, name=name, embed_dim=self.widths, super_embed_dim=None)

    @property
    def wrong_labels(self) -> bool:
        """True where some training images have a wrong label on purpose."""
        return "label_noise" in self.data

    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`growtas.compare`, without folder, methods and seeds."""
        warmup = {} if self.warmup is None else {"warmup_epochs": self.warmup}
        return {
            "space": self.search_space(),
            "data": self.data,
            "epochs": self.epochs,
            "lr": self.lr,
            "settings": {"interference_every": self.epochs // MEASUREMENTS, "log_steps": 0, **warmup},
            **JUDGED,
        }


@dataclass(frozen=True)
class Batch:
    """Runs of one setting.

    Args:
        setting: its key.
        stage: ``coarse``, ``decisive`` or ``amended``.
        pairs: seeds, from 0; those that an earlier batch ran are not run again.
        methods: as ``growtas compare`` names them, the baseline first.
    """

    setting: str
    stage: str
    pairs: int
    methods: tuple[str, ...] = MAP


LONG_WARMUP = "glyphs-lr1.2e-2-12-warmup4"

SETTINGS = (
    # rates and lengths
    *(
        Setting(f"glyphs-lr{rate}-{epochs}", float(rate), epochs)
        for epochs in (12, 40, 120)
        for rate in ("1.5e-3", "3e-3", "6e-3", "1.2e-2")
        if epochs < 120 or rate in ("3e-3", "6e-3")
    ),
    # ratios of widths: 1 : 2 is glyphs-lr6e-3-40
    Setting("glyphs-narrow-40", 6e-3, 40, widths=NARROW),
    Setting("glyphs-wide-40", 6e-3, 40, widths=WIDE),
    # fewer images for as many steps, and wrong labels
    Setting("glyphs-4000-160", 6e-3, 160, data="glyphs:4000"),
    Setting("glyphs-noise0.2-40", 6e-3, 40, data="glyphs:label_noise=0.2"),
    Setting("glyphs-noise0.4-40", 6e-3, 40, data="glyphs:label_noise=0.4"),
    # the second data set
    *(
        Setting(f"typefaces-lr{rate}-{epochs}", float(rate), epochs, data="typefaces", space="typefaces")
        for epochs in (12, 40)
        for rate in ("3e-3", "6e-3", "1.2e-2")
    ),
    # a third of the run as warm-up in place of a tenth
    Setting(LONG_WARMUP, 1.2e-2, 12, warmup=4),
)

TRANSITIONS = (UNIFORM, "growtas:transition=10", "growtas:transition=30")
"""The first stage a quarter and three quarters of 40 epochs; ``growtas`` has half of them."""

MECHANISM = (
    UNIFORM,
    "uniform:group_weights=5,5,2",  # as many steps of each group as growtas takes, in no order
    "uniform:group_weights=17,5,2",  # the same for three stages
    "growtas:stages=1,2/0,1,2",  # large first
)
_, SHUFFLED_TWO, SHUFFLED_THREE, REVERSED = MECHANISM
ALONE = (  # group 0: with every step, and with as many as uniform sampling gives it
    UNIFORM,
    "uniform:group_weights=1,0,0",
    "uniform:epochs=13,group_weights=1,0,0",
)
NEIGHBOURS = (
    UNIFORM,
    "uniform:distill=inplace,sandwich=true",
    "prenas",
    "focusformer",
    "growtas+",
    "growtas+:lr=1.5e-3",  # at a twentieth of the rate, the default, it moves next to nothing
)

BATCHES = (
    *(Batch(f"glyphs-lr{rate}-12", COARSE, 3) for rate in ("6e-3", "1.2e-2", "3e-3", "1.5e-3")),
    Batch("typefaces-lr6e-3-12", COARSE, 3),
    Batch(LONG_WARMUP, AMENDED, 3),
    Batch("glyphs-lr1.2e-2-12", AMENDED, 3, MECHANISM),
    Batch("glyphs-lr6e-3-40", COARSE, 3),
    Batch(LONG_WARMUP, AMENDED, 8),
    Batch("glyphs-lr6e-3-40", COARSE, 3, MECHANISM),
    Batch("glyphs-lr6e-3-40", COARSE, 3, ALONE),
    Batch("typefaces-lr6e-3-40", COARSE, 3),
    Batch("glyphs-lr3e-3-40", COARSE, 3),
    Batch("glyphs-wide-40", COARSE, 3),
    Batch("glyphs-lr1.2e-2-40", COARSE, 3),
    *(Batch(f"typefaces-lr{rate}-12", COARSE, 3) for rate in ("3e-3", "1.2e-2")),
    Batch("glyphs-noise0.4-40", COARSE, 3),
    Batch("glyphs-lr6e-3-40", COARSE, 3, TRANSITIONS),
    Batch("glyphs-noise0.4-40", AMENDED, 3, MECHANISM),
    Batch("glyphs-lr6e-3-40", COARSE, 3, NEIGHBOURS),
    Batch("glyphs-narrow-40", COARSE, 3),
    Batch("glyphs-4000-160", COARSE, 3),
    Batch("glyphs-lr1.2e-2-40", COARSE, 3, MECHANISM),
    Batch("typefaces-lr6e-3-40", COARSE, 3, MECHANISM),
    Batch("typefaces-lr3e-3-40", COARSE, 3),
    Batch("glyphs-lr1.5e-3-40", COARSE, 3),
    Batch("glyphs-noise0.2-40", COARSE, 3),
    Batch("typefaces-lr1.2e-2-40", COARSE, 3),
    # growtas and uniform differ with a deviation of about 1.25 points at 6e-3 and 0.7 at 3e-3
    Batch("glyphs-lr3e-3-40", DECISIVE, 10),
    Batch("glyphs-lr6e-3-120", COARSE, 3),
    Batch("glyphs-lr3e-3-40", AMENDED, 10, MECHANISM),
    Batch("glyphs-lr6e-3-40", DECISIVE, 27),
    Batch("glyphs-lr3e-3-120", COARSE, 3),
    Batch("glyphs-lr6e-3-40", DECISIVE, 27, MECHANISM),
)

_PLANNED = tuple(each for each in SETTINGS if each.key != LONG_WARMUP)

POOLS = {
    "short": tuple(each.key for each in _PLANNED if each.epochs == 12),
    "long": tuple(each.key for each in _PLANNED if each.epochs > 12 and each.lr < 1.2e-2),
    "long, highest rate": tuple(each.key for each in _PLANNED if each.epochs > 12 and each.lr == 1.2e-2),
}
"""Settings whose pairs are judged together: three pairs of one setting show little."""

ORDER = "order"
ORDERED = tuple(
    dict.fromkeys(each.setting for each in BATCHES if REVERSED in each.methods and each.stage != AMENDED)
)
"""The pool for the controls of order, and its settings."""

FAMILY = (
    *((pool, method, UNIFORM) for pool in POOLS for method in (TWO, THREE)),
    (ORDER, TWO, SHUFFLED_TWO),
    (ORDER, THREE, SHUFFLED_THREE),
    (ORDER, TWO, REVERSED),
)
"""The planned tests, all on the smallest group: a pool, a method, and the one that it is compared with.
Holm's correction is over all of them, run or not."""

RIGHT_LABELS = "long, right labels"
UNPLANNED = tuple((RIGHT_LABELS, method, UNIFORM) for method in (TWO, THREE))
"""Compared after results were seen, so without a test: the long pool without its wrong labels."""

POOLED = {
    **POOLS,
    ORDER: ORDERED,
    RIGHT_LABELS: tuple(each.key for each in _PLANNED if each.key in POOLS["long"] and not each.wrong_labels),
}
"""The settings of every pool, also of those that were not planned."""


def setting(key: str) -> Setting:
    """A setting by its key. Raises: KeyError: there is none."""
    return {each.key: each for each in SETTINGS}[key]
