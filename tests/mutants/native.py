"""Builds growtas._cpu with a fault, in a temporary folder; objects that it does not change are reused."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from mutants import ROOT, Mutant

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
BUILD = """
import sys
from building.modules import build_cpu, build_folder, ninja_command
from building.toolchain import BuildProblem
try:
    with build_folder("build") as folder:
        build_cpu(folder, sys.argv[1])
        print(folder / "cpu", *ninja_command(), sep="\\n")
except BuildProblem as problem:
    raise SystemExit(f"growtas: {problem}") from None
"""


def _run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"`{shlex.join(command)}` failed:\n{done.stdout}")
    return done.stdout


@cache
def _unchanged() -> tuple[Path, dict[str, list[str]], dict[str, set[str]]]:
    """Bring the objects of the sources as they are up to date.

    Returns:
        The folder they lie in, the commands that compile and link by what they make, and the files that each
        object is made from.
    """
    folder, *ninja = _run(sys.executable, "-c", BUILD, SUFFIX).split("\n")[-3:-1]
    place, notes = Path(folder), ROOT / "growtas" / "_build_cpu.json"
    if (
        not notes.is_file()
        or json.loads(notes.read_text())["build_id"] not in (place / "build.ninja").read_text()
    ):
        raise SystemExit("growtas._cpu is older than its sources: build it again (`make setup`).")
    rules = json.loads(_run(*ninja, "-t", "compdb", "cxx", "link", cwd=place))
    commands = {rule["output"]: shlex.split(rule["command"]) for rule in rules}
    parts: dict[str, set[str]] = {}
    for block in _run(*ninja, "-t", "deps", cwd=place).split("\n\n"):
        if block.strip():
            first, *files = block.strip().splitlines()
            parts[first.split(":")[0]] = {file.strip() for file in files}
    return place, commands, parts


def build(mutant: Mutant, folder: Path) -> Path:
    """Compile what a mutant changes and link it with the rest.

    Args:
        mutant: one of the native sources.
        folder: an empty one.

    Returns:
        The library.

    Raises:
        SystemExit: it does not compile.
    """
    place, commands, parts = _unchanged()
    source = str(ROOT / mutant.file)
    changed = folder / mutant.file
    changed.parent.mkdir(parents=True)
    changed.write_text(mutant.source())
    swaps = {source: str(changed)}
    for name, files in parts.items():
        if source in files:
            swaps |= {name: str(folder / name), f"{name}.d": str(folder / f"{name}.d")}
            compiler, *rest = [swaps.get(word, word) for word in commands[name]]
            _run(
                compiler, f"-I{folder / 'csrc'}", *rest, cwd=place
            )  # its headers are found before the others
    library = f"_cpu{SUFFIX}"
    swaps[library] = str(folder / library)
    _run(*[swaps.get(word, word) for word in commands[library]], cwd=place)
    return folder / library
