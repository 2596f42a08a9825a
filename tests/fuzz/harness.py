"""The judge of mutated inputs: every one ends in success or in one sentence, and nothing else happens.

A :class:`Target` is one reader of something that strangers write: a YAML file, arguments, weights. Mutation
``number`` of a target is a function of (seed, target, number) alone, so that one that fails is made again by
its number. All run in this process, each in a folder of its own.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from growtas import cli
from growtas.errors import GrowtasError

MOST_CHARACTERS = 2000  # of a message
CPU_SECONDS = 20.0  # of one input; processor time, so that a busy machine does not matter
MEMORY = 4 << 30  # bytes that one input may add to the process
INPUT = "input"  # the usual name of the file that holds a mutated input

Mutator = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Target:
    """Reads one kind of input.

    Args:
        name: of the target, for reports and the command that repeats an input.
        seeds: good inputs that mutations start from; made once.
        mutate: a mutated copy of one of them.
        run: reads the input that ``place`` put into a folder. It returns where that succeeds and raises a
            GrowtasError, or a :class:`Refused` of the command line, where it is refused.
        place: writes an input into an empty folder.
        share: of the mutations of a run over several targets; more where an input takes little time.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutator
    run: Callable[[Path], None]
    place: Callable[[bytes, Path], None] = lambda data, folder: (folder / INPUT).write_bytes(data) and None
    share: float = 1.0


class Refused(Exception):
    """The command line ended with another status than 0. Args: status; error: what it wrote to stderr."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


class TooLong(BaseException):
    """An input took more processor time than it may; no handler of Exception catches this."""


def call(*argv: str) -> str:
    """Run the command line in this process. Returns: standard output. Raises: Refused."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(argv)
    if status:
        raise Refused(status, err.getvalue())
    return out.getvalue()


def complaint(error: BaseException) -> str | None:
    """Return how the end of a run breaks the rule of one sentence, or None where it keeps it."""
    text = str(error)
    if len(text) > MOST_CHARACTERS:
        return f"a message of {len(text):,} characters: {text[:200]}..."
    if "Traceback (most recent call last)" in text or "unexpected " in text and "GROWTAS_DEBUG" in text:
        return f"a raw error: {text}"
    if isinstance(error, Refused):
        if error.status not in (1, 2):
            return f"exit status {error.status}: {text}"
        told = [line for line in text.splitlines() if line.startswith("growtas: ")]
        if len(told) != 1:
            return f"{len(told)} sentences on standard error: {text}"
        return None
    if not isinstance(error, GrowtasError):
        return f"a raw error: {type(error).__name__}: {text}"
    if "\n" in text or not text.strip():
        return f"no single sentence: {text!r}"
    return None


def judge(target: Target, data: bytes, folder: Path) -> tuple[str, str]:
    """Run one input.

    Args:
        target: that reads it.
        data: the input.
        folder: is emptied, and holds the input afterwards.

    Returns:
        ``("success", "")``, ``("sentence", it)`` or ``("failure", the reason)``.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target.place(data, folder)
    before = _files(folder)
    error = None
    try:
        with _limited():
            target.run(folder)
    except KeyboardInterrupt:
        raise
    except TooLong:
        return "failure", f"it took more than {CPU_SECONDS:g} s of processor time"
    except BaseException as raised:  # noqa: BLE001 - whatever an input made happen is judged
        error = raised
        reason = complaint(error)
        if reason:
            return "failure", reason
    after = _files(folder)
    changed = sorted(name for name, content in before.items() if after.get(name) != content)
    if changed:
        return "failure", f"it changed its input: {', '.join(changed)}"
    left = sorted(set(after) - set(before))
    if error and left:
        return "failure", f"it was refused ({error}) but left {', '.join(left)}"
    return ("sentence", str(error)) if error else ("success", "")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Bounds on processor time and memory."""

    def stop(*_: object) -> None:
        raise TooLong

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    handler = signal.signal(signal.SIGPROF, stop)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _files(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, and of the folders themselves their names."""
    found = {}
    for parent, folders, names in os.walk(folder):
        found |= {os.path.join(parent, name): b"" for name in folders}
        found |= {path: Path(path).read_bytes() for path in (os.path.join(parent, n) for n in names)}
    return {os.path.relpath(path, folder): content for path, content in found.items()}


class Fuzzer:
    """Mutations of one target. Args: target; seed: of all mutations."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target, self.seed, self.corpus = target, seed, list(target.seeds())

    def input(self, number: int) -> bytes:
        """The input of a number; the first ones are the seeds as they are, which must succeed."""
        if number < len(self.corpus):
            return self.corpus[number]
        rng = random.Random(f"{self.seed}/{self.target.name}/{number}")
        return self.target.mutate(rng, rng.choice(self.corpus))

    def run(self, numbers: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
        """Judge inputs. Yields: number, verdict and what was said, as :func:`judge`."""
        for number in numbers:
            verdict, said = judge(self.target, self.input(number), folder)
            if number < len(self.corpus) and verdict == "sentence":
                verdict, said = "failure", f"a good input was refused: {said}"
            yield number, verdict, said


def counts(targets: Sequence[Target], total: int) -> dict[str, int]:
    """How many of ``total`` mutations each target gets, by their shares."""
    shares = sum(target.share for target in targets)
    return {target.name: max(1, round(total * target.share / shares)) for target in targets}


def tally(verdicts: Iterable[str]) -> str:
    """A summary such as ``"3 successes, 95 sentences, 2 failures"``."""
    found = Counter(verdicts)
    names = {"success": "successes", "sentence": "sentences", "failure": "failures"}
    return ", ".join(f"{found[verdict]:,} {name}" for verdict, name in names.items())
