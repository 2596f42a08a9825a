"""The searches of one folder: the names of their logs, their results, what they share. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from growtas.errors import GrowtasError
from growtas.progress import say
from growtas.searching.log import LOG_NAME, header_in, plain, read_log, records_in
from growtas.searching.result import Evaluation, ParetoResult, Score, SearchResult
from growtas.subnet import AnySubnet

#: A search may use the evaluations of others whose headers are equal in these entries.
SHARED = ("space", "data", "images", "amp", "weights")


def log_path(folder: Path, name: str, identity: Mapping[str, Any]) -> Path:
    """The log that a search began in a folder, or a new one.

    Args:
        folder: of the run, or another one.
        name: says what the search was asked for. Where that of another search has it already, such as one of
            earlier weights, a number follows.
        identity: as of :class:`growtas.searching.log.SearchLog`.
    """
    identity = plain(identity)
    if _is(identity, header_of(folder / LOG_NAME)):  # the name of every search in older versions
        return folder / LOG_NAME
    for number in count(1):
        path = folder / f"{name}{f'-{number}' if number > 1 else ''}.jsonl"
        if not path.exists() or header_of(path) is None or _is(identity, header_of(path)):
            return path


def header_of(path: Path) -> dict[str, Any] | None:
    """The header of a search log; empty for another kind of file, None where no line is complete."""
    try:
        with open(path, "rb") as file:
            line = file.readline()
    except OSError:
        return {}
    return header_in(line) or {} if line.endswith(b"\n") else None


def _is(identity: Mapping[str, Any], header: Mapping[str, Any] | None) -> bool:
    return bool(header) and all(header.get(key) == value for key, value in identity.items())


def known_scores(
    folders: Iterable[str | os.PathLike], identity: Mapping[str, Any], own: Path | None = None
) -> dict[AnySubnet, Score]:
    """The scores in the logs of other searches with the same weights on the same images.

    Args:
        folders: whose logs are read; a damaged line and what follows it is left aside.
        identity: of the search that asks.
        own: its log, which is left aside.
    """
    identity, known = plain(identity), {}
    paths = {path.resolve() for folder in folders for path in Path(folder).glob("*.jsonl")}
    for path in sorted(paths - {own and own.resolve()}):
        header = header_of(path)
        if header and all(header.get(key) == identity[key] for key in SHARED):
            try:
                for record in records_in(path, path.read_bytes()):
                    if record["record"] == "evaluation" and record.get("images") == identity["images"]:
                        found = Evaluation.from_json(record)
                        if found.correct is not None:
                            known[found.subnet] = Score(found.top1, found.images, found.correct)
            except (GrowtasError, ValueError, LookupError, TypeError, AttributeError) as error:
                say(f"The evaluations in {path} behind its damage are left aside: {error}")
    return known


def results_in(folder: Path) -> list[SearchResult | ParetoResult]:
    """The finished searches of a folder, by the names of their logs."""
    found = [read_log(path) for path in sorted(folder.glob("*.jsonl")) if header_of(path)]
    return [result for result in found if result is not None]


def read_result(path: str | os.PathLike) -> SearchResult | ParetoResult:
    """Read a finished search from its log.

    Args:
        path: the log, or the folder that holds it and no other one of a finished search.

    Raises:
        GrowtasError: there is no such log or there are several, the search is not finished, or the log is
            damaged.
    """
    path = Path(path)
    if path.is_dir():
        results = results_in(path)
        if len(results) == 1:
            return results[0]
        if results:
            names = ", ".join(result.path.name for result in results)
            raise GrowtasError(f"{path} holds {len(results)} finished searches: name one of {names}.")
        begun = [log for log in sorted(path.glob("*.jsonl")) if header_of(log)]
        path = begun[0] if begun else path / LOG_NAME
    if not path.is_file():
        raise GrowtasError(f"There is no search log {path}; search the run first.")
    result = read_log(path)
    if result is None:
        raise GrowtasError(f"The search in {path} is not finished; repeat it to resume it.")
    return result
