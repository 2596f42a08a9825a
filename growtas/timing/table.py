"""Measured latencies of a space's pieces, and what follows from them for its subnets; one file per table."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from growtas import atomic, cost
from growtas.errors import UsageError
from growtas.ops import records
from growtas.progress import Progress, say
from growtas.space import Space, seeded_rng
from growtas.subnet import AnySubnet
from growtas.timing import pieces, targets
from growtas.timing.estimates import line, rank_correlation, repeatability, typical

FORMAT = 2
LEAST_RANK_CORRELATION = 0.98
LARGEST_ERROR = 0.05
LEAST_ROUNDS, MOST_ROUNDS = 15, 200
PIECES_SECONDS = 20.0  # of all rounds, as far as the least and the most allow
SUBNETS_SECONDS = 10.0
VALIDATION_SECONDS = 120.0  # as long as its ranks do not repeat
WRITE_EVERY = 1.0  # seconds
AT_ONCE = 4 * 10**9  # bytes of weights of whole subnets in memory
_TRIES = 100  # per subnet that the validation draws


@dataclass(frozen=True)
class Validation:
    """How well predictions agree with subnets that were measured end to end.

    Args:
        subnets: how many.
        rank_correlation: Spearman's.
        error: median of the relative errors.
        repeatability: Spearman's between the subnets' times in every other round and in the others; where the
            machine is so busy that this is low, no prediction can do better.
        rounds: in which the subnets were timed.
    """

    subnets: int
    rank_correlation: float
    error: float
    repeatability: float
    rounds: int

    @property
    def good(self) -> bool:
        """Both are within the bars: a rank correlation of 0.98, an error of 5 %."""
        return self.rank_correlation >= LEAST_RANK_CORRELATION and self.error <= LARGEST_ERROR

    def __str__(self) -> str:
        return (
            f"rank correlation {self.rank_correlation:.3f} (at least {LEAST_RANK_CORRELATION}), median error "
            f"{100 * self.error:.1f} % (at most {100 * LARGEST_ERROR:.0f} %) on {self.subnets} subnets "
            f"measured end to end in {self.rounds} rounds; the measured ranks of every other round correlate "
            f"at {self.repeatability:.3f} with those of the others"
        )


class LatencyTable:
    """Latencies of a space's subnets on one device; :func:`growtas.latency` measures it.

    All pieces are timed in turns, round by round, so that a slower machine is slower for all of them and the
    weights of a piece are not left in the cache since its last turn; so are the smallest, the largest and
    three random subnets, end to end. Each round is divided by its level, and the median of the rounds counts
    (:func:`growtas.timing.estimates.typical`). A subnet's latency is predicted as the sum of its pieces',
    times a scale and plus an offset, which those five subnets give by least squares of the relative error: a
    call of the whole has a cost of its own, and within a network the next piece finds its input in the cache.

    Args:
        space: the search space.
        num_classes: outputs of the head.
        on: one of :data:`growtas.timing.targets.TARGETS`.
        batch: images of one call.
        threads: of the processor.
    """

    def __init__(self, space: Space, num_classes: int, on: str, batch: int, threads: int) -> None:
        self.space, self.num_classes = space, num_classes
        self.on, self.batch, self.threads = on, batch, threads
        content = json.dumps([space.to_dict(), num_classes], sort_keys=True)
        self.key = {
            **targets.machine(on),
            "on": on,
            "batch": batch,
            "threads": threads,
            "space": hashlib.sha256(content.encode()).hexdigest()[:12],
        }
        digest = hashlib.sha256(json.dumps([FORMAT, self.key], sort_keys=True).encode()).hexdigest()[:12]
        name = re.sub(r"[^a-z0-9]+", "-", f"{self.key['device']} {on} {space.name}".lower()).strip("-")
        self.path = records.cache_folder() / "latency" / f"{name}-{digest}.json"
        self._data = self._read()
        self._typical: dict[tuple[int, int, int], dict[str, float]] = {}  # of series that are done

    # -- measuring ---------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Every piece is measured."""
        return self._names <= set(self._data["pieces"]["samples"]) and _is_done(self._data["pieces"])

    def finish(self) -> None:
        """Measure what is missing; complete rounds are kept, whatever ends it."""
        if self.finished:
            return
        total = len(self._names) - len(self._anchors)
        if targets.is_compiled(self.on):
            say(f"latency: {total} pieces are compiled first; torch keeps what is compiled for the next time")
        with targets.ready(self.threads), Progress(total, "prepare", "piece", leave=False) as progress:
            runs: dict[str, targets.Run] = {}
            for subnet in pieces.covering(self.space):
                parts = self._parts(subnet)
                if {name for name, _ in parts} <= set(runs):
                    continue
                inputs = [pieces.images(self.space, self.batch)]
                for _, module in parts:
                    inputs.append(module(inputs[-1]))
                for part, x in zip(parts, inputs[:-1], strict=True):  # which may move the model to a GPU
                    if part[0] not in runs:
                        runs[part[0]] = targets.prepare([part], x, self.on, self.threads)
                        progress.update()
            runs |= {str(subnet): self._whole(subnet) for subnet in self._anchors}
            self._rounds(self._data["pieces"], runs, PIECES_SECONDS)

    def measure(self, subnets: Sequence[AnySubnet], validation: bool = False) -> list[float]:
        """Milliseconds of subnets, end to end; each is measured once and then read from the file.

        Beside them the smallest subnet is timed again. Where it takes longer than it did for the table, the
        machine is slower than it was, and the other times are divided by as much.

        Args:
            subnets: of the space.
            validation: for up to two minutes, until the ranks of every other round correlate at 0.98 with
                those of the others; else for ten seconds.
        """
        seconds, steady = SUBNETS_SECONDS, None
        if validation:
            seconds, steady = VALIDATION_SECONDS, LEAST_RANK_CORRELATION
        measured, series = self._measured(), self._data["whole"]
        left = [subnet for subnet in dict.fromkeys(subnets) if str(subnet) not in measured]
        weights = 4 * cost.parameters(self.space.largest(), self.space, self.num_classes)
        at_once = max(1, AT_ONCE // weights)
        for start in range(0, len(left), at_once):
            with targets.ready(self.threads):
                chosen = (self._anchors[0], *left[start : start + at_once])
                runs = {str(subnet): self._whole(subnet) for subnet in chosen}
                if series and not _is_done(series[-1]) and set(series[-1]["samples"]) != set(runs):
                    series.pop()
                if not series or _is_done(series[-1]):
                    series.append({"rounds": 0, "samples": {}})
                self._rounds(series[-1], runs, seconds, steady)
        measured = self._measured() if left else measured
        return [measured[str(subnet)] for subnet in subnets]

    def validate(self, subnets: int) -> None:
        """Measure random subnets end to end, the same ones each time, and keep how well they are predicted.

        Args:
            subnets: how many; where the space has fewer than three, nothing is validated.
        """
        known = self.validation
        if known is not None and known.subnets >= subnets:
            return
        rng, drawn = seeded_rng("latency", 0), {}
        for _ in range(_TRIES * subnets):
            drawn[self.space.sample(rng)] = None
            if len(drawn) == subnets:
                break
        if len(drawn) > 2:
            measured = self.measure(list(drawn), validation=True)
            predicted = [self.predict(subnet) for subnet in drawn]
            errors = [abs(a - b) / b for a, b in zip(predicted, measured, strict=True)]
            halves = [
                [times[str(subnet)] for subnet in drawn] for times in map(self._measured, (0, 1), (2, 2))
            ]
            found = Validation(
                len(drawn),
                rank_correlation(predicted, measured),
                statistics.median(errors),
                rank_correlation(*halves),
                min(series["rounds"] for series in self._data["whole"]),
            )
            self._data["validation"] = dataclasses.asdict(found)
            self._write()

    def _parts(self, subnet: AnySubnet) -> targets.Parts:
        """The pieces of a subnet's model."""
        modules = pieces.modules_of(pieces.plain_model(self.space, self.num_classes, subnet))
        return list(zip(pieces.pieces_of(self.space, subnet), modules, strict=True))

    def _whole(self, subnet: AnySubnet) -> targets.Run:
        if targets.is_compiled(self.on):
            parts = self._parts(subnet)
        else:
            parts = [(str(subnet), pieces.plain_model(self.space, self.num_classes, subnet))]
        return targets.prepare(parts, pieces.images(self.space, self.batch), self.on, self.threads)

    def _rounds(
        self,
        series: dict[str, Any],
        runs: dict[str, targets.Run],
        seconds: float,
        steady: float | None = None,
    ) -> None:
        samples, wanted = series["samples"], series["rounds"] or LEAST_ROUNDS
        done, written = min(len(samples.get(name, ())) for name in runs), time.monotonic()
        try:
            with Progress(wanted, "latency", "round", done=done, leave=False) as progress:
                while done < wanted:
                    order = list(runs) if done % 2 else list(reversed(runs))
                    new = {n: targets.milliseconds(n, runs[n], self.on, self.threads) for n in order}
                    if not done:  # the first round tells how many are worth their time
                        wanted = int(1e3 * seconds / sum(new.values()))
                        progress.total = wanted = min(max(wanted, LEAST_ROUNDS), MOST_ROUNDS)
                    for name, taken in new.items():
                        samples.setdefault(name, []).append(round(taken, 6))
                    done += 1
                    if steady is not None and done >= LEAST_ROUNDS and repeatability(samples) >= steady:
                        wanted = done
                    series["rounds"] = wanted
                    if time.monotonic() > written + WRITE_EVERY:
                        self._write()
                        written = time.monotonic()
                    progress.update()
        finally:
            self._write()

    def _measured(self, first: int = 0, step: int = 1) -> dict[str, float]:
        """Milliseconds of the subnets that were measured end to end. Args: first, step: of the rounds."""
        found, reference = {}, str(self._anchors[0])
        for number, series in enumerate(self._data["whole"]):
            if not _is_done(series):
                continue
            key = number, first, step
            if key not in self._typical:
                self._typical[key] = typical(series["samples"], first, step)
            taken = self._typical[key]
            slower = taken[reference] / self.times[reference]
            found |= {name: each / slower for name, each in taken.items()}
        return found

    # -- what follows ------------------------------------------------------------------------------------

    def predict(self, subnet: AnySubnet) -> float:
        """Milliseconds of a subnet, from its pieces."""
        offset, scale = self.fit
        return offset + scale * self._sum(subnet)

    def ms(self, subnet: AnySubnet) -> float:
        """Milliseconds of a subnet: predicted, or measured end to end where predictions are not good."""
        return self.measure([subnet])[0] if self.direct else self.predict(subnet)

    @property
    def validation(self) -> Validation | None:
        """How well predictions agree with measurements; None where this was not measured."""
        found = self._data.get("validation")
        return found and Validation(**found)

    @property
    def direct(self) -> bool:
        """Subnets are measured end to end, because predictions are not good."""
        return self.validation is not None and not self.validation.good

    @functools.cached_property
    def times(self) -> dict[str, float]:
        """Milliseconds of each piece, and of the subnets that gave the fit."""
        return typical(self._data["pieces"]["samples"])

    @functools.cached_property
    def fit(self) -> tuple[float, float]:
        """Offset (in ms) and scale of the sum of the pieces."""
        whole = [self.times[str(subnet)] for subnet in self._anchors]
        sums = [self._sum(subnet) for subnet in self._anchors]
        return line(sums, whole)

    @property
    def digest(self) -> str:
        """Of the numbers that latencies follow from."""
        content = json.dumps([self.times, self.direct], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @functools.cached_property
    def _anchors(self) -> tuple[AnySubnet, ...]:
        rng, space = seeded_rng("latency", 1), self.space
        drawn = (space.sample(rng) for _ in range(3))
        return tuple(dict.fromkeys((space.smallest(), *drawn, space.largest())))

    @functools.cached_property
    def _names(self) -> set[str]:
        covering = (pieces.pieces_of(self.space, subnet) for subnet in pieces.covering(self.space))
        return {name for names in covering for name in names} | {str(subnet) for subnet in self._anchors}

    def _sum(self, subnet: AnySubnet) -> float:
        return sum(self.times[name] for name in pieces.pieces_of(self.space, subnet))

    def __str__(self) -> str:
        spreads, series = [], self._data["pieces"]
        rounds = series["rounds"]
        for name in self._names:
            low, middle, high = statistics.quantiles(series["samples"][name], n=4, method="inclusive")
            spreads.append((high - low) / middle)
        smallest, largest = (self.predict(s) for s in (self.space.smallest(), self.space.largest()))
        lines = [
            f"{self.space.name} on {self.key['device']} ({self.on}, batch {self.batch}, {self.threads} "
            f"thread{'s' * (self.threads > 1)}): {smallest:.3g} ms (smallest) to {largest:.3g} ms (largest)",
            f"{len(self._names) - len(self._anchors)} pieces, {rounds} rounds each; quartiles apart by "
            f"{100 * statistics.median(spreads):.1f} % (median of the pieces)",
        ]
        if self.validation is not None:
            lines.append(f"predictions: {self.validation}")
        return "\n".join([*lines, f"table: {self.path}"])

    # -- the file ----------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        fresh = {"format": FORMAT, "key": self.key, "space": self.space.name}
        fresh |= {"pieces": {"rounds": 0, "samples": {}}, "whole": []}
        try:
            found = json.loads(self.path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return fresh
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path} is not a table of latencies ({error}); remove it.") from error
        if not isinstance(found, dict) or (found.get("format"), found.get("key")) != (FORMAT, self.key):
            raise UsageError(f"{self.path} is not this table of latencies of format {FORMAT}; remove it.")
        return found

    def _write(self) -> None:
        atomic.make_folder(self.path.parent)
        atomic.write_text(self.path, json.dumps(self._data) + "\n")


def _is_done(series: dict[str, Any]) -> bool:
    return series["rounds"] > 0 and all(len(s) >= series["rounds"] for s in series["samples"].values())
