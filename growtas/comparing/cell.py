"""One cell of a comparison in a process of its own: train it, evaluate it, search it.

``python -m growtas.comparing.cell OUT --method SPEC --seed N`` or ``... OUT --rate LR``. It does what is not
done yet, so that it can be killed at any moment and started again, and ends by writing ``cell.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.comparing.plan import RATE_SEED, Plan, check_recipe, read_json, read_plan, write_json
from growtas.comparing.specs import MethodSpec
from growtas.comparing.timing import Stopwatch
from growtas.comparing.worker import run_worker
from growtas.errors import GrowtasError, UsageError
from growtas.locks import lock

if TYPE_CHECKING:
    from growtas.searching.evaluate import Evaluator
    from growtas.training.run import Run

RESULT_NAME = "cell.json"
FORMAT = 1
_LOCK_WAIT = 60.0  # seconds; a process whose parent was killed stops within a step


def main(argv: list[str] | None = None) -> int:
    """Run a cell. Args: argv: as above. Returns: the exit status."""
    parser = argparse.ArgumentParser(prog="python -m growtas.comparing.cell")
    parser.add_argument("out")
    parser.add_argument("--method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--guarded", action="store_true", help="stop when standard input is closed")
    given = parser.parse_args(argv)

    def work() -> None:
        recorded = read_plan(Path(given.out))
        if recorded is None:
            raise UsageError(f"{given.out} holds no comparison.")
        check_recipe(recorded)
        if given.rate is not None:
            try_rate(recorded.plan, given.rate, given.device)
        else:
            run_cell(recorded.plan, MethodSpec.parse(given.method), given.seed, given.device)

    return run_worker(work, given.guarded)


def run_cell(plan: Plan, spec: MethodSpec, seed: int, device: str = "auto") -> dict[str, Any]:
    """Train, evaluate and search one method with one seed.

    Args:
        plan: of the comparison.
        spec: the method.
        seed: of training and of the searches.
        device: to compute on.

    Returns:
        What was written to ``cell.json``.

    Raises:
        UsageError, GrowtasError: as training and search do.
        growtas.training.guards.Interrupted: stopped by a signal while training.
    """
    path = plan.cell_path(spec, seed)
    with _locked(path):
        if (path / RESULT_NAME).exists():
            return read_json(path / RESULT_NAME)
        run, time_taken = _train(plan, spec, seed, path, device)
        evaluator = _evaluator(run, "test")
        result = {
            "format": FORMAT,
            "method": str(spec),
            "seed": seed,
            "run": run.config.to_dict() | {"out": None},
            "groups": _evaluate(plan, run, evaluator),
            "searched": [_search(plan, run, limit, seed, path, evaluator) for limit in plan.limits],
            "time": time_taken,
            "made_by": _versions(run),
        }
        write_json(path / RESULT_NAME, result)
        return result


def try_rate(plan: Plan, rate: float, device: str = "auto") -> dict[str, Any]:
    """Train the uniform method with a learning rate and evaluate it on the search split.

    Args, Returns, Raises: as :func:`run_cell`.
    """
    path = plan.rate_path(rate)
    with _locked(path):
        if (path / RESULT_NAME).exists():
            return read_json(path / RESULT_NAME)
        config = dataclasses.replace(plan.rate_config(rate), device=device)
        run = _train_from(config, plan, path)
        groups = _evaluate(plan, run, _evaluator(run, "search"))
        result = {
            "format": FORMAT,
            "lr": rate,
            "seed": RATE_SEED,
            "groups": groups,
            "top1": math.fsum(group["top1"] for group in groups) / len(groups),
        }
        write_json(path / RESULT_NAME, result)
        return result


# -- training --------------------------------------------------------------------------------------------


def _train(plan: Plan, spec: MethodSpec, seed: int, path: Path, device: str) -> tuple[Run, dict[str, Any]]:
    """The finished run of a cell, and what training it took: the first phase's time included."""
    first = spec.first
    if first is None:
        config = dataclasses.replace(plan.cell_config(spec, seed, plan.rate()), device=device)

        def begin() -> Run:
            return _train_from(config, plan, path)

        before = []
    else:
        began = plan.cell_path(first, seed)
        if not (began / RESULT_NAME).exists():
            raise GrowtasError(f"{spec} goes on from {first} of seed {seed}, which is not finished.")
        before = read_json(began / RESULT_NAME)["time"]["phases"]

        def begin() -> Run:
            return _finetune_from(began, spec, seed, path, device)

    _load_data_once(plan)  # so that reading or rendering it does not count as training
    watch = Stopwatch(path.parent / f"{path.name}.time.json", device)
    if not _finished(path):
        with watch:
            begin()
    from growtas.training.run import Run

    return Run.open(path), watch.total(before)


