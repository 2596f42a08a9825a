"""The settings of a comparison, kept in its folder, and what follows from them for each cell."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from growtas import atomic
from growtas.comparing.limits import Limit, read_limits
from growtas.comparing.specs import MethodSpec, read_methods
from growtas.errors import UsageError, command
from growtas.jobs import folder
from growtas.jobs.folder import FORMAT, QUIET, read_json, write_json
from growtas.space import MobileNetSpace, load_space, seeded_rng
from growtas.training.config import RUNTIME, TrainConfig

if TYPE_CHECKING:
    from growtas.space import SearchSpace
    from growtas.subnet import Subnet

PLAN_NAME, SPACE_NAME, RATE_NAME, RESULT_NAME = "compare.json", "space.yaml", "rate.json", "cell.json"
RATE_SEED = 1_000_000  # of the runs that choose the learning rate: no compared run has it
RATE_FACTORS = (0.5, 1.0, 2.0)
MOST_FURTHER_RATES = 4  # tried beyond these factors while the best lies at an end
_DRAWS = 50  # tries per wanted subnet of a group


@dataclass(frozen=True, repr=False)
class Plan:
    """The settings that every cell of a comparison shares.

    Args:
        path: the folder.
        space: the search space.
        data: as :func:`growtas.train` names it.
        epochs: of training; the recipe's where None.
        lr: ``auto``, ``recipe`` or a number as text.
        settings: further settings of training.
        limits: of the searches.
        subnets: random subnets evaluated per group.
        population, generations: of each search.
        images: classes and sizes of the splits.
    """

    path: Path
    space: SearchSpace
    data: str
    epochs: int | None
    lr: str
    settings: Mapping[str, Any] = field(hash=False)
    limits: tuple[Limit, ...]
    subnets: int
    population: int
    generations: int
    images: Mapping[str, int] = field(hash=False)

    def __repr__(self) -> str:
        return f"Plan({str(self.path)!r}: space {self.space.name!r}, data {self.data!r})"

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return self.images["num_classes"]

    def identity(self) -> dict[str, Any]:
        """The settings that may not change in a folder, as plain values, space aside."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        del values["path"], values["space"]
        limits = [str(limit) for limit in self.limits]
        return values | {"settings": dict(self.settings), "limits": limits, "images": dict(self.images)}

    def recipe(self) -> dict[str, Any]:
        """The settings of training with which a plain run would be made, every default filled in."""
        values = self.config({}).to_dict()
        own = ("out", "seed", "method", *RUNTIME)
        return {name: value for name, value in values.items() if name not in own}

    def config(self, own: Mapping[str, Any]) -> TrainConfig:
        """The settings of a run, completed by the recipe. Args: own: of its method, its seed and its rate."""
        epochs = {} if self.epochs is None else {"epochs": self.epochs}
        shared = {"space": self.space.name, "data": self.data, **epochs, **QUIET, **self.settings}
        config = TrainConfig.from_dict({**shared, **own})
        return config.resolved(convolutional=isinstance(self.space, MobileNetSpace))

    # -- cells -------------------------------------------------------------------------------------------

    def cell_path(self, spec: MethodSpec, seed: int) -> Path:
        """The folder of a cell's run."""
        return self.path / "cells" / spec.folder / f"seed-{seed}"

    def rate_path(self, rate: float) -> Path:
        """The folder of a run that tries a learning rate."""
        return self.path / "rates" / f"lr-{rate:g}"

    def cell_config(self, spec: MethodSpec, seed: int, rate: float) -> TrainConfig:
        """The settings of a first-phase run: those of a seed's methods differ only in what spec gives."""
        return self.config({"method": spec.name, "seed": seed, "lr": rate, **spec.settings()})

    def rate_config(self, rate: float) -> TrainConfig:
        """The settings of a run that tries a learning rate."""
        return self.cell_config(MethodSpec("uniform"), RATE_SEED, rate)

    # -- learning rate -----------------------------------------------------------------------------------

    def rates(self) -> tuple[float, ...]:
        """The learning rates to try; one alone needs no trial."""
        if self.lr not in ("auto", "recipe"):
            return (float(self.lr),)
        rate = self.config({}).lr
        return tuple(factor * rate for factor in RATE_FACTORS) if self.lr == "auto" else (rate,)

    def rate(self) -> float | None:
        """The learning rate of every cell; None where it is still to be chosen."""
        rates = self.rates()
        if len(rates) == 1:
            return rates[0]
        file = self.path / RATE_NAME
        return read_json(file, lambda chosen: float(chosen["lr"])) if file.exists() else None

    # -- subnets -----------------------------------------------------------------------------------------

    def group_subnets(self, group: int) -> dict[str, list[Subnet]]:
        """The subnets of a group that every cell is judged by: ``random``, ``smallest``, ``largest``.

        The random ones differ from each other and depend on the space and the number alone.
        """
        rng = seeded_rng("compared subnets", group)
        drawn: dict[Subnet, None] = {}
        wanted = min(self.subnets, self.space.count((group,)))
        for _ in range(_DRAWS * wanted):
            if len(drawn) == wanted:
                break
            drawn[self.space.sample(rng, (group,))] = None
        ends = {name: [getattr(self.space, name)((group,))] for name in ("smallest", "largest")}
        return {"random": list(drawn), **ends}


