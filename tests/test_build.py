"""The build: what a wheel holds, what stands beside the binaries, one sentence for whatever is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from thinning import thinned

from growtas import __version__, native
from growtas.errors import GrowtasError

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: the installed growtas comes first

from building import toolchain  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
needs_nvcc = pytest.mark.skipif(not native.metadata("cuda"), reason="needs nvcc when growtas is built")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a build needs, so that nothing is built in the tree the tests run from."""
    return copy_checkout(tmp_path / "checkout", "__pycache__", "*.so", "_build_*.json")


def copy_checkout(folder, *ignored):
    folder.mkdir()
    ignore = shutil.ignore_patterns(*ignored)
    for name in ("building", "csrc", "growtas", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    return folder


REUSE = f"""
import json, runpy, sys
from pathlib import Path
sys.path.insert(0, "")
import building.modules as modules
library = next(Path({str(ROOT / "growtas")!r}).glob("_cpu*.so"))
notes = json.loads(library.with_name("_build_cpu.json").read_text())
modules.build_cpu = lambda folder, suffix: (library, notes)
modules.CUDA_SOURCES.remove("csrc/cuda_module.cpp")
"""
"""Lets a build take the CPU module that is there, and compile of the CUDA module only what nvcc compiles."""

COMPILED = ("-c", f"{REUSE}runpy.run_path('setup.py', run_name='__main__')")


def build(checkout, arguments=("build_ext", "--inplace"), start=("setup.py",), **environment):
    """Run setup.py; None as a value takes a variable out of the environment."""
    merged = {k: v for k, v in (os.environ | environment).items() if v is not None}
    for name in ("GROWTAS_BUILD", "GROWTAS_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH", "CXX", "MAX_JOBS"):
        if name not in environment:
            merged.pop(name, None)
    command = [sys.executable, *start, "-q", *arguments]
    return subprocess.run(command, cwd=checkout, env=merged, capture_output=True, text=True)


def path_with(folder, *programs, **scripts):
    """A PATH of one folder that holds links to real programs and small shell scripts."""
    folder.mkdir()
    for program in programs:
        (folder / program).symlink_to(shutil.which(program))
    for name, body in scripts.items():
        (folder / name.replace("plus", "+")).write_text("#!/bin/sh\n" + body + "\n")
        (folder / name.replace("plus", "+")).chmod(0o755)
    return str(folder)


def sentence(done):
    """The one line a failed build ends with."""
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("growtas: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert lines[0].endswith(".")
    return lines[0]


# -------------------------------------------------------------------------------------------------- metadata


def test_every_package_is_listed():
    folders = [p.parent.relative_to(ROOT).parts for p in ROOT.glob("growtas/**/__init__.py")]
    folders += [("growtas", *p.parent.relative_to(ROOT).parts) for p in ROOT.glob("kernels/**/__init__.py")]
    found = {".".join(parts) for parts in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"growtas.kernels": "kernels"}


def test_the_build_needs_no_torch():
    requirements = PROJECT["build-system"]["requires"]
    assert sorted(r.split(">")[0] for r in requirements) == ["ninja", "pybind11", "setuptools"]
    for path in [ROOT / "setup.py", *ROOT.glob("building/*.py")]:
        assert "import torch" not in path.read_text()
    for path in ROOT.glob("csrc/**/*.*"):
        assert "torch/" not in path.read_text() and "ATen" not in path.read_text()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_metadata_belongs_to_the_binary(kind):
    metadata = native.metadata(kind)
    if kind == "cuda" and not metadata:
        assert native.metadata("cpu")["cuda"] != "built"
        return
    module = native.load(kind)
    assert metadata["version"] == module.version == __version__
    assert metadata["build_id"] == module.build_id
    assert metadata["compiler"] and metadata["flags"] and metadata["python"] in SUFFIX


def test_a_binary_of_another_version_or_build_is_refused(monkeypatch):
    from types import SimpleNamespace

    build_id = native.metadata("cpu")["build_id"]
    old = SimpleNamespace(version="0.0.1", build_id=build_id)
    assert f"built for growtas 0.0.1, and this is {__version__}" in native._why_stale("cpu", old).reason
    other = SimpleNamespace(version=__version__, build_id="0" * 16)
    found = native._why_stale("cpu", other)
    assert "two different builds" in found.reason and "pip install" in found.remedy
    monkeypatch.setattr(native, "_try_load", lambda kind: found)
    with pytest.raises(GrowtasError, match="two different builds. Build growtas again: .*pip install"):
        native.load("cpu")


# Builds an editable wheel of the working folder.
EDITABLE_WHEEL = f"{REUSE}from setuptools import build_meta; print(build_meta.build_editable(sys.argv[1]))"


@pytest.fixture(scope="module")
def beside_the_clone(tmp_path_factory):
    """Runs code where a clone named growtas lies; that clone is installed, editable, and nothing else is."""
    home, wheels = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("wheels")
    copy_checkout(home / "growtas", "__pycache__", "_cuda*.so", "_build_cuda.json")
    command = [sys.executable, "-c", EDITABLE_WHEEL, str(wheels)]
    made = subprocess.run(
        command,
        cwd=home / "growtas",
        env=os.environ | {"GROWTAS_BUILD": "cpu"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(wheels / made.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(wheels / "site")

    def run(code, **environment):
        prepared = f"import site; site.addsitedir({str(wheels / 'site')!r}); {code}"
        done = subprocess.run(
            [sys.executable, "-S", "-c", prepared],
            cwd=home,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return home, run


def test_an_editable_install_is_found_beside_its_clone(beside_the_clone):
    home, run = beside_the_clone
    inner = home / "growtas"
    code = "import growtas, growtas.kernels as k; print(growtas.__version__, growtas.__file__, k.__file__)"
    assert (
        run(code) == f"{__version__} {inner / 'growtas' / '__init__.py'} {inner / 'kernels' / '__init__.py'}"
    )
    module = (
        "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('growtas', run_name='__main__')"
    )
    assert run(module) == f"growtas {__version__}"


def test_another_checkout_on_the_path_stays_the_one_that_is_imported(beside_the_clone, tmp_path):
    (tmp_path / "growtas").mkdir()
    (tmp_path / "growtas" / "__init__.py").write_text("here = 'the other'")
    assert beside_the_clone[1]("import growtas; print(growtas.here)", PYTHONPATH=str(tmp_path)) == "the other"


@needs_nvcc
def test_no_cuda_kernel_spills():
    metadata = native.metadata("cuda")
    kernels = metadata["kernels"]
    assert {k["arch"] for k in kernels} == set(metadata["archs"])
    for name in (
        "forward_packed",
        "forward_any",
        "backward_packed",
        "backward_any",
        "sum_columns",
        "add_blocks",
    ):
        assert any(name in k["kernel"] for k in kernels), name
    for kernel in kernels:
        assert kernel["spill_stores"] == kernel["spill_loads"] == kernel["stack"] == 0, kernel
        assert kernel["registers"] * 256 <= 65536, kernel  # a block of 256 threads has to fit
        assert kernel["shared_bytes"] <= 48 * 1024, kernel


@needs_nvcc
def test_the_cuda_module_needs_no_cuda_library():
    """It has to load where there is neither a driver nor a toolkit."""
    found = subprocess.run(["ldd", native.load("cuda").__file__], capture_output=True, text=True).stdout
    assert "libcuda" not in found and "libcudart" not in found and "libtorch" not in found, found


# ---------------------------------------------------------------------------------------------- a whole build


@pytest.fixture
def failing_nvcc(tmp_path):
    """The home of a CUDA toolkit that answers questions and compiles nothing."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        '#!/bin/sh\ncase "$*" in --version) echo "release 13.0, V13.0.88";; --list-gpu-code) echo sm_80;; '
        '*" -c "*) echo "error: no such luck" >&2; exit 1;; esac\n'
    )
    nvcc.chmod(0o755)
    return str(tmp_path / "cuda")


def test_a_wheel_holds_all_that_is_needed(checkout, tmp_path, failing_nvcc):
    """Built where nvcc fails: auto goes on with the CPU module and keeps the reason; cuda does not go on.

    A CUDA module left from an earlier build must not get in. The CPU module is the one that was compiled when
    growtas was installed.
    """
    for stale in (f"_cuda{SUFFIX}", "_build_cuda.json"):
        (checkout / "growtas" / stale).write_text("left from an earlier build")
    done = build(checkout, ("bdist_wheel", "--dist-dir", str(tmp_path)), COMPILED, CUDA_HOME=failing_nvcc)
    assert done.returncode == 0, done.stderr
    assert "growtas build warning: growtas._cuda is left out" in done.stderr and "no such luck" in done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = json.loads(archive.read("growtas/_build_cpu.json"))
        (entry,) = [n for n in names if n.endswith("entry_points.txt")]
        assert b"growtas = growtas.cli:main" in archive.read(entry)
        archive.extractall(tmp_path / "installed")
    assert {
        f"growtas/_cpu{SUFFIX}",
        "growtas/presets/digits.yaml",
        "growtas/kernels/layer_norm/forward.py",
    } <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if "_cuda" in n or n.startswith(("building", "csrc", "tests", "kernels"))]
    assert metadata["version"] == __version__ and "no such luck" in metadata["cuda"]
    assert sysconfig.get_platform().replace("-", "_") in wheel.name

    # Alone, without torch: -S keeps the site packages out.
    code = "import growtas._cpu as m; print(m.version, m.build_id)"
    alone = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path / "installed", capture_output=True, text=True
    )
    assert alone.stdout.split() == [__version__, metadata["build_id"]], alone.stderr

    told = sentence(build(checkout, start=COMPILED, CUDA_HOME=failing_nvcc, GROWTAS_BUILD="cuda"))
    assert "no such luck" in told and "Install a complete CUDA toolkit" in told


def test_a_source_distribution_holds_the_sources(checkout, tmp_path):
    done = build(checkout, ("sdist", "--dist-dir", str(tmp_path)))
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (root,) = (tmp_path / "unpacked").iterdir()
    for folder, pattern in (
        ("csrc", "**/*.*"),
        ("kernels", "**/*.py"),
        ("building", "*.py"),
        ("growtas", "**/*.*"),
    ):
        wanted = {p.relative_to(checkout) for p in checkout.glob(f"{folder}/{pattern}") if p.is_file()}
        wanted = {p for p in wanted if "__pycache__" not in p.parts}
        assert wanted <= {p.relative_to(root) for p in root.glob(f"{folder}/**/*")}, folder
    assert not [*root.glob("growtas/_build_*"), *root.glob("growtas/*.so")]


# ------------------------------------------------------------------------------- one sentence for each
# problem


def test_an_unknown_request(checkout):
    done = build(checkout, GROWTAS_BUILD="gpu")
    assert sentence(done) == "growtas: GROWTAS_BUILD='gpu' is unknown: set it to auto, cpu or cuda."


def test_no_compiler(checkout, tmp_path):
    told = sentence(build(checkout, PATH=path_with(tmp_path / "bin", "ninja"), GROWTAS_BUILD="cpu"))
    assert "none (g++, c++, clang++) is on PATH" in told and "apt install g++" in told
    told = sentence(build(checkout, CXX="nosuch++ -v", GROWTAS_BUILD="cpu"))
    assert "CXX='nosuch++ -v' is not on PATH" in told


def test_a_compiler_that_fails(checkout):
    told = sentence(build(checkout, CXX="false", GROWTAS_BUILD="cpu"))
    assert "false cannot compile a C++17 program" in told


def test_no_nvcc(checkout, tmp_path):
    if list(Path("/usr/local").glob("cuda*/bin/nvcc")):  # found without PATH: ask for another place
        told = sentence(build(checkout, GROWTAS_BUILD="cuda", CUDA_HOME=str(tmp_path)))
        assert f"CUDA_HOME={tmp_path} holds no bin/nvcc" in told
    else:
        told = sentence(
            build(checkout, GROWTAS_BUILD="cuda", PATH=path_with(tmp_path / "bin", "g++", "ninja"))
        )
        assert "no nvcc was found" in told and "GROWTAS_BUILD=cpu" in told


def test_no_nvcc_anywhere(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(
        toolchain.BuildProblem, match="no nvcc was found in CUDA_HOME.*install the CUDA toolkit 12.0"
    ):
        toolchain.find_nvcc()


def test_a_wrapper_whose_toolkit_is_gone(checkout, tmp_path):
    path = path_with(tmp_path / "bin", "g++", "ninja", nvcc='exec /nonexistent/cuda/bin/nvcc "$@"')
    told = sentence(build(checkout, GROWTAS_BUILD="cuda", PATH=path))
    assert "does not run" in told and "set CUDA_HOME to an installed CUDA toolkit" in told


def test_nvcc_too_old(checkout, tmp_path):
    path = path_with(
        tmp_path / "bin", "g++", "ninja", nvcc='echo "Cuda compilation tools, release 11.4, V11.4.152"'
    )
    told = sentence(build(checkout, GROWTAS_BUILD="cuda", PATH=path))
    assert "version 11.4.152, and growtas needs 12.0 or newer" in told


def test_a_toolkit_without_headers(checkout, tmp_path):
    script = (
        'case "$1" in --version) echo "release 12.4, V12.4.99";; '
        '--dryrun) echo "#\\$ TOP=/opt/cuda/bin/..";; *) exit 1;; esac'
    )
    told = sentence(
        build(checkout, GROWTAS_BUILD="cuda", PATH=path_with(tmp_path / "bin", "g++", "ninja", nvcc=script))
    )
    assert "its toolkit /opt/cuda cannot preprocess" in told and "cuda-cudart-dev" in told


@needs_nvcc
def test_the_toolkit_behind_a_wrapper_is_found(tmp_path):
    """A wrapper on PATH may be any program; what it wraps says where its toolkit lies."""
    real = Path(native.metadata("cuda")["toolkit"]) / "bin" / "nvcc"
    if not real.exists():
        pytest.skip("needs the nvcc growtas was built with")
    path_with(tmp_path / "bin", nvcc=f'exec {real} "$@"')
    assert toolchain.inspect_nvcc(str(tmp_path / "bin" / "nvcc"))["toolkit"] == str(real.parent.parent)


@needs_nvcc
@pytest.mark.parametrize("asked", thinned(["nonsense", "9", "80;sm_x", "75", "80a", "999"], fast=["75"]))
def test_architectures_that_cannot_be(checkout, asked):
    told = sentence(build(checkout, GROWTAS_BUILD="cuda", GROWTAS_CUDA_ARCHS=asked))
    assert asked in told and ("write for example '80;90a'" in told or "it can for 80" in told)


def test_architectures(monkeypatch):
    known = ["75", "80", "86", "89", "90", "100", "120"]
    for asked, archs in (("80;90a", ["80", "90a"]), ("8.6, sm_90a 86", ["86", "90a"]), ("10.0f", ["100f"])):
        monkeypatch.setenv("GROWTAS_CUDA_ARCHS", asked)
        assert toolchain.cuda_archs(known) == archs
    monkeypatch.delenv("GROWTAS_CUDA_ARCHS")
    for present, archs in (
        ("9.0\n9.0\n8.0\n", ["80", "90a"]),
        ("12.0\n", ["120"]),
        ("6.1\n", ["80", "90a"]),
        (None, ["80", "90a"]),
    ):
        monkeypatch.setattr(toolchain, "output_of", lambda command, present=present: present)
        assert toolchain.cuda_archs(known) == archs


@pytest.mark.parametrize("archs", [["80", "90a"], ["90a"], ["120"], ["80"], ["100f", "90"]])
def test_every_build_holds_ptx_that_newer_gpus_compile(archs):
    """Of the oldest architecture: PTX of 90a or 100f would not run on what comes after it."""
    machine = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    assert toolchain.arch_flags(archs) == [*machine, "-gencode=arch=compute_80,code=compute_80"]
    known = ["75", "80", "86", "90", "120"]
    assert toolchain.arch_flags(archs, known) == toolchain.arch_flags(archs)
    later = toolchain.arch_flags(archs, ["90", "120"])  # a toolkit that has dropped 8.x
    assert later == [*machine, "-gencode=arch=compute_90,code=compute_90"]


@needs_nvcc
def test_the_build_at_hand_holds_ptx_and_hopper_code_where_asked_for():
    metadata = native.metadata("cuda")
    assert any("code=compute_" in flag for flag in metadata["flags"])
    hopper = [k for k in metadata["kernels"] if k["kernel"].startswith("mlp_branch")]
    assert len(hopper) == (8 if "90a" in metadata["archs"] else 0)
    assert {k["arch"] for k in hopper} <= {"90a"}
    assert native.load("cuda").sm90a is ("90a" in metadata["archs"])


def test_jobs(monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "3")
    assert toolchain.max_jobs() == 3
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(toolchain.BuildProblem, match="MAX_JOBS='many'"):
        toolchain.max_jobs()
    monkeypatch.delenv("MAX_JOBS")
    assert 1 <= toolchain.max_jobs() <= os.cpu_count()
    monkeypatch.setattr(toolchain, "GIB_PER_JOB", 1e9)  # less memory than one job wants
    assert toolchain.max_jobs() == 1


def test_a_compiler_without_clones_still_builds(tmp_path):
    """Another processor or compiler: no target_clones, one plain function instead."""
    path = path_with(tmp_path / "bin", plain='case "$*" in *-Werror*) exit 1;; *) exec g++ "$@";; esac')
    assert toolchain.clone_targets([f"{path}/plain"]) == ""
    source = ROOT / "csrc" / "cpu" / "layer_norm" / "layer_norm.cpp"
    command = [
        "g++",
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        "-Wno-unknown-pragmas",
    ]
    done = subprocess.run([*command, f"-I{ROOT / 'csrc'}", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
