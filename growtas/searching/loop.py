"""A search from its first generation to its last: what stands in the log is replayed. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from growtas.errors import GrowtasError
from growtas.progress import Progress
from growtas.searching.evolution import Generations
from growtas.searching.followed import FollowedLog
from growtas.searching.log import SearchLog
from growtas.searching.objective import Objective
from growtas.searching.result import Evaluation, Score, Scorer, best_of
from growtas.subnet import AnySubnet


def sharing(score: Scorer, known: Mapping[AnySubnet, Score]) -> Scorer:
    """A scorer that asks another one only for the subnets whose score is not known."""

    def shared(subnets: Sequence[AnySubnet], seen: Callable[[int], object]) -> Iterator[Score]:
        new = [subnet for subnet in subnets if subnet not in known]
        scores = iter(score(new, seen) if new else ())
        for subnet in subnets:
            yield known[subnet] if subnet in known else next(scores)

    return shared


def evolve(
    evolution: Generations,
    log: SearchLog | FollowedLog,
    score: Scorer,
    objective: Objective | None = None,
    images: int = 1,
) -> list[Evaluation]:
    """Run an evolution to its end, taking from the log what stands there and appending what does not.

    Args:
        evolution: a fresh one.
        log: its evaluations are replayed, in order, in place of calls of ``score``.
        score: called once per generation with its subnets that the log does not know; each score is logged
            as soon as it comes.
        objective: measured of each subnet, and logged, in a Pareto search.
        images: that each subnet is evaluated on, for the time left.

    Returns:
        Every evaluation in order.

    Raises:
        GrowtasError: the log's evaluations are not those that this evolution asks for.
    """
    history: list[Evaluation] = []
    replayed = [Evaluation.from_json(record) for record in log.evaluations]
    config = evolution.config
    with Progress(config.population * config.generations * images, "search", "image", images=1) as progress:
        while candidates := evolution.ask():
            known = replayed[len(history) : len(history) + len(candidates)]
            for subnet, evaluation in zip(candidates, known, strict=False):
                history.append(evaluation)
                if (evaluation.subnet, evaluation.generation) != (subnet, evolution.generation):
                    raise _diverged(log, len(history))
            progress.update(len(history) * images - progress.done)
            unknown = candidates[len(known) :]
            for subnet, scored in zip(
                unknown, score(unknown, progress.update) if unknown else (), strict=True
            ):
                costs = evolution.feasible.cost(subnet)
                value = objective and objective.measure(subnet)
                found = (evolution.generation, scored.images, scored.correct, value)
                found += (evolution.feasible.latency_ms(subnet),)
                history.append(Evaluation(subnet, scored.top1, *costs, *found))
                log.add_evaluation(history[-1].to_json())
                if objective is None and best_of(history) is history[-1]:
                    progress.say(f"best so far: {_told(history[-1])}, generation {evolution.generation}")
            progress.update(len(history) * images - progress.done)
            log.sync()
            evolution.rank(history[-len(candidates) :])
            progress.show(*evolution.status(history))
            progress.line()
            if evolution.predictor is not None and unknown:
                progress.say(f"predictor: {evolution.predictor.ranking}")
    if len(replayed) > len(history):
        raise _diverged(log, len(history) + 1)
    return history


def _told(found: Evaluation) -> str:
    return f"{found.subnet}, {found.params:,} parameters{found.shown_latency}, top-1 {found.top1:.2f} %"


def _diverged(log: SearchLog, number: int) -> GrowtasError:
    return GrowtasError(
        f"Evaluation {number} in the search log {log.path} is not the one that this search asks for "
        "there: the log was edited, or written by another version of growtas. It is left as it is; choose "
        "another out."
    )