# -- files -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Recorded:
    """The comparison that a folder holds.

    Args:
        plan: the common settings.
        methods: every one that was ever asked for here, the baseline first.
        seeds: the most that were ever asked for.
        recipe: the settings of training as they were when the folder was begun.
    """

    plan: Plan
    methods: tuple[MethodSpec, ...]
    seeds: int
    recipe: Mapping[str, Any] = field(hash=False)

    def __repr__(self) -> str:
        return f"Recorded({self.plan}, {', '.join(map(str, self.methods))}, seeds: {self.seeds})"

    def cells(self) -> Iterator[tuple[MethodSpec, int]]:
        """Method and seed of every cell."""
        return ((spec, seed) for spec in self.methods for seed in range(self.seeds))


def read_plan(path: Path) -> Recorded | None:
    """The comparison that a folder holds; None where it holds nothing yet.

    Raises:
        UsageError: it is a file, or holds something else.
        GrowtasError: it cannot be understood.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; choose a folder for the comparison.")
    file = path / PLAN_NAME
    if not file.is_file():
        held = [e.name for e in path.iterdir() if not e.name.startswith(".")] if path.is_dir() else []
        if set(held) - {SPACE_NAME}:
            raise UsageError(
                f"{path} holds no comparison but {', '.join(sorted(held)[:3])}; choose another folder."
            )
        return None

    def build(data: dict[str, Any]) -> Recorded:
        settings = dict(data["settings"])
        limits = read_limits(settings.pop("limits"))
        plan = Plan(path=path, space=load_space(path / SPACE_NAME), limits=limits, **settings)
        return Recorded(plan, read_methods(data["methods"]), data["seeds"], data["recipe"])

    return folder.read_plan(file, "comparison", build)


def comparison_in(path: Path) -> Recorded:
    """The comparison of a folder. Raises: UsageError: it holds none."""
    recorded = read_plan(path)
    if recorded is None:
        raise UsageError(f"{path} holds no comparison; make one with: {command('compare', path)}")
    return recorded


def write_plan(recorded: Recorded) -> None:
    """Write the plan and its space. Raises: GrowtasError: the disk is full."""
    plan = recorded.plan
    atomic.make_folder(plan.path)
    if not (plan.path / SPACE_NAME).exists():
        atomic.write_text(plan.path / SPACE_NAME, yaml.safe_dump(plan.space.to_dict(), sort_keys=False))
    data = {
        "format": FORMAT,
        "settings": plan.identity(),
        "recipe": dict(recorded.recipe),
        "methods": [str(spec) for spec in recorded.methods],
        "seeds": recorded.seeds,
    }
    write_json(plan.path / PLAN_NAME, data)


def check_recipe(recorded: Recorded) -> None:
    """Raises: UsageError: this version would train with other settings than the folder was begun with."""
    plan, now = recorded.plan, recorded.plan.recipe()
    settled = {"lr"} if plan.lr != "recipe" and plan.rate() is not None else set()
    for name, value in recorded.recipe.items():
        if name in now and name not in settled and now[name] != value:
            raise UsageError(
                f"The recipe has changed since {plan.path} was begun: {name} was {value} and is {now[name]}. "
                "Runs of both would not be comparable; use the version of growtas that began it, or "
                "another folder."
            )


def check_same(old: Plan, new: Plan) -> None:
    """Raises: UsageError: the plans differ; the sentence says in what."""
    if old.space.to_dict() != new.space.to_dict():
        raise UsageError(
            f"{old.path} compares methods on the space {old.space.name!r}, which is not the "
            f"{new.space.name!r} that was given. Choose another folder; nothing was changed."
        )
    before, now = old.identity(), new.identity()
    for name, value in before.items():
        if now[name] != value:
            raise UsageError(
                f"{old.path} compares methods with {name}={_text(value)}, but {name}={_text(now[name])} was "
                "given. Methods and seeds can be added to a folder; for other settings choose another one. "
                "Nothing was changed."
            )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def merged(old: Recorded, methods: tuple[MethodSpec, ...], seeds: int) -> Recorded:
    """The same comparison with the methods and seeds that were asked for added."""
    added = tuple(spec for spec in methods if spec not in old.methods)
    return dataclasses.replace(old, methods=old.methods + added, seeds=max(old.seeds, seeds))
