"""``growtas.search``: evolution, evaluation and log put together. Imports torch only when called."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas import threads
from growtas.bounds import COST, GENERATIONS, IMAGES, PROCESSES, SEED, SUBNETS, Bound, bounded
from growtas.errors import UsageError
from growtas.progress import say
from growtas.searching.evolution import Evolution, EvolutionConfig, Generations
from growtas.searching.feasible import feasible_set
from growtas.searching.folder import known_scores, log_path
from growtas.searching.followed import FollowedLog
from growtas.searching.front_files import write_front
from growtas.searching.latency import Latency, LatencyFeasibleSet
from growtas.searching.limits import FeasibleSet, Limits
from growtas.searching.log import SearchLog, read_log
from growtas.searching.loop import evolve, sharing
from growtas.searching.objective import Objective, objective_of
from growtas.searching.pareto import RATES, ParetoEvolution
from growtas.searching.predictor import Predictor
from growtas.searching.racing import raced
from growtas.searching.result import ParetoResult, Score, SearchResult, best_of, front_of
from growtas.subnet import AnySubnet
from growtas.version import __version__

if TYPE_CHECKING:
    from growtas.searching.evaluate import Evaluator
    from growtas.training.ranks import Ranks
    from growtas.training.run import Run

_PARETO = {"parents": 1, "mutations": 0, "crossovers": 0, **RATES}  # NSGA-II has its own parents


@bounded(
    max_params=COST,
    min_params=COST,
    max_macs=COST,
    max_latency_ms=COST,
    population=SUBNETS,
    generations=GENERATIONS,
    parents=SUBNETS,
    mutations=Bound(0, SUBNETS.most),
    crossovers=Bound(0, SUBNETS.most),
    seed=SEED,
    batch_size=IMAGES,
    workers=PROCESSES,
    images=IMAGES,
)
def search(
    run: Run | str | os.PathLike,
    max_params: float | Sequence[float] | None = None,
    min_params: float | None = None,
    max_macs: float | Sequence[float] | None = None,
    pareto: str | Objective | None = None,
    population: int = 50,
    generations: int = 20,
    parents: int = 10,
    mutations: int | None = None,
    crossovers: int | None = None,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    batch_size: int | None = None,
    amp: str = "auto",
    device: str = "auto",
    workers: int | None = None,
    averaged: bool = False,
    images: int | None = None,
    racing: bool = True,
    max_latency_ms: float | Sequence[float] | None = None,
    predictor: bool = False,
    latency: Latency | None = None,
) -> SearchResult | list[SearchResult] | ParetoResult:
    """Find the most accurate subnet of a trained supernet within limits, by AutoFormer's evolution.

    Every subnet is evaluated with the weights it inherits, on the split held out from training for this; the
    test split is evaluated once, at the end, for the best subnet. A search that was interrupted continues
    when it is called again with the same arguments, and ends as if it had not been; a finished one is read
    from its log. All searches of a run share their evaluations. Under torchrun the ranks share the images of
    each generation; the result does not depend on how many there are.

    Args:
        run: a training run, or its folder.
        max_params: most parameters of the subnet, head included; several for a search under each.
        min_params: fewest parameters.
        max_macs: most multiply-accumulates of one image; several for a search under each.
        pareto: params, macs or latency, to find the subnets of which none is both cheaper and more accurate
            (NSGA-II), instead of the best one.
        population: subnets of one generation.
        generations: generations, the first, random one included.
        parents: the best so far, from which children are made; not for pareto.
        mutations: mutated children of a generation; half the population where None; not for pareto.
        crossovers: crossed children of a generation; half the population where None; not for pareto.
        seed: of the evolution.
        out: the log, as a ``.jsonl`` file, or a folder for it; the run's folder where None.
        batch_size: images evaluated at once; 1,024 on a GPU and 256 on a CPU where None.
        amp: ``"bfloat16"`` or ``"float16"`` for autocast, ``"none"`` for float32; ``"auto"`` is bfloat16 on
            GPUs that have it, float16 on others and float32 on a CPU.
        device: such as ``"cuda:1"``; ``"auto"`` is a GPU where there is one.
        workers: processes that load images from files; as many as fit where None.
        averaged: evaluate the moving average of the weights that a run with ema_decay keeps.
        images: so many images of the search split, stratified and always the same; all where None.
        racing: leave off evaluating a subnet once it is behind the worst parent with 99 % confidence; not
            for pareto. The best subnet is always one that was evaluated on all images.
        max_latency_ms: most milliseconds of one call of the extracted model, by ``latency``; several for a
            search under each.
        predictor: from ten times as many proposals, evaluate those that a regression on the evaluations so
            far predicts to be best; only while it ranks held-out subnets well (Kendall's tau of 0.4 or more).
        latency: what :func:`growtas.latency` gave for the run: needed for max_latency_ms and for a Pareto
            search by latency.

    Returns:
        The best subnet and every evaluation; a list of these in the order of the limits, where several were
        given as a sequence; the front and every evaluation with ``pareto``.

    Raises:
        UsageError: limits that no subnet meets, a limit of a latency that is not known, a size that makes no
            sense, a log of another search, no run, no pymoo for ``pareto``.
        GrowtasError: another process writes the log, or it cannot be written.

    Source: Chen et al., "AutoFormer" (ICCV 2021), section 3.4; Deb et al., "NSGA-II" (2002).
    """
    limits, several = _limits(
        min_params, max_params=max_params, max_macs=max_macs, max_latency_ms=max_latency_ms
    )
    sizes = {"parents": parents, "mutations": mutations, "crossovers": crossovers}
    if pareto is not None:
        _check_pareto(several, sizes)
        sizes = _PARETO
    half = population // 2
    sizes = {name: half if size is None else size for name, size in sizes.items()}
    config = EvolutionConfig(population, generations, **sizes)
    run = _as_run(run)
    feasible = [feasible_set(run.space, run.num_classes, each) for each, _ in limits]
    if latency is not None:
        slowest = (max_ms for _, max_ms in limits)
        feasible = [LatencyFeasibleSet(each, latency, ms) for each, ms in zip(feasible, slowest, strict=True)]
        if latency.direct:
            say("latency: predictions are not good enough, so each subnet is measured end to end")
    elif max_latency_ms is not None:
        raise UsageError(
            f"max_latency_ms={max_latency_ms} needs the latencies: give latency=growtas.latency(run)."
        )
    objective = None if pareto is None else objective_of(pareto, feasible[0])
    kind = Evolution if objective is None else ParetoEvolution
    evolutions = [kind(each, config, seed) for each in feasible]
    threads.fit(run.space)

    from growtas.searching.evaluate import Evaluator
    from growtas.training.calibration import calibration
    from growtas.training.data.workers import worker_count
    from growtas.training.external import weights_hash
    from growtas.training.precision import resolved
    from growtas.training.ranks import Ranks, choose_device

    device = choose_device(device)
    with Ranks.joined(device) as ranks:
        net, splits = run.load_net(device, averaged), run.splits()
        usual, amp = resolved("auto", device), resolved(amp, device)
        calibrate = None
        if net.needs_calibration:  # nothing else looks at training images here
            calibrate = calibration(net, splits.train, amp, worker_count(workers))
        settings = {"batch_size": batch_size, "amp": amp, "workers": workers, "calibrate": calibrate}
        evaluator = Evaluator(net, splits.search, images=images, ranks=ranks, **settings)
        shared = {
            "space": run.space.to_dict(),
            "data": splits.name,
            "images": evaluator.images,
            "amp": amp,
            "weights": weights_hash(net),
        }
        many = several or pareto is not None
        options = {"averaged": averaged, "images": images, "racing": racing, "predictor": predictor}
        options["max_latency_ms"] = None  # of each search, its own
        if latency is not None:
            options |= {f"latency_{name}": getattr(latency, name) for name in ("on", "batch", "threads")}
        job = _Job(
            run=run,
            config=config,
            seed=seed,
            objective=objective,
            out=out,
            shared=shared,
            options=options if amp == usual else {"amp": amp, **options},
            notes=_notes(device),
            races=racing and pareto is None and evaluator.races,
            predicts=predictor,
            evaluator=evaluator,
            test=functools.cache(
                lambda: Evaluator(net, splits.test, keep=many, ranks=ranks, **settings).top1
            ),
            ranks=ranks,
        )
        found = [job.search(each) for each in evolutions]
    return found if several else found[0]


def _limits(
    min_params: float | None, **most: float | Sequence[float] | None
) -> tuple[list[tuple[Limits, float | None]], bool]:
    """The limits of each search, that of the latency by itself; True where several were asked for."""
    several = [
        name for name, limit in most.items() if isinstance(limit, Sequence) and not isinstance(limit, str)
    ]
    if len(several) > 1:
        raise UsageError(
            f"Give several {several[0]} or several {several[1]}, not both; one of both is possible."
        )
    given = [{**most, name: limit} for name in several for limit in most[name]] if several else [most]
    if not given:
        raise UsageError("The sequence of limits is empty; give one limit or more, or None.")
    limits = [
        (Limits(each["max_params"], min_params, each["max_macs"]), each["max_latency_ms"]) for each in given
    ]
    return limits, bool(several)


def _check_pareto(several: bool, sizes: Mapping[str, int | None]) -> None:
    if several:
        raise UsageError(
            "A Pareto search finds the best subnet under every limit at once; give one limit at most."
        )
    for name, size in sizes.items():
        if size != (10 if name == "parents" else None):
            raise UsageError(f"{name}={size} is for a search for one subnet; NSGA-II has no such size.")


@dataclass(frozen=True)
class _Job:
    """A call of :func:`search`: what the searches under its several limits have in common."""

    run: Any
    config: EvolutionConfig
    seed: int
    objective: Objective | None
    out: str | os.PathLike | None
    shared: Mapping[str, Any]
    options: Mapping[str, Any]
    notes: Mapping[str, Any]
    races: bool
    predicts: bool
    evaluator: Evaluator
    test: Callable[[], Callable[[AnySubnet], float]]
    ranks: Ranks

    def search(self, evolution: Generations) -> SearchResult | ParetoResult:
        """One search from its beginning, or from where it stopped, to its end."""
        objective, feasible = self.objective, evolution.feasible
        identity = {
            "seed": self.seed,
            "limits": dict(vars(feasible.limits)),
            "evolution": self.config.to_dict(),
            **self.shared,
            "pareto": objective and {"name": objective.name, "unit": objective.unit},
            "racing": self.races or None,
            "predictor": self.predicts or None,
            "latency": feasible.identity(),
        }
        log, known = self._open(feasible, identity)
        if self.predicts:
            size = objective or objective_of("params", feasible)
            evolution.predictor = Predictor(size, log.prior)

        def score(subnets: Sequence[AnySubnet], seen: Callable[[int], object]) -> Iterator[Score]:
            bar = evolution.bar if self.races else None
            shared = sharing(lambda *given: self.evaluator.score(*given, bar), known)(subnets, seen)
            images = self.evaluator.images
            return shared if bar is None else (raced(each, bar, images) for each in shared)  # the known ones

        with log:
            replayed = len(log.evaluations)
            if known and log.result is None:
                say(f"{len(known):,} evaluations of earlier searches of these weights are shared")
            history = evolve(evolution, log, score, objective, self.evaluator.images)
            shared = sum(each.subnet in known for each in history[replayed:])
            resumed = f", {replayed:,} from the log of this search" * (replayed > 0)
            now = len(history) - replayed - shared
            say(f"{now:,} subnets evaluated now, {shared:,} from earlier searches{resumed}")
            if log.result is None:
                # the one place where the test split is looked at
                chosen = [best_of(history)] if objective is None else front_of(history)
                test = self.test()
                top1 = [test(each.subnet) for each in chosen]
                result = {"test_top1": top1, "feasible": feasible.count}
                if objective is None:
                    result |= {"best": chosen[0].to_json(), "test_top1": top1[0]}
                if evolution.predictor is not None:
                    result["predictor"] = vars(evolution.predictor.ranking)
                log.add_result(result)
        return self.ranks.on_first(lambda: self._finished(log.path))

    def _open(
        self, feasible: FeasibleSet, identity: Mapping[str, Any]
    ) -> tuple[SearchLog | FollowedLog, dict[AnySubnet, Score]]:
        """The log, and the scores that other logs hold; rank 0 reads and writes them for all."""
        opened: list[SearchLog] = []

        def work() -> tuple[Any, ...]:
            folder = Path(self.run.path if self.out is None else self.out)
            path = folder if folder.suffix == ".jsonl" else log_path(folder, self._name(feasible), identity)
            known = known_scores({path.parent, self.run.path}, identity, path)
            log = SearchLog(path, identity, self.notes)
            opened.append(log)
            if self.predicts and not (log.prior or log.evaluations):
                log.add_prior({subnet: score.top1 for subnet, score in known.items()})
            return known, path, log.evaluations, log.result, log.prior

        known, *content = self.ranks.on_first(work)
        return opened[0] if opened else FollowedLog(*content), known

    def _finished(self, path: Path) -> SearchResult | ParetoResult:
        found = read_log(path)
        if self.objective is not None:
            write_front(found, self.run.space)
        return found

    def _name(self, feasible: FeasibleSet) -> str:
        """The name of the log: the limits, and what else differs from a call without arguments."""
        names = ["search"] if self.objective is None else ["pareto", self.objective.name]
        given = {**vars(feasible.limits), "seed": self.seed, **self.config.to_dict(), **self.options}
        given["max_latency_ms"] = (feasible.identity() or {}).get("max_ms")
        half = self.config.population // 2
        usual = {
            "seed": 0,
            "averaged": False,
            "racing": True,
            "predictor": False,
            **EvolutionConfig().to_dict(),
        }
        usual |= {"mutations": half, "crossovers": half} if self.objective is None else _PARETO
        names += [f"{name}-{value}" for name, value in given.items() if value != usual.get(name)]
        return "-".join(names).replace("_", "-")


def _as_run(run: Any) -> Any:
    if not isinstance(run, str | os.PathLike):
        return run
    from growtas.training.run import Run

    return Run.open(run)


def _notes(device: Any) -> dict[str, Any]:
    """Fields of the header beside the search's identity; they may change when a search is resumed."""
    import torch

    versions = {"growtas": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"versions": versions, "device": str(device)}
