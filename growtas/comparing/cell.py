"""The jobs of a comparison: train a method with a seed, evaluate and search it, or try a learning rate.

Each does what is not done yet, and ends by writing ``cell.json``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.comparing import timing
from growtas.comparing.plan import RATE_SEED, RESULT_NAME, Plan, check_recipe, comparison_in
from growtas.comparing.specs import MethodSpec
from growtas.errors import GrowtasError
from growtas.jobs.folder import QUIET, finished, read_json, train_once, write_json
from growtas.jobs.ranks import call_on_ranks
from growtas.locks import locked

if TYPE_CHECKING:
    from growtas.searching.evaluate import Evaluator
    from growtas.training.run import Run

FORMAT = 1
_LOCK_WAIT = 60.0  # seconds; a process whose parent was killed stops within a step


def run_cell(out: str, method: str, seed: int, device: str, ranks: int = 1) -> None:
    """Train, evaluate and search one method with one seed.

    Args:
        out: the comparison's folder.
        method, seed: of the cell.
        device: to compute on.
        ranks: processes that train; this one evaluates and searches.
    """
    plan, spec = _plan(out), MethodSpec.parse(method)
    path = plan.cell_path(spec, seed)

    def make() -> dict[str, Any]:
        run, time_taken = _train(plan, spec, seed, device, ranks)
        evaluator = _evaluator(run, "test")
        return {
            "format": FORMAT,
            "method": str(spec),
            "seed": seed,
            "run": run.config.to_dict() | {"out": None},
            "groups": _evaluate(plan, run, evaluator),
            "searched": [_search(plan, run, limit, seed, path, evaluator) for limit in plan.limits],
            "time": time_taken,
            "made_by": _versions(run),
        }

    _made_once(path, make)


def try_rate(out: str, rate: float, device: str, ranks: int = 1) -> None:
    """Train the uniform method with a learning rate and evaluate it on the search split."""
    from growtas.training.run import Run

    plan = _plan(out)
    path = plan.rate_path(rate)

    def make() -> dict[str, Any]:
        call_on_ranks(f"{__name__}:train_rate", {"out": out, "rate": rate, "device": device}, ranks)
        run = Run.open(path)
        groups = _evaluate(plan, run, _evaluator(run, "search"))
        top1 = math.fsum(group["top1"] for group in groups) / len(groups)
        return {"format": FORMAT, "lr": rate, "seed": RATE_SEED, "groups": groups, "top1": top1}

    _made_once(path, make)


def _plan(out: str) -> Plan:
    recorded = comparison_in(Path(out))
    check_recipe(recorded)
    return recorded.plan


def _made_once(path: Path, make: Callable[[], dict[str, Any]]) -> None:
    """Write a result that is not there yet; wait for a process that makes it and whose parent was killed."""
    busy = f"Another process is running the cell {path}; wait for it."
    with locked(path.parent / f".{path.name}.lock", busy, _LOCK_WAIT):
        if not (path / RESULT_NAME).exists():
            write_json(path / RESULT_NAME, make())


# -- training --------------------------------------------------------------------------------------------


def _train(plan: Plan, spec: MethodSpec, seed: int, device: str, ranks: int) -> tuple[Run, dict[str, Any]]:
    """The finished run of a cell, and what training it took: the first phase's time included."""
    from growtas.training.data import splits_of
    from growtas.training.ranks import choose_device
    from growtas.training.run import Run

    path, before = plan.cell_path(spec, seed), []
    if spec.first is not None:
        first = plan.cell_path(spec.first, seed)
        if not (first / RESULT_NAME).exists():
            raise GrowtasError(f"{spec} goes on from {spec.first} of seed {seed}, which is not finished.")
        before = read_json(first / RESULT_NAME, lambda cell: cell["time"]["phases"])
    splits_of(plan.config({}), plan.space)  # so that reading or rendering it does not count as training
    times = path.parent / f"{path.name}.time.json"
    if not finished(path):
        with timing.timed(times):
            given = {"out": str(plan.path), "method": str(spec), "seed": seed, "device": device}
            call_on_ranks(f"{__name__}:train_cell", given, ranks)
    return Run.open(path), timing.total(times, before) | {"device": choose_device(device).type}


