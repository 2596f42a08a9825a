"""Mutations of bytes, tokens and lines. Each takes a private generator and returns a mutated copy."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from harness import Mutator

NUMBERS = (
    "0", "-0", "1", "-1", "2.9", "36.0", "1e400", "-1e400", "1e-400", "1e3", ".inf", "-.inf", ".nan",
    "inf", "nan", "2147483648", "18446744073709551616", "9" * 23, "1" * 5000, "0x10", "0b1", "0o7",
    "1_000", "1:30", "٣", "３", "²", "1j", "+5", "00012", "1e", "--5",
)  # fmt: skip
TEXTS = (
    "", " ", "null", "~", "true", "no", "None", "\0", "\x1b[31m", "\u2028", "é", "😀", "\ud800",
    "a" * 5000, "..", "../../etc", "/dev/null", "/proc/self/mem", "~", "%s%n", "{0}", "{x!r}", "$HOME",
    "a,b", ",", "/", "//", "-", "=", "a=b", ":", "'", '"', "\\", "\t", "\r", "meta", "cuda:99", "cpu:1",
    "auto", "none", "smallest",
)  # fmt: skip
YAML = (
    "[]", "{}", "[1]", "[[1]]", "[[[[[]]]]]", "{a: 1}", "{? [1] : 2}", "[1, a]", "[1.5, null]", "[true]",
    "[.nan]", "[.inf]", "[-1]", "[2, 1]", "[1, 1]", "[1, 1.0]", "'1'", "'[1]'", "2024-13-45",
    "2024-01-01", "[2024-01-01]", "2001-12-14t21:59:43.10-05:00", "!!float 'abc'", "!!int 'x'",
    "!!int '1.5'", "!!bool 'x'", "!!null 'x'", "!!timestamp 'x'", "!!binary '!'", "!!binary 'aGk='",
    "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system", "!!python/tuple [1]", "!own 1", "!!str 1", "!!float 1", "!!int 1", "&a 1",
    "*a", "&a [*a]", "<<", "@", "`", "%", "|", ">", "? ", "- ", "---", "...", "%YAML 9.9",
    "!<tag:yaml.org,2002:int> 3", "[" * 3000, "[" * 60 + "]" * 60, "{a: " * 100, "\ufeff",
    "[" + "1, " * 3000 + "1]", "[1e400]", "[" + "9" * 23 + "]", "[" + "1" * 5000 + "]", "1.0e+400", "0.0",
    "-.inf",
)  # fmt: skip
_TOKEN = re.compile(rb"\[[^\]\n]*\]|'[^'\n]*'|[-+.\w]+")


def in_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four edits that know nothing of the format: flips, cuts, copies, bytes that are no text."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + 1 + int(rng.expovariate(0.1)))
        edit = rng.randrange(7)
        if edit == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif edit == 1:
            data[at:at] = rng.choice((b"\0", b"\x80", b"\xff", b"\xc3\x28", b"\n", b"\r\n", b"\xef\xbb\xbf"))
        elif edit == 2:
            del data[at:end]
        elif edit == 3:
            del data[at:]
        elif edit == 4:
            data[at:at] = data[at:end] * rng.choice((1, 2, 100))
        elif edit == 5:
            data[at:at] = rng.randbytes(rng.randint(1, 8))
        elif at < len(data):
            data[at] = rng.randrange(256)
    return bytes(data)


def in_tokens(values: Sequence[str]) -> Mutator:
    """A mutator that puts one of some values in the place of one to three numbers, words or lists."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        for _ in range(rng.randint(1, 3)):
            tokens = list(_TOKEN.finditer(data))
            if not tokens:
                return data
            token = rng.choice(tokens)
            new = rng.choice(values).encode(errors="surrogatepass")
            if rng.random() < 0.1:  # within it
                new = token[0][: len(token[0]) // 2] + new
            data = data[: token.start()] + new + data[token.end() :]
        return data

    return mutate


def in_values(values: Sequence[str]) -> Mutator:
    """A mutator that gives one or two keys of YAML in block form other values."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        lines = data.split(b"\n")
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(lines))
            key, colon, _ = lines[at].partition(b":")
            lines[at] = key + colon + b" " + rng.choice(values).encode(errors="surrogatepass")
        return b"\n".join(lines)

    return mutate


def in_lines(rng: random.Random, data: bytes) -> bytes:
    """Lines repeated, dropped, swapped, indented or pulled out."""
    lines = data.split(b"\n")
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        edit = rng.randrange(5)
        if edit == 0:
            lines.insert(other, lines[at])
        elif edit == 1 and len(lines) > 1:
            del lines[at]
        elif edit == 2:
            lines[at], lines[other] = lines[other], lines[at]
        elif edit == 3:
            lines[at] = b" " * rng.randint(1, 4) + lines[at]
        else:
            lines[at] = lines[at].lstrip()
    return b"\n".join(lines)


def bomb(rng: random.Random, data: bytes) -> bytes:
    """Aliases of aliases: a few hundred bytes that mean a large or an endless value."""
    width, depth = rng.choice((2, 9, 30)), rng.choice((3, 9, 27))
    key = rng.choice(data.split(b"\n")).partition(b":")[0].strip().decode(errors="replace") or "x"
    anchors = ["x0: &x0 [1, 1, 1]"]
    anchors += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * width)}]" for i in range(1, depth)]
    tail = rng.choice((f"{key}: *x{depth - 1}", f"<<: *x{depth - 1}", f"? *x{depth - 1}\n: 1"))
    if rng.random() < 0.2:
        anchors, tail = [f"{key}: &x [*x, *x]"], ""
    parts = ["\n".join(anchors).encode(), data, tail.encode()]
    rng.shuffle(parts)
    return b"\n".join(parts)


def one_of(*mutators: Mutator, twice: float = 0.2) -> Mutator:
    """A mutator that applies one of several, and sometimes another one on top."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        data = rng.choice(mutators)(rng, data)
        return rng.choice(mutators)(rng, data) if rng.random() < twice else data

    return mutate


yaml: Mutator = one_of(
    in_bytes,
    in_tokens(NUMBERS + TEXTS),
    in_values(NUMBERS),
    in_values(YAML),
    in_values(YAML + TEXTS),
    in_lines,
    bomb,
)
"""Mutates YAML in block form."""

JSON = (
    "[]", "{}", "[1]", '"1"', "null", "true", "NaN", "Infinity", "-Infinity", "1e999", "-1", "0", "0.5",
    "2.9", "5.0", '"3"', "[[1]]", '{"a": 1}', '"\\ud800"', '"\\u0000"', "[" * 2000, "65536", "131073",
    "[1, null]", "[3, 1e9]",
)  # fmt: skip
json_tokens = in_tokens(JSON + NUMBERS + TEXTS)
json_text: Mutator = one_of(in_bytes, json_tokens, json_tokens, in_lines)
"""Mutates JSON."""
