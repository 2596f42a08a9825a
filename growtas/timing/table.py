"""Measured latencies of a space's pieces, and what follows from them for its subnets; one file per table."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from growtas import atomic, cost
from growtas.errors import UsageError
from growtas.ops import records
from growtas.progress import Progress
from growtas.space import Space, seeded_rng
from growtas.subnet import AnySubnet
from growtas.timing import pieces, targets

FORMAT = 1
LEAST_RANK_CORRELATION = 0.98
LARGEST_ERROR = 0.05
LEAST_ROUNDS, MOST_ROUNDS = 15, 200
SECONDS = 10.0  # of the rounds, as far as the least and the most allow
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
    """

    subnets: int
    rank_correlation: float
    error: float
    repeatability: float

    @property
    def good(self) -> bool:
        """Both are within the bars: a rank correlation of 0.98, an error of 5 %."""
        return self.rank_correlation >= LEAST_RANK_CORRELATION and self.error <= LARGEST_ERROR

    def __str__(self) -> str:
        return (
            f"rank correlation {self.rank_correlation:.3f} (at least {LEAST_RANK_CORRELATION}), median error "
            f"{100 * self.error:.1f} % (at most {100 * LARGEST_ERROR:.0f} %) on {self.subnets} subnets "
            f"measured end to end, whose own rank correlation from round to round is {self.repeatability:.3f}"
        )


class LatencyTable:
    """Latencies of a space's subnets on one device; :func:`growtas.latency` measures it.

    All pieces are timed in turns, round by round, so that a slower machine is slower for all of them and the
    weights of a piece are not left in the cache since its last turn; so are the smallest, the largest and
    three random subnets, end to end. The median of the rounds counts. A subnet's latency is predicted as the
    sum of its pieces', times a scale and plus an offset, which those five subnets give by least squares of
    the relative error: a call of the whole has a cost of its own, and within a network the next piece finds
    its input in the cache.

    Args:
        space: the search space.
        num_classes: outputs of the head.
        on: ``cpu``, ``cuda`` or ``onnxruntime``.
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
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:12]
        name = re.sub(r"[^a-z0-9]+", "-", f"{self.key['device']} {on} {space.name}".lower()).strip("-")
        self.path = records.cache_folder() / "latency" / f"{name}-{digest}.json"
        self._data = self._read()

    # -- measuring ---------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Every piece is measured."""
        return self._names <= set(self._data["pieces"]["samples"]) and _is_done(self._data["pieces"])

    def finish(self) -> None:
        """Measure what is missing; each round is kept as soon as it is complete."""
        if self.finished:
            return
        with targets.ready(self.threads):
            runs = {}
            for subnet in pieces.covering(self.space):
                names = pieces.pieces_of(self.space, subnet)
                if set(names) <= set(runs):
                    continue
                x = pieces.images(self.space, self.batch)
                modules = pieces.modules_of(pieces.plain_model(self.space, self.num_classes, subnet))
                for name, module in zip(names, modules, strict=True):
                    following = module(x)
                    if name not in runs:
                        runs[name] = self._prepared(module, x)
                    x = following
            runs |= {str(subnet): self._whole(subnet) for subnet in self._anchors}
            self._rounds(self._data["pieces"], runs)

    def measure(self, subnets: Sequence[AnySubnet]) -> list[float]:
        """Milliseconds of subnets, end to end; each is measured once and then read from the file.

        Beside them the smallest subnet is timed again. Where it takes longer than it did for the table, the
        machine is slower than it was, and the other times are divided by as much.
        """
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
                self._rounds(series[-1], runs)
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
            measured = self.measure(list(drawn))
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
            )
            self._data["validation"] = dataclasses.asdict(found)
            self._write()

    def _prepared(self, module: Any, x: Any) -> targets.Run:
        return targets.prepare(module, x, self.on, self.threads)

    def _whole(self, subnet: AnySubnet) -> targets.Run:
        model = pieces.plain_model(self.space, self.num_classes, subnet)
        return self._prepared(model, pieces.images(self.space, self.batch))

    def _rounds(self, series: dict[str, Any], runs: dict[str, targets.Run]) -> None:
        samples, wanted = series["samples"], series["rounds"] or LEAST_ROUNDS
        done = min(len(samples.get(name, ())) for name in runs)
        with Progress(wanted, "latency", "round", done=done, leave=False) as progress:
            while done < wanted:
                order = list(runs) if done % 2 else list(reversed(runs))
                new = {name: targets.milliseconds(name, runs[name], self.on, self.threads) for name in order}
                if not done:  # the first round tells how many are worth their time
                    wanted = int(1e3 * SECONDS / sum(new.values()))
                    progress.total = wanted = min(max(wanted, LEAST_ROUNDS), MOST_ROUNDS)
                series["rounds"] = wanted
                for name, taken in new.items():
                    samples[name] = [*samples.get(name, ()), round(taken, 6)]
                self._write()
                done += 1
                progress.update()

    def _measured(self, first: int = 0, step: int = 1) -> dict[str, float]:
        """Milliseconds of the subnets that were measured end to end. Args: first, step: of the rounds."""
        found, reference = {}, str(self._anchors[0])
        for series in filter(_is_done, self._data["whole"]):
            taken = {name: statistics.median(each[first::step]) for name, each in series["samples"].items()}
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
        return {name: statistics.median(taken) for name, taken in self._data["pieces"]["samples"].items()}

    @functools.cached_property
    def fit(self) -> tuple[float, float]:
        """Offset (in ms) and scale of the sum of the pieces."""
        whole = [self.times[str(subnet)] for subnet in self._anchors]
        sums = [self._sum(subnet) for subnet in self._anchors]
        return _line(sums, whole)

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
        fresh = {"format": FORMAT, "key": self.key, "pieces": {"rounds": 0, "samples": {}}, "whole": []}
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.path, json.dumps(self._data) + "\n")


def _is_done(series: dict[str, Any]) -> bool:
    return series["rounds"] > 0 and all(len(s) >= series["rounds"] for s in series["samples"].values())


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset and scale of ``y`` by ``x``, of least squares of the relative error; neither is negative."""
    weights = [1 / value**2 for value in y]
    total = sum(weights)
    mean_x, mean_y = (sum(w * v for w, v in zip(weights, values, strict=True)) / total for values in (x, y))
    both = list(zip(weights, x, y, strict=True))
    variance = sum(w * (a - mean_x) ** 2 for w, a, _ in both)
    scale = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in both) / variance if variance else 0.0
    offset = mean_y - scale * mean_x
    if scale > 0 and offset >= 0:
        return offset, scale
    inverse = [a / b for a, b in zip(x, y, strict=True)]
    return 0.0, sum(inverse) / sum(value**2 for value in inverse)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, with the mean rank of equal values; 0 where all values of one are equal."""
    try:
        return statistics.correlation(_ranks(a), _ranks(b))
    except statistics.StatisticsError:
        return 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