def train_cell(out: str, method: str, seed: int, device: str) -> None:
    """Train one method with one seed: on one of several ranks, or alone."""
    plan, spec = _plan(out), MethodSpec.parse(method)
    path = plan.cell_path(spec, seed)
    if spec.first is None:
        config = dataclasses.replace(plan.cell_config(spec, seed, plan.rate()), device=device)
        train_once(config, plan.space, path)
    else:
        _finetune(plan.cell_path(spec.first, seed), spec, seed, path, device)


def train_rate(out: str, rate: float, device: str) -> None:
    """Train the uniform method with a learning rate: on one of several ranks, or alone."""
    plan = _plan(out)
    config = dataclasses.replace(plan.rate_config(rate), device=device)
    train_once(config, plan.space, plan.rate_path(rate))


def _finetune(first: Path, spec: MethodSpec, seed: int, path: Path, device: str) -> None:
    """The second phase of a run."""
    from growtas.training.finetune import finetune
    from growtas.training.run import CONFIG_NAME
    from growtas.training.start import train

    if (path / CONFIG_NAME).exists():
        train(resume=path, device=device)
    else:
        settings = {"seed": seed, "device": device, **QUIET, **spec.settings()}
        finetune(first, method=spec.name, out=str(path), **settings)


# -- judging ---------------------------------------------------------------------------------------------


def _evaluator(run: Run, split: str) -> Evaluator:
    """Of the trained supernet, on one split."""
    from growtas.searching.evaluate import Evaluator
    from growtas.training.calibration import calibration
    from growtas.training.ranks import choose_device

    net, splits, amp = run.load_net(choose_device(run.config.device)), run.splits(), run.config.amp
    calibrate = calibration(net, splits.train, amp)
    return Evaluator(net, getattr(splits, split), amp=amp, calibrate=calibrate)


def _accuracy(evaluator: Evaluator, subnet: Any) -> dict[str, float]:
    """Top-1 and top-5 with inherited weights, in per cent."""
    return dict(zip(("top1", "top5"), evaluator.accuracy(subnet, (1, 5)), strict=True))


def _evaluate(plan: Plan, run: Run, evaluator: Evaluator) -> list[dict[str, Any]]:
    """The accuracy of the fixed subnets of every group."""
    from growtas import cost

    known: dict[Any, dict[str, Any]] = {}

    def judged(subnet: Any) -> dict[str, Any]:
        if subnet not in known:
            params = cost.parameters(subnet, run.space, run.num_classes)
            known[subnet] = {"subnet": str(subnet), "params": params, **_accuracy(evaluator, subnet)}
        return known[subnet]

    found = []
    for number, value in enumerate(run.space.groups):
        subnets = plan.group_subnets(number)
        random = [judged(subnet) for subnet in subnets["random"]]
        means = {name: math.fsum(each[name] for each in random) / len(random) for name in ("top1", "params")}
        ends = {name: judged(*subnets[name]) for name in ("smallest", "largest")}
        found.append({"group": value, **means, **ends, "random": random})
    return found


def _search(plan: Plan, run: Run, limit: Any, seed: int, path: Path, evaluator: Evaluator) -> dict[str, Any]:
    """The best subnet under a limit on the search split, and its accuracy on the test split."""
    from growtas.searching import search

    found = search(
        run,
        population=plan.population,
        generations=plan.generations,
        parents=min(10, plan.population),
        seed=seed,
        out=path / f"search-{limit.kind}-{limit.most}.jsonl",
        amp=run.config.amp,
        device=run.config.device,
        **limit.arguments(),
    )
    return {
        "limit": str(limit),
        "subnet": str(found.best.subnet),
        "params": found.best.params,
        "macs": found.best.macs,
        "search_top1": found.best.top1,
        "top1": found.test_top1,
        "top5": _accuracy(evaluator, found.best.subnet)["top5"],
        "evaluated": len(found.history),
        "feasible": found.feasible,
    }


def _versions(run: Run) -> dict[str, Any]:
    import torch

    from growtas.training.ranks import choose_device

    device = choose_device(run.config.device)
    made_by = {
        **dict(run.versions),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": run.versions.get("commit"),
        "cores": len(os.sched_getaffinity(0)),
    }
    return made_by | ({"device": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})
