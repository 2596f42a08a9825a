"""The list of mutants fits the sources as they are. `make mutants` runs a sample of it."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mutants
import pytest
from run import Finder


def test_every_mutant_fits_the_sources():
    found, problems = mutants.load()
    assert not problems, "\n".join(problems)
    assert len({(m.file, m.was, m.now) for m in found}) == len(found)
    packages = Counter(m.file.split("/")[1] for m in found if m.test)
    assert set(packages) >= {"ops", "methods", "training", "searching", "spaces", "cpu"}
    assert packages.total() >= 150 and packages["cpu"] >= 15
    python = [m for m in found if not m.native]
    assert all(m.module.startswith("growtas") for m in python), "no test imports it by that name"


ENTRY = """
[["growtas/version.py"]]
was = '__version__ = '
is = '__version_ = '
test = "tests/test_space.py::test_counts[digits]"
"""


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("'__version__ = '", "'no such text'", r"\('no such text'\) whose text occurs 0 times there"),
        ("'__version__ = '", "'_'", "whose text occurs [0-9]+ times there, not once"),
        ("version.py", "no_such_file.py", "no_such_file.py .* does not exist"),
        ("'__version_ = '", "'__version__ = '", "changes nothing"),
        (
            "test_space",
            "no_such_test",
            r"whose test, tests/no_such_test.py::test_counts\[digits\], does not exist",
        ),
        ("test_counts", "test_no", r"whose test, tests/test_space.py::test_no\[digits\], does not exist"),
        ('test = "tests/test_space.py::test_counts[digits]"', "", "has was, is: give was, is, and either"),
    ],
)
def test_an_entry_that_does_not_fit_is_told(tmp_path, monkeypatch, before, after, sentence):
    (tmp_path / "ops.toml").write_text(ENTRY)
    monkeypatch.setattr(mutants, "HERE", tmp_path)
    assert [m.line > 0 and m.module for m in mutants.load()[0]] == ["growtas.version"]
    (tmp_path / "ops.toml").write_text(ENTRY.replace(before, after))
    found, (problem,) = mutants.load()
    assert not found and re.search(sentence, problem)


def test_a_finder_gives_one_module_another_source(tmp_path, monkeypatch):
    for name in ("mutated", "untouched"):
        (tmp_path / f"{name}_module.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = str(tmp_path / "mutated_module.py")
    monkeypatch.setattr(sys, "meta_path", [Finder("mutated_module", path, "VALUE = 2\n"), *sys.meta_path])
    assert importlib.import_module("mutated_module").VALUE == 2
    assert importlib.import_module("untouched_module").VALUE == 1
    assert Path(path).read_text() == "VALUE = 1\n"


@pytest.mark.slow
def test_the_command_tells_killed_from_survivors(tmp_path):
    """A list of one fault that a test sees and one that the same test does not."""
    folder = tmp_path / "tests" / "mutants"
    shutil.copytree(Path(mutants.__file__).parent, folder, ignore=shutil.ignore_patterns("*.toml"))
    for name in (
        "growtas",
        "kernels",
        "tests/conftest.py",
        "tests/test_space.py",
        "tests/forking.py",
        "tests/interpreting.py",
    ):
        (tmp_path / name).symlink_to(mutants.ROOT / name)
    (folder / "spaces.toml").write_text("""
[["growtas/spaces/vit_subnet.py"]]
was = 'int(self.embed_dim * ratio)'
is = 'int(self.embed_dim + ratio)'
test = "tests/test_space.py::test_groups_are_ordered_by_embed_dim"
[["growtas/spaces/vit.py"]]
was = 'return first.depth == second.depth'
is = 'return True'
test = "tests/test_space.py::test_groups_are_ordered_by_embed_dim"
""")
    done = subprocess.run([sys.executable, folder / "run.py", "--all"], capture_output=True, text=True)
    assert done.returncode == 1 and "1 of 2 mutants were killed." in done.stdout, done.stdout + done.stderr
    assert "killed" in done.stdout.splitlines()[0] and "SURVIVES" in done.stdout.splitlines()[1]
