"""The list of mutants: small faults in the sources, each with the test that fails because of it.

A TOML file per package holds them. A table is named after the file that it changes and has

    was       the source text that is replaced; it occurs once in the file
    is        the text in its place
    test      the node id of a test that passes without the mutant and fails with it
    survives  in place of a test: the reason why no test can tell the two apart
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KEYS = ({"was", "is", "test"}, {"was", "is", "survives"})


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Args:
        file: the source, relative to the root of the repository.
        was: its text that is replaced.
        now: the text in its place.
        test: the node id of the test that fails; empty where none can.
        survives: the reason for that; empty where there is a test.
        line: of the source at which the text begins.
    """

    file: str
    was: str
    now: str
    test: str
    survives: str
    line: int

    @property
    def native(self) -> bool:
        """Return whether the mutant is one of the C++ sources."""
        return self.file.startswith("csrc/")

    @property
    def module(self) -> str:
        """The name that a Python source is imported by."""
        file = f"growtas/{self.file}" if self.file.startswith("kernels/") else self.file
        return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def source(self) -> str:
        """The whole text of the file with the fault in it."""
        return (ROOT / self.file).read_text().replace(self.was, self.now)

    def __str__(self) -> str:
        was, now = " ".join(self.was.split()), " ".join(self.now.split())
        return f"{self.file}:{self.line}: {was}  ->  {now or '(nothing)'}"


def load() -> tuple[list[Mutant], list[str]]:
    """Read every list beside this file.

    Returns:
        The mutants, and a sentence for each entry that does not fit the sources any more.
    """
    found, problems = [], []
    for path in sorted(HERE.glob("*.toml")):
        for file, entries in tomllib.loads(path.read_text()).items():
            source = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
            for entry in entries:
                problem = _problem(file, source, entry)
                if problem:
                    problems.append(f"{path.name} has a mutant of {file} ({entry.get('was')!r}) {problem}")
                    continue
                line = source[: source.index(entry["was"])].count("\n") + 1
                why = entry.get("test", ""), entry.get("survives", "")
                found.append(Mutant(file, entry["was"], entry["is"], *why, line))
    return found, problems


def _problem(file: str, source: str, entry: dict[str, str]) -> str:
    """Why an entry cannot be used, as the end of a sentence; empty where it can."""
    if set(entry) not in KEYS:
        return f"that has {', '.join(entry)}: give was, is, and either test or survives."
    if not source:
        return "which does not exist: name the file that the text stands in now, or remove the mutant."
    count = source.count(entry["was"])
    if count != 1:
        return (
            f"whose text occurs {count} times there, not once: update it to the source as it is, and see it "
            f"killed by `python tests/mutants/run.py --only {file}`."
        )
    if entry["was"] == entry["is"]:
        return "that changes nothing."
    if "test" in entry:
        test, _, function = entry["test"].partition("[")[0].partition("::")
        if not (ROOT / test).is_file() or f"def {function}(" not in _read(ROOT / test):
            return f"whose test, {entry['test']}, does not exist: name the one that kills it now."
    return ""


@cache
def _read(path: Path) -> str:
    return path.read_text()
