"""Command lines: every verb with its options, their values mutated. Nothing is trained or measured.

The runs and models that verbs work on are not there, so that good arguments end in a sentence too; training
tells what it would take. An input is one argument a line.
"""

from __future__ import annotations

import functools
import inspect
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import mutators
from harness import Refused, Target, call

from growtas import cli, data_commands

SMALL = ["train", "--space", "digits", "--dry-run", "--epochs", "4", "--no-tensorboard"]
NOWHERE = "nowhere.yaml"  # no such space, run, model or folder
MISSING: dict[str, list[str]] = {
    "finetune": [NOWHERE],
    "transfer": [NOWHERE, "--data", "folder:nowhere", "--out", "new"],
    "search": [NOWHERE],
    "latency": [NOWHERE],
    "emit": [NOWHERE],
    "extract": [NOWHERE, "--out", "new"],
    "evaluate": [NOWHERE],
    "check": [NOWHERE],
    "export": [NOWHERE, "--to", "onnx"],
    "compare": ["held", "--space", NOWHERE],
    "report": [NOWHERE],
    "spaces": [NOWHERE],
    "tune": [NOWHERE],
    "warmup": [NOWHERE],
    "data check": ["folder:nowhere"],
    "data pack": ["folder:nowhere", "new"],
}
"""Arguments that end in a sentence, of each verb but the demo, which would run in any new folder."""
READING = (
    "search",
    "emit",
    "extract",
    "evaluate",
    "check",
    "export",
    "spaces",
)  # their own arguments too


VALUES = tuple(each for each in mutators.NUMBERS + mutators.TEXTS if not "\ud800" <= each[:1] <= "\udfff")


class _Seen(Exception):
    """Carries the parameters that a verb would have parsed."""


def parameters(verb: str) -> list[inspect.Parameter]:
    """The options of a verb, with their types."""

    def stop(collect: Callable, **_: object) -> None:
        raise _Seen(collect.__signature__.parameters.values())

    run = data_commands.COMMANDS[verb[5:]] if verb.startswith("data ") else cli.VERBS[verb]
    with mock.patch("tyro.cli", stop):
        try:
            run([])
        except _Seen as seen:
            return list(seen.args[0])
    raise AssertionError(f"growtas {verb} parses nothing")


def verbs() -> Iterator[str]:
    """Every verb and every command of ``growtas data``."""
    yield from (verb for verb in cli.VERBS if verb != "data")
    yield from (f"data {name}" for name in data_commands.COMMANDS)


def option(name: str) -> str:
    """The name of an option in a shell."""
    return f"--{name.replace('_', '-')}"


@functools.cache
def _options() -> dict[str, tuple[str, ...]]:
    return {verb: tuple(option(p.name) for p in parameters(verb)) for verb in verbs()}


def _lines(args: Sequence[str]) -> bytes:
    return "\n".join(args).encode(errors="surrogateescape")


def _mutate(rng: random.Random, data: bytes) -> bytes:
    """Options added, values changed, arguments dropped, doubled or swapped; the verb stays."""
    args = data.decode(errors="surrogateescape").split("\n")
    verb = " ".join(args[:2]) if args[0] == "data" else args[0]
    own = verb.count(" ") + 1 + (0 if verb in READING else len(MISSING.get(verb, SMALL[1:])))
    for _ in range(rng.randint(1, 3)):
        edit, at = rng.randrange(6), rng.randrange(own, len(args) + 1)
        if edit <= 2:
            args += [rng.choice(_options().get(verb, ("--x",))), rng.choice(VALUES)]
        elif edit == 3 and at < len(args):
            args[at] = rng.choice(VALUES)
        elif edit == 4 and at < len(args):
            changed = mutators.in_bytes(rng, args[at].encode(errors="surrogateescape"))
            args[at] = changed.decode(errors="surrogateescape")
        elif at < len(args):
            args.insert(rng.randrange(own, len(args)), args[at])
    return _lines(args)


def _run(folder: Path) -> None:
    args = (folder / "arguments").read_bytes().decode(errors="surrogateescape").split("\n")
    before = os.getcwd()
    os.chdir(folder)
    try:
        if args[0] == "train":  # whatever became of the arguments
            args += ["--dry-run"]
        call(*args)
    finally:
        os.chdir(before)


def _place(data: bytes, folder: Path) -> None:
    (folder / "arguments").write_bytes(data)
    (folder / "held").mkdir()  # a folder that holds something else
    (folder / "held" / "thesis.tex").write_text("two years of work")


def _missing() -> Sequence[bytes]:
    return [_lines([*verb.split(), *args]) for verb, args in MISSING.items()]


def _refused(folder: Path) -> None:
    """As good as a success: what the seeds name is not there."""
    try:
        _run(folder)
    except Refused as error:
        if NOWHERE.removesuffix(".yaml") in str(error) or "held" in str(error):
            return
        raise


TARGETS = (
    Target("train-arguments", lambda: [_lines(SMALL)], _mutate, _run, _place, share=1),
    Target("arguments", functools.cache(_missing), _mutate, _refused, _place, share=2),
)
