"""The steps of a long run in its log: of most of them only what was drawn is kept, packed.

A step record takes 250 bytes, most of them the subnet's sizes: 160 MB in the 625,000 steps of the published
recipe. There, some 20,000 complete ones, evenly spread, are enough for every curve. What was drawn is kept
of every step, for the figures of the sampling: a hundred steps make one record, with compressed JSON.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

BLOCK = 100  # steps of one record
MOST_BYTES = 2**24  # of what was drawn in them: a log may be somebody else's, and zlib packs a thousandfold
DRAWN = ("step", "subnets", "group")
COMPLETE = ("loss", "lr", "skipped")


def spacing(steps: int, log_every: int, log_steps: int) -> int:
    """Steps between complete records. Args: as of the run and its settings; log_steps: 0 for all."""
    return log_every * max(1, -(-steps // (log_every * log_steps)) if log_steps else 1)


@dataclass
class Block:
    """Steps of one epoch and stage that are to become one record.

    Args:
        common: their ``epoch``, ``stage`` and ``groups``.
        drawn: their :data:`DRAWN` values.
        complete: of the complete ones the :data:`COMPLETE` values, by step.
    """

    common: dict[str, Any]
    drawn: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in DRAWN})
    complete: dict[str, dict[str, Any]] = field(default_factory=dict)

    def takes(self, record: dict[str, Any]) -> bool:
        """Return whether a further step belongs here."""
        return len(self.drawn["step"]) < BLOCK and all(record[k] == v for k, v in self.common.items())

    def add(self, record: dict[str, Any], complete: bool) -> None:
        """Take a step. Args: record: of the step; complete: keep loss and learning rate, too."""
        for name, values in self.drawn.items():
            values.append(record[name])
        if complete:
            self.complete[str(record["step"])] = {k: record[k] for k in COMPLETE if k in record}

    def record(self) -> dict[str, Any]:
        """The values of the record of event ``steps``."""
        packed = zlib.compress(json.dumps(self.drawn, separators=(",", ":")).encode(), 9)
        last = self.drawn["step"][-1]
        return {**self.common, "last": last, "complete": self.complete, "drawn": b64encode(packed).decode()}


def unpacked(record: dict[str, Any], event: str) -> Iterator[dict[str, Any]]:
    """The steps of a record of event ``steps``.

    Args:
        record: from the log.
        event: ``step`` for the complete ones, ``draw`` for what was drawn in all of them.

    Raises:
        ValueError: what was drawn cannot be unpacked.
    """
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(b64decode(record["drawn"]), MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"the steps from {record['step']} on cannot be unpacked") from error
    if not inflater.eof:
        raise ValueError(f"the steps from {record['step']} on are cut short, or over {MOST_BYTES:,} bytes")
    drawn = json.loads(data)
    common = {name: record[name] for name in ("epoch", "stage", "groups")}
    complete, time = record["complete"], {"time": record["time"]}
    for values in zip(*(drawn[name] for name in DRAWN), strict=True):
        own = dict(zip(DRAWN, values, strict=True))
        if event == "draw":
            yield {"event": event, **common, **own, **time}
        elif str(own["step"]) in complete:
            yield {"event": event, **common, **own, **complete[str(own["step"])], **time}
