"""``growtas.compare``: plan, learning rate, cells and report put together."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.bounds import EPOCHS, GENERATIONS, RUNS, SOME_PROCESSES, SUBNETS, Bound, bounded
from growtas.comparing.limits import default_limits, read_limits
from growtas.comparing.plan import (
    MOST_FURTHER_RATES,
    PLAN_NAME,
    RATE_NAME,
    RATE_SEED,
    RESULT_NAME,
    Plan,
    Recorded,
    check_recipe,
    check_same,
    merged,
    read_plan,
    write_plan,
)
from growtas.comparing.report import Comparison, make_report
from growtas.comparing.specs import MethodSpec, check_known, common_settings, read_methods
from growtas.errors import GrowtasError, UsageError, command
from growtas.jobs import Job, Placement, Runner
from growtas.jobs.folder import (
    check_counts,
    check_method,
    read_json,
    space_and_data,
    write_json,
    written,
)
from growtas.locks import locked
from growtas.space import MobileNetSpace, load_space

if TYPE_CHECKING:
    from growtas.space import SearchSpace

METHODS = ("uniform", "growtas", "growtas+", "prenas", "focusformer")
CONVOLUTIONAL_METHODS = ("uniform", "growtas", "shrinking")
_COUNTS = {"seeds": 1, "epochs": 1, "subnets": 1, "population": 2, "generations": 1}


@bounded(
    seeds=RUNS,
    epochs=EPOCHS,
    subnets=SUBNETS,
    population=Bound(2, SUBNETS.most),
    generations=GENERATIONS,
    jobs=SOME_PROCESSES,
    ranks=SOME_PROCESSES,
)
def compare(
    out: str | os.PathLike,
    space: str | Path | SearchSpace | None = None,
    data: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    lr: str | float | None = None,
    limits: Sequence[str | float] | None = None,
    subnets: int | None = None,
    population: int | None = None,
    generations: int | None = None,
    settings: Sequence[str] | None = None,
    jobs: int | None = None,
    device: str = "auto",
    ranks: int = 1,
    slurm: Sequence[str] | None = None,
    report_only: bool = False,
) -> Comparison:
    """Train methods on the same data with paired seeds, and tell where they differ.

    Every method is trained with seeds 0, 1, ... on the same data, epochs, recipe and learning rate; runs of
    one seed begin with the same weights and see the same images in the same order. Each is judged on the
    test split by the same random subnets of every group with the weights they inherit, and by the best
    subnet that a search on the search split finds under each limit. A call with the same folder continues
    what was stopped, and can add methods and seeds; what is finished is not trained again.

    Args:
        out: the folder; everything is written there.
        space: a preset or the path of a YAML file (the preset that is called like the data).
        data: as in growtas.train (digits where no space is given either).
        methods: NAME or NAME:key=value,key=value with settings of training or of the method; the first is
            the baseline (uniform, growtas, growtas+, prenas and focusformer; of a convolutional space
            uniform, growtas and shrinking).
        seeds: how many (5).
        epochs: of every run (the recipe's).
        lr: a number; recipe; or auto: the best of half, once and twice the recipe's for the uniform method,
            and beyond while the best is at an end, on the search split, with a seed of its own (auto).
        limits: of the searches, numbers of parameters such as 6e4, or macs=1e6 (a quarter, half and three
            quarters of the way from the smallest to the largest subnet's parameters).
        subnets: random subnets evaluated per group (10).
        population: of each search (40).
        generations: of each search (5).
        settings: of training, the same for every method, such as batch_size=64.
        jobs: runs at once (as many as GPUs; on a CPU as many as cores for small nets, else 1; with Slurm all
            of them).
        device: cpu, cuda for all visible GPUs, each job on one of its own, or one GPU such as cuda:1; auto is
            cuda where there are GPUs.
        ranks: processes that each run trains with, as torchrun starts them, each on a GPU of its own.
        slurm: submit every run to Slurm with these options of sbatch, such as time=240 partition=gpu; time is
            needed.
        report_only: train nothing, make the tables again.

    Returns:
        The tables and their files, and the cells that failed: those do not keep the others from going on.

    Raises:
        UsageError: the folder holds something else or a comparison with other settings, or a method, a
            setting or a limit is not possible. Nothing was trained.
        GrowtasError: a trial of a learning rate failed, or the disk is full.
        growtas.training.guards.Interrupted: Ctrl-C or SIGTERM; call it again to continue.

    Example:
        >>> compare("runs/digits", methods=["uniform", "growtas"], seeds=3)  # doctest: +SKIP
    """
    path = Path(out)
    if report_only:
        recorded = read_plan(path)
        if recorded is None:
            raise UsageError(f"There is no comparison in {path}: it has no {PLAN_NAME}.")
        return make_report(recorded)
    values = {
        "space": space,
        "data": data,
        "epochs": epochs,
        "lr": lr,
        "limits": limits,
        "subnets": subnets,
        "population": population,
        "generations": generations,
        "settings": settings,
    }
    check_counts({"seeds": seeds, **values}, _COUNTS)
    placement = Placement.of(jobs, device, ranks, slurm)
    if seeds is not None and seeds > RATE_SEED:
        raise UsageError(f"seeds={seeds} is over {RATE_SEED:,}, where the seeds of trials begin.")
    before = written(path / PLAN_NAME)
    recorded, specs, count = planned(path, values, methods, seeds)
    again = f"Continue with: {command('compare', path)}{placement.words()}"
    runner = Runner(placement.launcher(recorded.plan.space, path / "slurm"), again)
    where = {"device": placement.device, "ranks": ranks}
    with locked(path / ".lock", f"Another process is comparing methods in {path}; wait for it."):
        if written(path / PLAN_NAME) != before:
            recorded, specs, count = planned(path, values, methods, seeds)
        write_plan(recorded)
        _choose_rate(recorded.plan, runner, where)
        failed = runner.run(_cells(recorded.plan, specs, count, where), "compare", "cell")
        return make_report(recorded, failed)


def planned(
    path: Path, values: Mapping[str, Any], methods: Sequence[str] | None, seeds: int | None
) -> tuple[Recorded, tuple[MethodSpec, ...], int]:
    """The comparison with what was asked for added, and the methods and seeds to be run now.

    Args:
        path: the folder.
        values: arguments of :func:`compare` that all cells share, None where not given.
        methods, seeds: as of :func:`compare`.

    Raises:
        UsageError: as :func:`compare`; nothing was written.
    """
    old = read_plan(path)
    plan = _new_plan(path, values, old.plan if old else None)
    if old is None:
        default = CONVOLUTIONAL_METHODS if isinstance(plan.space, MobileNetSpace) else METHODS
        specs = read_methods(default if methods is None else methods)
        seeds = seeds or 5
        recorded = Recorded(plan, specs, seeds, plan.recipe())
    else:
        check_recipe(old)
        check_same(old.plan, plan)
        specs = old.methods if methods is None else read_methods(methods)
        seeds = seeds or old.seeds
        recorded = merged(dataclasses.replace(old, plan=plan), specs, seeds)
    check_known(specs)
    for spec in specs:
        configs = [plan.cell_config(spec.first or spec, 0, plan.rates()[0])]
        if spec.first is not None:
            configs.append(dataclasses.replace(configs[0], method=spec.name, **spec.settings()))
        for config in configs:
            check_method(config, plan.space, plan.images, path)
    for limit in plan.limits:
        limit.check(plan.space, plan.num_classes)
    return recorded, specs, seeds


def _new_plan(path: Path, values: Mapping[str, Any], old: Plan | None) -> Plan:
    """The given values, then those that the folder holds, then the defaults."""
    given = {name: value for name, value in values.items() if value is not None}
    if "lr" in given:
        given["lr"] = _rate_text(given["lr"])
    if "limits" in given:
        given["limits"] = read_limits(given["limits"])
    if "settings" in given:
        given["settings"] = common_settings(given["settings"])
    if old is not None:
        if "space" in given:
            given["space"] = load_space(given["space"])
        return dataclasses.replace(old, **given)
    given["space"], given["data"] = space_and_data(values["space"], values["data"])
    defaults = {"epochs": None, "lr": "auto", "settings": {}, "limits": (), "subnets": 10, "population": 40}
    plan = Plan(path=path, images={"num_classes": 2}, **{**defaults, "generations": 5, **given})
    images = _images(plan)
    if "limits" not in given:
        plan = dataclasses.replace(plan, limits=default_limits(plan.space, images["num_classes"]))
    return dataclasses.replace(plan, images=images)


def _rate_text(lr: str | float) -> str:
    text = str(lr)
    if text in ("auto", "recipe"):
        return text
    try:
        if float(text) > 0:
            return f"{float(text):g}"
    except ValueError:
        pass
    raise UsageError(f"lr={lr!r} is not possible; it must be auto, recipe or a number above 0.")


def _images(plan: Plan) -> dict[str, int]:
    from growtas.training.data import splits_of

    return splits_of(plan.config({}), plan.space).summary()


# -- jobs ------------------------------------------------------------------------------------------------


def _job(plan: Plan, name: str, work: str, path: Path, after: str | None = None, **arguments: Any) -> Job:
    """A job that makes the result in a folder."""
    output, done = path.parent / f"{path.name}.output.txt", (path / RESULT_NAME).exists()
    arguments = {"out": str(plan.path), **arguments}
    return Job(name, f"growtas.comparing.cell:{work}", arguments, output, after, done)


def _cells(plan: Plan, specs: Sequence[MethodSpec], seeds: int, where: Mapping[str, Any]) -> list[Job]:
    """The cells, seed by seed, so that pairs are complete early; a first phase before its second.

    Args:
        plan, specs, seeds: of the comparison.
        where: device and ranks of each.
    """
    wanted = dict.fromkeys(each for spec in specs for each in (spec.first, spec) if each is not None)
    return [
        _job(
            plan,
            f"{spec} seed {seed}",
            "run_cell",
            plan.cell_path(spec, seed),
            None if spec.first is None else f"{spec.first} seed {seed}",
            method=str(spec),
            seed=seed,
            **where,
        )
        for seed in range(seeds)
        for spec in wanted
    ]


def _choose_rate(plan: Plan, runner: Runner, where: Mapping[str, Any]) -> None:
    """Train the uniform method at every rate to try, and keep the best: the first among equals.

    While the best is the lowest or the highest that was tried, the next one beyond it is tried too.
    """
    if plan.rate() is not None:
        return
    reached = _try_rates(plan, plan.rates(), runner, where)
    for _ in range(MOST_FURTHER_RATES):
        best = max(reached, key=reached.get)
        further = {min(reached): best / 2, max(reached): best * 2}.get(best)
        if further is None:
            break
        reached |= _try_rates(plan, [further], runner, where)
    tried = [{"lr": rate, "top1": top1} for rate, top1 in sorted(reached.items())]
    best = max(tried, key=lambda each: each["top1"])
    write_json(plan.path / RATE_NAME, {**best, "tried": tried, "seed": RATE_SEED, "split": "search"})


def _try_rates(
    plan: Plan, rates: Sequence[float], runner: Runner, where: Mapping[str, Any]
) -> dict[float, float]:
    """The mean accuracy that each learning rate reaches, after training what is not there yet."""
    jobs = [
        _job(plan, f"lr {rate:g}", "try_rate", plan.rate_path(rate), rate=rate, **where) for rate in rates
    ]
    for name, reason in runner.run(jobs, "learning rate", "cell").items():
        raise GrowtasError(f"The trial of {name} failed: {reason} Give lr=NUMBER to do without trials.")
    return {
        rate: read_json(plan.rate_path(rate) / RESULT_NAME, lambda trial: float(trial["top1"]))
        for rate in rates
    }
