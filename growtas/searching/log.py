"""The append-only log of a search: one JSON object per line. No torch.

The first line, the header, says which search this is; with a predictor, the next one may hold what it knew
from other searches. Then comes one line per evaluation, in the order in which they were asked for, and at the
end one line with the result. A line is handed to the operating system as soon as it is complete, so that a
killed process loses no evaluation, and flushed to the disk once per generation, against a power cut. A last
line without its line end was being written when the process died: it is cut off. Every line has a checksum
over itself and the lines before it (:mod:`growtas.chain`); the lines of older versions have none.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from growtas import atomic
from growtas.chain import Chain, read_lines
from growtas.errors import GrowtasError, UsageError
from growtas.files import reading
from growtas.locks import lock
from growtas.progress import say
from growtas.searching.result import Evaluation, ParetoResult, Ranking, SearchResult, front_of
from growtas.subnet import AnySubnet, subnet_from_json

FORMAT = 1
LOG_NAME = "search.jsonl"
_REMEDY = "Put a good copy back, remove that line and what follows to go on there, or choose another out."


class SearchLog:
    """An open log, locked against a second writer; use it as a context manager.

    Args:
        path: the file; created with its folder if missing.
        identity: what makes this search this search (seed, limits, weights, ...), as plain values. A file
            whose header differs is refused.
        notes: further header values that may differ between the first run and a resumed one (versions).

    Raises:
        UsageError: the file is no search log or that of another search (it is left as it is), or it cannot
            be opened.
        GrowtasError: another process writes the log, or a line of it is damaged.

    Attributes:
        evaluations: the records of the evaluations.
        result: the record of the result, or None.
        prior: top1 of the subnets that a predictor knew from other searches when this one began.
    """

    def __init__(self, path: str | os.PathLike, identity: dict[str, Any], notes: dict[str, Any]) -> None:
        self.path = Path(path)
        identity = plain(identity)
        self.evaluations: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self.prior: dict[AnySubnet, float] = {}
        self._chain = Chain()
        try:
            atomic.make_folder(self.path.parent)
            self._file = open(self.path, "a+b", buffering=0)  # a failed write must not linger in a buffer
        except (OSError, atomic.NotWritten) as error:
            reason = getattr(error, "strerror", None) or error.__cause__.strerror
            raise UsageError(
                f"The search log {self.path} cannot be opened ({reason}); choose another out."
            ) from error
        try:
            self._lock()
            self._open(identity, notes)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SearchLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flush to the disk and release the lock."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def add_prior(self, top1: Mapping[AnySubnet, float]) -> None:
        """Append what a predictor knows from other searches, the first line after the header."""
        if top1:
            subnets = [[subnet.to_json(), value] for subnet, value in top1.items()]
            self._append({"record": "prior", "evaluations": subnets})
            self.prior = dict(top1)

    def add_evaluation(self, values: dict[str, Any]) -> None:
        """Append one evaluation. Raises: GrowtasError if the device is full; what stands in the log stays."""
        record = {"record": "evaluation", "index": len(self.evaluations), **values}
        self._append(record)
        self.evaluations.append(record)

    def add_result(self, values: dict[str, Any]) -> None:
        """Append the result, the last line. Raises: as :meth:`add_evaluation`."""
        self._append({"record": "result", **values})
        self.result = values
        self.sync()

    def sync(self) -> None:
        """Flush to the disk, against a power cut; a killed process needs no such thing.

        Raises:
            GrowtasError: the disk refuses.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def _lock(self) -> None:
        try:
            lock(self._file)
        except OSError as error:
            raise GrowtasError(
                f"Another process is writing the search log {self.path}; wait for it or choose another out."
            ) from error

    def _open(self, identity: dict[str, Any], notes: dict[str, Any]) -> None:
        header = {**identity, **notes}
        self._file.seek(0)
        content = self._file.read()
        whole, _, torn = content.rpartition(b"\n")
        if not whole:
            # nothing complete yet: only what a dying process can have left of this header may be cut; where
            # the power failed, zeros may stand for the rest
            torn = torn.rstrip(b"\0")
            start = json.dumps(identity, allow_nan=False).encode()[:-1]
            if not (start.startswith(torn) or torn.startswith(start)):
                raise UsageError(f"{self.path} is not a search log; it is left as it is. Choose another out.")
            self._cut(0)
            self._append(header)
            self.sync()
            try:
                atomic.flush_folder(self.path.parent)  # the file is new
            except OSError as error:
                raise self._refused(error) from error
            return
        records = read_records(self.path, content, self._chain)
        _check_same_search(self.path, records[0], identity)
        with reading(self.path, "a search log", _REMEDY):
            self.evaluations = _evaluations(records)
            for record in self.evaluations:
                Evaluation.from_json(record)
            for record in records:
                if record["record"] == "prior":
                    self.prior = {subnet_from_json(subnet): top1 for subnet, top1 in record["evaluations"]}
        results = [record for record in records if record["record"] == "result"]
        self.result = results[-1] if results else None
        if torn:
            self._cut(len(whole) + 1)
        if not self._chain.signed:
            say(
                f"The lines of {self.path} have no checksums, since an older version wrote them: what was "
                "changed there could not be noticed."
            )

    def _cut(self, size: int) -> None:
        try:
            self._file.truncate(size)
        except OSError as error:
            raise self._refused(error) from error

    def _append(self, record: dict[str, Any]) -> None:
        end = self._file.seek(0, os.SEEK_END)
        before = self._chain.value
        line = memoryview(self._chain.write(record))
        try:
            while line:  # a nearly full device takes part of a line and refuses the rest
                line = line[self._file.write(line) :]
        except OSError as error:
            self._chain.value = before
            with contextlib.suppress(OSError):  # if this fails too, the next opening cuts the torn line
                self._file.truncate(end)
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> GrowtasError:
        remedy = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Mend that"
        return GrowtasError(
            f"The search log {self.path} cannot be written ({error.strerror}); the {len(self.evaluations)} "
            f"evaluations in it are kept. {remedy} and run the same search again to resume."
        )


def plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The header that says which search this is, through JSON once, so that it equals what is read back."""
    return json.loads(json.dumps({"record": "search", "format": FORMAT, **identity}))


def read_records(path: Path, content: bytes, chain: Chain | None = None) -> list[dict[str, Any]]:
    """The objects of a log's complete lines.

    Args:
        path: for the error sentence.
        content: the lines; what stands behind the last line end is left out.
        chain: whose value holds these lines afterwards.

    Raises:
        UsageError: the first line is not the header of a search log of this format.
        GrowtasError: a line is damaged, or one was dropped, doubled or moved before it.
    """
    header = header_in(content)
    if header is None:
        raise UsageError(f"{path} is not a search log; it is left as it is. Choose another out.")
    if header.get("format") != FORMAT:
        raise UsageError(
            f"{path} is a search log of format {header.get('format')}, and this growtas reads format "
            f"{FORMAT}. Choose another out."
        )
    return list(records_in(path, content, chain))


def records_in(path: Path, content: bytes, chain: Chain | None = None) -> Iterator[dict[str, Any]]:
    """As :func:`read_records`, one after the other, and without looking at the header."""
    lines = (line + b"\n" for line in content.rpartition(b"\n")[0].split(b"\n"))
    for number, record in enumerate(read_lines(lines, f"the search log {path}", _REMEDY, chain), start=1):
        if "record" not in record:
            raise GrowtasError(f"Line {number} of the search log {path} is damaged (no 'record'). {_REMEDY}")
        yield record


def header_in(content: bytes) -> dict[str, Any] | None:
    """The header in the first line of a search log; None where it is no search log."""
    try:
        header = json.loads(content.partition(b"\n")[0])
        return header if header["record"] == "search" else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _check_same_search(path: Path, header: dict[str, Any], identity: dict[str, Any]) -> None:
    differing = [key for key in identity if header.get(key) != identity[key]]
    if not differing:
        return
    changes = "; ".join(_change(key, header.get(key), identity[key]) for key in differing)
    raise UsageError(
        f"{path} is the log of another search ({changes}). It is left as it is: repeat that "
        "search, or choose another out."
    )


def _change(key: str, there: Any, here: Any) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        return "; ".join(_change(name, there.get(name), here.get(name)) for name in names)
    if any(isinstance(value, dict | list) for value in (there, here)):
        return f"another {key}"
    shown = (value[:12] if isinstance(value, str) else value for value in (there, here))
    return "{}: {} there, {} here".format(key, *shown)


def _evaluations(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations of a log; those of an older version were all made on every image."""
    images = {"images": records[0].get("images")}
    return [{**images, **record} for record in records if record["record"] == "evaluation"]


def read_log(path: Path) -> SearchResult | ParetoResult | None:
    """The result in a search log; None where the search is not finished.

    Raises:
        GrowtasError: the file is no search log, or it is damaged.
    """
    records = read_records(path, path.read_bytes())
    header, result = records[0], records[-1]
    if result["record"] != "result":
        return None
    with reading(path, "the log of a search", _REMEDY):
        return _result_of(path, header, records, result)


def _result_of(
    path: Path, header: dict[str, Any], records: list[dict[str, Any]], result: dict[str, Any]
) -> SearchResult | ParetoResult:
    history = tuple(map(Evaluation.from_json, _evaluations(records)))
    ranking = Ranking(**result["predictor"]) if "predictor" in result else None
    ends = (result["test_top1"], result["feasible"], path, ranking)
    if header.get("pareto"):
        pareto = header["pareto"]
        return ParetoResult(
            pareto["name"], pareto["unit"], front_of(history), history, tuple(ends[0]), *ends[1:]
        )
    best = Evaluation.from_json({"images": header.get("images"), **result["best"]})
    return SearchResult(history[history.index(best)], history, *ends)
