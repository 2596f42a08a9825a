"""Lines of JSON that carry a checksum over themselves and over all lines before them. No torch.

A line that was changed, dropped, doubled or moved in an append-only file breaks the chain, at the line that
is named. Where a file ends is not held by it. Lines of older versions have no checksum; those that come
behind them cover them, too. Line ends may have become CR LF.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from growtas.errors import GrowtasError

_SIGNED = re.compile(rb', "crc": "([0-9a-f]{8})"\}\Z')
_TAIL = len(b', "crc": "00000000"}')


class Chain:
    """The running checksum (CRC-32) of a file of such lines.

    Attributes:
        value: of the lines so far.
        signed: one of them had its checksum: from then on, all must.
    """

    def __init__(self) -> None:
        self.value = 0
        self.signed = False

    def write(self, record: dict[str, Any]) -> bytes:
        """The next line. Args: record: plain values, no NaN."""
        body = json.dumps(record, allow_nan=False).encode()[:-1]
        self.value, self.signed = zlib.crc32(body, self.value), True
        return body + b', "crc": "%08x"}\n' % self.value

    def read(self, line: bytes) -> dict[str, Any]:
        """The record of the next line. Raises: ValueError: what is wrong with it."""
        line = line.rstrip(b"\r\n")
        found = _SIGNED.search(line, max(0, len(line) - _TAIL))
        if not found and self.signed:
            raise ValueError("it lacks its checksum")
        body = line[: -_TAIL if found else -1]
        value = zlib.crc32(body, self.value)
        if found and int(found[1], 16) != value:
            raise ValueError(
                "its checksum does not match: it was changed, or one before it dropped, doubled or moved"
            )
        record = json.loads(body + b"}" if found else line)
        if not isinstance(record, dict):
            raise ValueError("it is no object")
        self.value, self.signed = value, bool(found)
        return record


def read_lines(
    lines: Iterable[bytes], name: str, remedy: str, chain: Chain | None = None
) -> Iterator[dict[str, Any]]:
    """The records of a file's complete lines.

    Args:
        lines: with their ends; an unfinished last one, which a killed process leaves, is left out.
        name: of the file, for the sentence, such as ``the search log runs/x/search.jsonl``.
        remedy: a sentence.
        chain: whose value holds the lines read so far.

    Raises:
        GrowtasError: a line is damaged.
    """
    chain = chain or Chain()
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            record = chain.read(line)
        except (ValueError, RecursionError) as error:  # of bytes that are no text, too
            reason = " ".join(str(error).split())[:200]
            raise GrowtasError(f"Line {number} of {name} is damaged ({reason}). {remedy}") from error
        yield record