def _finished(path: Path) -> bool:
    from growtas.training.run import CONFIG_NAME, Run

    return (path / CONFIG_NAME).exists() and Run.open(path).finished


def _train_from(config: Any, plan: Plan, path: Path) -> Run:
    """Begin or resume a run; a run of other settings is refused."""
    from growtas.training.config import RUNTIME
    from growtas.training.run import CONFIG_NAME, Run
    from growtas.training.start import begin, train

    config = dataclasses.replace(config, out=str(path)).resolved()
    if not (path / CONFIG_NAME).exists():
        return begin(config, plan.space)
    held, wanted = Run.open(path).config.to_dict(), config.to_dict()
    for name, value in wanted.items():
        if name not in ("out", *RUNTIME) and held[name] != value and value != "auto":
            raise GrowtasError(
                f"The run in {path} was begun with {name}={held[name]}, not {value}; remove the folder to "
                "train it anew."
            )
    return train(resume=path, device=config.device)


def _finetune_from(began: Path, spec: MethodSpec, seed: int, path: Path, device: str) -> Run:
    """The second phase of a run."""
    import growtas
    from growtas.comparing.plan import QUIET
    from growtas.training.run import CONFIG_NAME

    if (path / CONFIG_NAME).exists():
        return growtas.train(resume=path, device=device)
    own = spec.settings()
    return growtas.finetune(
        began, method=spec.name, out=str(path), **{"seed": seed, "device": device, **QUIET, **own}
    )


def _load_data_once(plan: Plan) -> None:
    from growtas.training.data import splits_of

    splits_of(plan.config({}), plan.space)


# -- judging ---------------------------------------------------------------------------------------------


def _evaluator(run: Run, split: str) -> Evaluator:
    """Of the trained supernet, on one split."""
    from growtas.searching.evaluate import Evaluator
    from growtas.training.calibration import calibration
    from growtas.training.distributed import choose_device

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
            known[subnet] = {
                "subnet": str(subnet),
                "params": cost.parameters(subnet, run.space, run.num_classes),
                **_accuracy(evaluator, subnet),
            }
        return known[subnet]

    found = []
    for number, value in enumerate(run.space.groups):
        subnets = plan.group_subnets(number)
        random = [judged(subnet) for subnet in subnets["random"]]
        found.append(
            {
                "group": value,
                "top1": math.fsum(each["top1"] for each in random) / len(random),
                "params": math.fsum(each["params"] for each in random) / len(random),
                "smallest": judged(*subnets["smallest"]),
                "largest": judged(*subnets["largest"]),
                "random": random,
            }
        )
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

    from growtas.training.distributed import choose_device

    device = choose_device(run.config.device)
    made_by = {
        **dict(run.versions),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": run.versions.get("commit"),
        "cores": len(os.sched_getaffinity(0)),
    }
    return made_by | ({"device": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else runs this cell: wait for one whose parent was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as file:
        end = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                lock(file)
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise UsageError(f"Another process is running the cell {path}; wait for it.") from error
                time.sleep(0.2)
        yield


if __name__ == "__main__":
    sys.exit(main())
