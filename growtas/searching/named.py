"""Subnets by name: ``best`` and ``pareto`` of a run's searches, ``smallest``, ``largest``, or their sizes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from growtas.errors import GrowtasError, UsageError, command
from growtas.searching.folder import header_of, read_result, results_in
from growtas.searching.result import Evaluation, ParetoResult, SearchResult, best_of

if TYPE_CHECKING:
    from growtas.space import Space
    from growtas.subnet import AnySubnet
    from growtas.training.run import Run

SEARCHED = ("best", "pareto")
MS = "ms"


def named_subnet(subnet: AnySubnet | str, space: Space, run: Run | None = None) -> AnySubnet:
    """A subnet by its name or sizes.

    Args:
        subnet: one of

            - ``best`` of the run's finished search; where several have finished, ``best:6e6`` (or
              ``best:15ms``) of those with this limit, the most accurate one's;
            - ``pareto:3``, point 3 of the run's front, or ``pareto:6e6``, the most accurate point that costs
              at most 6e6; where there are several fronts, ``pareto-macs:3``, ``pareto-latency:15ms``;
            - the name of a search's log in the run's folder in place of these, such as
              ``search-seed-1.jsonl`` or ``pareto-macs-seed-1.jsonl:3``;
            - ``smallest``, ``largest``, sizes such as ``d24-h2,2,3-r2,3,2``, or a subnet.
        space: that it is from.
        run: whose finished searches are meant.

    Raises:
        UsageError: the text is none of these, or a search's result is asked for without a run.
        GrowtasError: the run has no such finished search, or several that fit.
    """
    if not isinstance(subnet, str):
        return subnet
    if subnet in ("smallest", "largest"):
        return getattr(space, subnet)()
    name, _, which = subnet.partition(":")
    if name.split("-")[0] not in SEARCHED and not name.endswith(".jsonl"):
        return space.parse(subnet)
    if run is None:
        raise UsageError(f"{subnet!r} is what a search of a run found: give the run, or the sizes.")
    return _found(Path(run.path), name, which).subnet


def reference_to(found: SearchResult | ParetoResult) -> str:
    """The shortest text by which :func:`named_subnet` knows a search of its folder."""
    if isinstance(found, ParetoResult):
        fronts = [each for each in results_in(found.path.parent) if isinstance(each, ParetoResult)]
        if len(fronts) == 1:
            return "pareto"
        alike = [each for each in fronts if each.objective == found.objective]
        return f"pareto-{found.objective}" if len(alike) == 1 else found.path.name
    for which in ("", *_limits(header_of(found.path))):
        try:
            if _found(found.path.parent, "best", which) == found.best:
                return f"best:{which}" if which else "best"
        except GrowtasError:
            continue
    return found.path.name


def _found(folder: Path, name: str, which: str) -> Evaluation:
    if name.endswith(".jsonl"):
        result = read_result(folder / name)
        return _point(result, which) if isinstance(result, ParetoResult) else result.best
    results = results_in(folder)
    if name == "best":
        return _best(folder, [each for each in results if isinstance(each, SearchResult)], which)
    kind, _, objective = name.partition("-")
    fronts = [each for each in results if isinstance(each, ParetoResult)]
    fronts = [each for each in fronts if objective in ("", each.objective)]
    if not fronts:
        asked = ("--pareto", objective or "params")
        raise GrowtasError(
            f"{folder} has no finished Pareto search; {command('search', folder, *asked)} makes one."
        )
    if len(fronts) > 1:
        names = ", ".join(each.path.name for each in fronts)
        raise GrowtasError(f"{folder} has {len(fronts)} fronts that {name} may mean: name one of {names}.")
    return _point(fronts[0], which)


def _best(folder: Path, results: list[SearchResult], which: str) -> Evaluation:
    """Of the searches with one limit, the most accurate subnet."""
    if not results:
        return read_result(folder).best  # raises: says what there is
    headers = {result.path: header_of(result.path) for result in results}
    limits = {result.path: _limits(headers[result.path]) for result in results}
    if which:
        asked = _limit(which, f"best:{which}")
        chosen = [result for result in results if asked in limits[result.path]]
    else:
        chosen = results
    named = sorted({f"best:{limit}" for each in limits.values() for limit in each})
    if not chosen:
        known = f"; there is {', '.join(named)}" if named else " under a limit"
        raise GrowtasError(f"{folder} has no finished search under the limit {which}{known}.")
    for key, title in (("limits", "limits"), ("latency", "limits of latency"), ("weights", "weights")):
        if any(headers[each.path].get(key) != headers[chosen[0].path].get(key) for each in chosen):
            names = [*(named if key != "weights" and not which else ()), *(each.path.name for each in chosen)]
            raise GrowtasError(
                f"{folder} has {len(chosen)} finished searches of different {title}: name one of "
                f"{', '.join(names)}."
            )
    return best_of([result.best for result in chosen])


def _limits(header: dict) -> list[str]:
    """The limits of a search, as they are named: a whole number, or milliseconds with their unit."""
    counts = [str(limit) for limit in (header.get("limits") or {}).values() if limit is not None]
    max_ms = (header.get("latency") or {}).get("max_ms")
    return counts if max_ms is None else [*counts, f"{max_ms:.12g}{MS}"]


def _limit(text: str, asked: str) -> str:
    """A limit as :func:`_limits` writes it."""
    number = _number(text.removesuffix(MS), asked)
    return f"{number:.12g}{MS}" if text.endswith(MS) else str(int(number))


def _point(front: ParetoResult, which: str) -> Evaluation:
    """A point of a front by its number, else by a limit."""
    points, asked = len(front.front), f"{front.path.name}:{which}"
    if which.isdecimal() and 1 <= int(which) <= points:
        return front.front[int(which) - 1]
    limit = _number(which.removesuffix(front.unit), asked, points)
    if which.isdecimal() and limit < front.front[0].objective:  # more likely a number than a limit
        raise UsageError(
            f"{asked!r} names no subnet: the front has {points} point{'s' * (points > 1)}, and the cheapest "
            f"costs {front.front[0].objective:,} {front.unit}."
        )
    return front.within(limit)


def _number(text: str, asked: str, points: int = 0) -> float:
    try:
        if not math.isfinite(number := float(text)):
            raise ValueError(text)
        return number
    except ValueError as error:
        numbered = f"the number of a point, 1 to {points}, or " if points else ""
        raise UsageError(
            f"{asked!r} names no subnet: after the colon stands {numbered}a limit such as 6e6 or 15ms."
        ) from error
