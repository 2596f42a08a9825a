"""``growtas.compare``: plan, learning rate, cells and report put together."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.comparing.limits import default_limits, read_limits
from growtas.comparing.plan import (
    MOST_FURTHER_RATES,
    PLAN_NAME,
    RATE_NAME,
    RATE_SEED,
    Plan,
    Recorded,
    check_recipe,
    check_same,
    merged,
    read_json,
    read_plan,
    write_json,
    write_plan,
)
from growtas.comparing.report import Comparison, make_report
from growtas.comparing.specs import MethodSpec, check_known, common_settings, read_methods
from growtas.errors import GrowtasError, UsageError
from growtas.locks import lock
from growtas.space import load_space, preset_names
from growtas.training.embedded import data_for

if TYPE_CHECKING:
    from growtas.space import SearchSpace

METHODS = ("uniform", "growtas", "growtas+", "prenas", "focusformer")
CONVOLUTIONAL_METHODS = ("uniform", "growtas", "shrinking")
SMALL_NET = 1_000_000  # parameters; below, several runs side by side use a CPU better than one with threads
_LOCK_NAME = ".lock"


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
        jobs: runs at once (as many as cores for small nets on a CPU, else 1).
        device: such as cpu or cuda:1; auto is a GPU where there is one.
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
    _check_numbers(seeds=seeds, jobs=jobs, **values)
    recorded, specs, seeds = _plan(path, values, methods, seeds)
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        write_plan(recorded)
        at_once, threads, device = _shares(recorded.plan, jobs, device)
        again = f"Continue with: growtas compare {path}"
        _choose_rate(recorded.plan, at_once, threads, device, again)
        failed = _run_cells(recorded.plan, specs, seeds, at_once, threads, device, again)
        return make_report(recorded, failed)


def _check_numbers(**values: Any) -> None:
    least = {"seeds": 1, "jobs": 1, "epochs": 1, "subnets": 1, "population": 2, "generations": 1}
    for name, low in least.items():
        value = values[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise UsageError(f"{name}={value!r} is not possible; it must be a whole number, {low} or more.")
    if values["seeds"] is not None and values["seeds"] > RATE_SEED:
        raise UsageError(f"seeds={values['seeds']} is over {RATE_SEED:,}, where the seeds of trials begin.")


def _plan(
    path: Path, values: dict[str, Any], methods: Sequence[str] | None, seeds: int | None
) -> tuple[Recorded, tuple[MethodSpec, ...], int]:
    """The comparison with what was asked for added, and the methods and seeds to be run now."""
    old = read_plan(path)
    plan = _new_plan(path, values, old.plan if old else None)
    if old is None:
        convolutional = getattr(plan.space, "group_axis", "embed_dim") != "embed_dim"
        default = CONVOLUTIONAL_METHODS if convolutional else METHODS
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
    _check_runs(plan, specs)
    return recorded, specs, seeds


def _new_plan(path: Path, values: dict[str, Any], old: Plan | None) -> Plan:
    """What was given, then what the folder holds, then the defaults."""
    given = {name: value for name, value in values.items() if value is not None}
    if "lr" in given:
        given["lr"] = _rate_text(given["lr"])
    if "limits" in given:
        given["limits"] = read_limits(given["limits"])
    if "settings" in given:
        given["settings"] = common_settings(given["settings"])
    data = given.get("data") or (old.data if old else None)
    if "space" in given:
        given["space"] = load_space(given["space"])
        data = data_for(given["space"].name, data)
    elif old is None:
        data = data or "digits"
        if data not in preset_names():
            raise UsageError(f"Give space=NAME for the data {data!r}: no space is called like it.")
        given["space"] = load_space(data)
    if old is not None:
        return dataclasses.replace(old, **given)
    defaults = {"epochs": None, "lr": "auto", "settings": {}, "subnets": 10, "population": 40}
    defaults |= {"generations": 5, "data": data}
    plan = Plan(path=path, images={"num_classes": 2}, **{"limits": (), **defaults, **given})
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


def _check_runs(plan: Plan, specs: Sequence[MethodSpec]) -> None:
    """Raises: UsageError: a method, with its settings, or a limit is not possible in this space."""
    from growtas.training.loop import create_run_method
    from growtas.training.run import Run

    for spec in specs:
        configs = [plan.cell_config(spec.first or spec, 0, plan.rates()[0])]
        if spec.first is not None:
            configs.append(dataclasses.replace(configs[0], method=spec.name, **spec.settings()))
        for config in configs:
            steps = max(1, plan.images["train"] // config.batch_size)
            create_run_method(Run(plan.path, config, plan.space, plan.num_classes, steps, plan.images, {}))
    for limit in plan.limits:
        limit.check(plan.space, plan.num_classes)


def _shares(plan: Plan, jobs: int | None, device: str) -> tuple[int, int, str]:
    """Runs at once, threads of each, and the device with ``auto`` resolved."""
    from growtas import cost
    from growtas.training.distributed import choose_device

    chosen = choose_device(device)
    cores = len(os.sched_getaffinity(0))
    if jobs is None:
        largest = cost.parameters(plan.space.largest(), plan.space, plan.num_classes)
        jobs = cores if chosen.type == "cpu" and largest < SMALL_NET else 1
    return jobs, max(1, cores // jobs), str(chosen)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path / _LOCK_NAME, "w") as file:
        try:
            lock(file)
        except OSError as error:
            raise UsageError(f"Another process is comparing methods in {path}; wait for it.") from error
        yield


# -- learning rate and cells -----------------------------------------------------------------------------


def _choose_rate(plan: Plan, at_once: int, threads: int, device: str, again: str) -> None:
    """Train the uniform method at every rate to try, and keep the best: the first among equals.

    While the best is the lowest or the highest that was tried, the next one beyond it is tried too.
    """
    if plan.rate() is not None:
        return
    rates = list(plan.rates())
    reached = _try_rates(plan, rates, at_once, threads, device, again)
    for _ in range(MOST_FURTHER_RATES):
        best = max(reached, key=reached.get)
        further = {min(reached): best / 2, max(reached): best * 2}.get(best)
        if further is None:
            break
        reached |= _try_rates(plan, [further], at_once, threads, device, again)
    tried = [{"lr": rate, "top1": top1} for rate, top1 in sorted(reached.items())]
    best = max(tried, key=lambda each: each["top1"])
    write_json(plan.path / RATE_NAME, {**best, "tried": tried, "seed": RATE_SEED, "split": "search"})


def _try_rates(
    plan: Plan, rates: Sequence[float], at_once: int, threads: int, device: str, again: str
) -> dict[float, float]:
    """The mean accuracy that each learning rate reaches, after training what is not there yet."""
    from growtas.comparing.cell import RESULT_NAME
    from growtas.comparing.scheduler import Job, run_jobs

    files = {rate: plan.rate_path(rate) / RESULT_NAME for rate in rates}
    left = [
        Job(
            f"lr {rate:g}",
            (str(plan.path), "--rate", repr(rate), "--device", device),
            plan.rate_path(rate).parent / f"lr-{rate:g}.output.txt",
        )
        for rate in rates
        if not files[rate].exists()
    ]
    failed = run_jobs(left, at_once, threads, len(rates) - len(left), "learning rate", again)
    if failed:
        name, reason = next(iter(failed.items()))
        raise GrowtasError(f"The trial of {name} failed: {reason} Give lr=NUMBER to do without trials.")
    return {rate: read_json(files[rate])["top1"] for rate in rates}


def _run_cells(
    plan: Plan,
    specs: Sequence[MethodSpec],
    seeds: int,
    at_once: int,
    threads: int,
    device: str,
    again: str,
) -> dict[str, str]:
    """Run every cell that is not finished; the failed ones with their reasons."""
    from growtas.comparing.cell import RESULT_NAME
    from growtas.comparing.scheduler import Job, run_jobs

    wanted: dict[MethodSpec, None] = {}
    for spec in specs:
        if spec.first is not None:
            wanted[spec.first] = None  # where it is not compared itself, it is trained all the same
        wanted[spec] = None
    jobs, done = [], 0
    for seed in range(seeds):  # seed by seed: pairs are complete early
        for spec in wanted:
            path = plan.cell_path(spec, seed)
            if (path / RESULT_NAME).exists():
                done += 1
                continue
            arguments = (str(plan.path), "--method", str(spec), "--seed", str(seed), "--device", device)
            after = None if spec.first is None else f"{spec.first} seed {seed}"
            output = path.parent / f"{path.name}.output.txt"
            jobs.append(Job(f"{spec} seed {seed}", arguments, output, after))
    return run_jobs(jobs, at_once, threads, done, "compare", again)
