"""The Makefile's own logic: which Python it takes, when it installs again, what it says when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def project(tmp_path):
    """The Makefile with one kernel source, and a folder of programs to put on PATH."""
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "kernel.cpp").write_text("")
    (tmp_path / "bin").mkdir()
    for program in ("make", "sh", "find", "touch", "rm", "mkdir", "cat", "chmod"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program))
    return tmp_path


def program(project, name, body):
    path = project / "bin" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


# A Python that passes the version check, and whose `-m venv` makes an interpreter that only notes what it is
# told to install.
WORKS = """
case "$1 $2" in
"-c "*) exit 0;;
"-m venv")
    mkdir -p $3/bin; echo made by $0 >>log
    printf '#!/bin/sh\\necho "$@" >>log\\n' >$3/bin/python; chmod +x $3/bin/python;;
esac
"""


def make(project, *arguments):
    env = {"PATH": str(project / "bin")}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=project, env=env, capture_output=True, text=True
    )


def log(project):
    return (project / "log").read_text().splitlines() if (project / "log").exists() else []


def test_a_shim_that_does_not_run_is_passed_over(project):
    program(project, "python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    program(project, "python3.11", WORKS)
    done = make(project, "setup")
    assert done.returncode == 0, done.stderr
    assert log(project) == [f"made by {project}/bin/python3.11", "-m pip install -e .[dev]"]


def test_the_version_is_checked_by_running_it(project):
    """The check itself, with a real interpreter: this one passes, and one that is too old does not."""
    program(project, "python3.12", f'case "$1" in -c) exec {sys.executable} "$@";; esac\n{WORKS}')
    assert make(project, "setup").returncode == 0
    shutil.rmtree(project / ".venv")
    old = f'shift; exec {sys.executable} -c "import sys; sys.version_info = (3, 10); $1"'
    program(project, "python3.12", old)
    done = make(project, "setup")
    assert done.returncode != 0 and "growtas needs Python 3.11 or newer" in done.stderr


def test_python_can_be_chosen(project):
    program(project, "python3.13", WORKS)
    program(project, "mine", WORKS)
    assert make(project, "setup", "PYTHON=mine").returncode == 0
    assert log(project)[0] == f"made by {project}/bin/mine"


def test_no_python_and_no_venv_are_sentences(project):
    done = make(project, "setup")
    assert done.returncode != 0 and "apt install python3 python3-venv" in done.stderr
    program(project, "python3", 'case "$1" in -c) exit 0;; esac; mkdir -p .venv/bin; exit 1')
    done = make(project, "setup")
    assert done.returncode != 0 and "could not create .venv" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert not (project / ".venv").exists()  # half of one would pass for a whole one next time


def test_a_changed_kernel_is_built_again_and_nothing_else_is(project):
    program(project, "python3", WORKS)
    for _ in range(2):
        assert make(project, "setup").returncode == 0
    installs = [line for line in log(project) if "pip install" in line]
    assert len(installs) == 1
    for changed in ("csrc/kernel.cpp", "pyproject.toml", "setup.py"):
        stamp = (project / ".venv" / ".installed").stat().st_mtime
        os.utime(project / changed, (stamp + 5, stamp + 5))
        assert make(project, "setup").returncode == 0
        os.utime(project / ".venv" / ".installed", (stamp + 10, stamp + 10))
    assert len([line for line in log(project) if "pip install" in line]) == 4
    assert len([line for line in log(project) if "made by" in line]) == 1


def test_a_failed_install_is_tried_again(project):
    program(project, "python3", WORKS.replace('echo "$@" >>log', 'echo "$@" >>log; exit 1'))
    assert make(project, "setup").returncode != 0
    assert not (project / ".venv" / ".installed").exists()


@pytest.mark.parametrize(
    "target, commands",
    [
        ("test", ["ruff check", "ruff format --check", 'python -m pytest -n 2 -m "not slow"']),
        ("test-slow", ["python -m pytest -n 2 -m slow"]),
        ("demo", ["growtas demo"]),
        ("bench", ["benchmarks/slice_matmul.py"]),
    ],
)
def test_each_target_sets_up_and_then_does_its_job(project, target, commands):
    program(project, "python3", WORKS)
    plan = make(project, "-n", target).stdout
    places = [plan.find(text) for text in ["venv", "pip install -e '.[dev]'", *commands]]
    assert -1 not in places and places == sorted(places), plan


def test_gpu_makes_no_environment(project):
    """It runs with the python3 that has torch, where there may be no network to fill a new one from."""
    for arguments, python, run in (((), "python3", "a"), (("PYTHON=mine", "RUN=b"), "mine", "b")):
        program(project, python, 'echo "$0 $@" >>log')
        assert make(project, "gpu", *arguments).returncode == 0
        assert log(project)[-1] == f"{project}/bin/{python} benchmarks/gpu.py --run {run}"
    assert not (project / ".venv").exists()


def test_ci_runs_make_test_and_nothing_else():
    commands = [s for s in (ROOT / ".ci" / "run").read_text().splitlines() if s and not s.startswith("#")]
    assert commands == ["set -e", 'cd "$(dirname "$0")/.."', "exec make test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_docs_install_their_own_extra_once(project):
    program(project, "python3.11", WORKS)
    for _ in range(2):
        done = make(project, "docs")
        assert done.returncode == 0, done.stderr
    build = "-m mkdocs build --strict"
    assert log(project)[1:] == ["-m pip install -e .[dev]", "-m pip install -e .[docs]", build, build]


@pytest.mark.parametrize(
    ("which", "options"),
    [("oldest", "--constraint tests/oldest.txt"), ("newest", "--upgrade --upgrade-strategy eager")],
)
def test_the_dependencies_of_a_test_have_an_environment_of_their_own(project, which, options):
    program(project, "python3", WORKS)
    done = make(project, f"test-{which}", "PYTHON=python3")
    assert f"-m pip install {options} -e .[dev]" in log(project), done.stderr
    assert (project / f".venv-{which}" / ".installed").exists() and not (project / ".venv").exists()


def test_the_oldest_dependencies_are_those_that_are_stated():
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = {}
    for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            found = Requirement(line)
            pinned.setdefault(found.name, found.specifier)
    for each in map(Requirement, stated):
        (bound,), (oldest,) = each.specifier, pinned[each.name]
        assert (bound.operator, Version(bound.version)) == (">=", Version(oldest.version)), each.name
