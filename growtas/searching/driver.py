"""``growtas.search``: evolution, evaluation and log put together. Imports torch only when called."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.errors import GrowtasError
from growtas.progress import Progress
from growtas.searching.evolution import Evolution, EvolutionConfig
from growtas.searching.feasible import feasible_set
from growtas.searching.limits import Limits
from growtas.searching.log import LOG_NAME, SearchLog
from growtas.searching.result import Evaluation, Scorer, SearchResult, best_of
from growtas.version import __version__

if TYPE_CHECKING:
    from growtas.training.run import Run


def search(
    run: Run | str | os.PathLike,
    max_params: float | None = None,
    min_params: float | None = None,
    max_macs: float | None = None,
    population: int = 50,
    generations: int = 20,
    parents: int = 10,
    mutations: int | None = None,
    crossovers: int | None = None,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    batch_size: int = 256,
    amp: str = "none",
    device: str = "auto",
    workers: int | None = None,
    averaged: bool = False,
) -> SearchResult:
    """Find the most accurate subnet of a trained supernet within limits, by AutoFormer's evolution.

    Every subnet is evaluated with the weights it inherits, on the split held out from training for this; the
    test split is evaluated once, at the end, for the best subnet. A search that was interrupted continues
    when it is called again with the same arguments, and ends as if it had not been; a finished one is read
    from its log.

    Args:
        run: a training run, or its folder.
        max_params: most parameters of the subnet, head included.
        min_params: fewest parameters.
        max_macs: most multiply-accumulates of one image.
        population: subnets of one generation.
        generations: generations, the first, random one included.
        parents: the best so far, from which children are made.
        mutations: mutated children of a generation; half the population where None.
        crossovers: crossed children of a generation; half the population where None.
        seed: of the evolution.
        out: the log, as a ``.jsonl`` file or a folder for ``search.jsonl``; the run's folder where None.
        batch_size: images evaluated at once.
        amp: ``"bfloat16"`` or ``"float16"`` for autocast, ``"none"`` for float32.
        device: such as ``"cuda:1"``; ``"auto"`` is a GPU where there is one.
        workers: processes that load images from files; as many as fit where None.
        averaged: evaluate the moving average of the weights that a run with ema_decay keeps.

    Returns:
        The best subnet and every evaluation.

    Raises:
        UsageError: limits that no subnet meets, a size that makes no sense, a log of another search, no run.
        GrowtasError: another process writes the log, or it cannot be written.

    Source: Chen et al., "AutoFormer" (ICCV 2021), section 3.4.
    """
    limits = Limits(max_params, min_params, max_macs)
    config = EvolutionConfig(
        population=population,
        generations=generations,
        parents=parents,
        mutations=population // 2 if mutations is None else mutations,
        crossovers=population // 2 if crossovers is None else crossovers,
    )
    run = _as_run(run)
    feasible = feasible_set(run.space, run.num_classes, limits)

    from growtas.searching.evaluate import Evaluator
    from growtas.training.calibration import calibration
    from growtas.training.data.workers import worker_count
    from growtas.training.distributed import choose_device
    from growtas.training.external import weights_hash

    device = choose_device(device)
    net, splits = run.load_net(device, averaged), run.splits()
    calibrate = None
    if net.needs_calibration:  # nothing else looks at training images here
        calibrate = calibration(net, splits.train, amp, worker_count(workers))
    settings = {"batch_size": batch_size, "amp": amp, "workers": workers, "calibrate": calibrate}
    evaluator = Evaluator(net, splits.search, **settings)
    identity = {
        "seed": seed,
        "limits": dict(vars(limits)),
        "evolution": config.to_dict(),
        "space": run.space.to_dict(),
        "data": splits.name,
        "images": len(splits.search),
        "amp": amp,
        "weights": weights_hash(net),
    }
    with SearchLog(_log_path(run, out), identity, _notes(device)) as log:
        evolution = Evolution(feasible, config, seed)
        history = evolve(evolution, log, evaluator.score)
        best = best_of(history)
        if log.result is None:
            # the one place where the test split is looked at
            test_top1 = Evaluator(net, splits.test, **settings).top1(best.subnet)
            log.add_result({"best": best.to_json(), "test_top1": test_top1, "feasible": feasible.count})
        return SearchResult(best, tuple(history), log.result["test_top1"], feasible.count, log.path)


def evolve(evolution: Evolution, log: SearchLog, score: Scorer) -> list[Evaluation]:
    """Run an evolution to its end, taking from the log what stands there and appending what does not.

    Args:
        evolution: a fresh one.
        log: its evaluations are replayed, in order, in place of calls of ``score``.
        score: called once per generation with its subnets that the log does not know; each score is logged
            as soon as it comes.

    Returns:
        Every evaluation in order.

    Raises:
        GrowtasError: the log's evaluations are not those that this evolution asks for.
    """
    history: list[Evaluation] = []
    replayed = [Evaluation.from_json(record) for record in log.evaluations]
    config = evolution.config
    with Progress(config.population * config.generations, "search", "net") as progress:
        while candidates := evolution.ask():
            known = replayed[len(history) : len(history) + len(candidates)]
            for subnet, evaluation in zip(candidates, known, strict=False):
                history.append(evaluation)
                if (evaluation.subnet, evaluation.generation) != (subnet, evolution.generation):
                    raise _diverged(log, len(history))
                progress.update()
            unknown = candidates[len(known) :]
            for subnet, scored in zip(unknown, score(unknown) if unknown else (), strict=True):
                costs = evolution.feasible.cost(subnet)
                history.append(Evaluation(subnet, scored.top1, *costs, evolution.generation))
                log.add_evaluation(history[-1].to_json())
                if best_of(history) is history[-1]:
                    progress.say(f"best so far: {_told(history[-1])}, generation {evolution.generation}")
                progress.update()
            log.sync()
            evolution.tell([evaluation.top1 for evaluation in history[-len(candidates) :]])
            best = best_of(history)
            found = (
                f"best {best.top1:.2f} %",
                f"generation {evolution.generation}",
                f"{best.params:,} parameters",
            )
            progress.show(*found)
            progress.line()
    if len(replayed) > len(history):
        raise _diverged(log, len(history) + 1)
    return history


def _told(found: Evaluation) -> str:
    return f"{found.subnet}, {found.params:,} parameters, top-1 {found.top1:.2f} %"


def _diverged(log: SearchLog, number: int) -> GrowtasError:
    return GrowtasError(
        f"Evaluation {number} in the search log {log.path} is not the one that this search asks for "
        "there: the log was edited, or written by another version of growtas. It is left as it is; choose "
        "another out."
    )


def _as_run(run: Any) -> Any:
    if not isinstance(run, str | os.PathLike):
        return run
    from growtas.training.run import Run

    return Run.open(run)


def _log_path(run: Any, out: str | os.PathLike | None) -> Path:
    if out is None:
        return Path(run.path) / LOG_NAME
    return Path(out) if Path(out).suffix == ".jsonl" else Path(out) / LOG_NAME


def _notes(device: Any) -> dict[str, Any]:
    """Fields of the header beside the search's identity; they may change when a search is resumed."""
    import torch

    versions = {"growtas": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"versions": versions, "device": str(device)}
