"""Builds the CUDA sources for the CPU and lets growtas' wrappers call them with CPU tensors."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
import torch

from growtas import native

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".h", ".cuh", ".cu", ".cpp")


@functools.cache
def emulated_module() -> ModuleType:
    """The CUDA sources as a module for the CPU, built once for as long as they stay the same."""
    digest = hashlib.sha256(f"{sysconfig.get_config_var('SOABI')} {pybind11.__version__}".encode())
    for pattern in ("csrc/*", "csrc/cuda/**/*", "tests/cuda_on_cpu/*"):
        for source in sorted(p for p in ROOT.glob(pattern) if p.suffix in SUFFIXES):
            digest.update(source.relative_to(ROOT).as_posix().encode() + source.read_bytes())
    path = ROOT / "build" / "cuda_on_cpu" / f"{digest.hexdigest()[:16]}.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            for old in path.parent.glob("*.so"):
                old.unlink()
            _build(path)
    spec = importlib.util.spec_from_file_location("_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(path: Path) -> None:
    includes = [f"-I{ROOT / 'tests/cuda_on_cpu'}", f"-I{ROOT / 'csrc'}"]
    includes += ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    defines = ['-DGROWTAS_VERSION="emulated"', '-DGROWTAS_BUILD_ID="emulated"', "-DGROWTAS_SM90A"]
    # A fiber is left by _longjmp, which a fortified library would refuse.
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-Wno-psabi"]

    def run(*arguments: str) -> None:
        done = subprocess.run(["g++", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def compiled(source: Path) -> str:
        made = f"{folder}/{source.relative_to(ROOT).as_posix().replace('/', '_')}.o"
        level = "-O0" if source.suffix == ".cpp" else "-O1"  # the module's functions only pass arguments on
        run(*flags, level, *includes, *defines, "-x", "c++", "-c", str(source), "-o", made)
        return made

    sources = [ROOT / "csrc/cuda_module.cpp", *sorted(ROOT.glob("csrc/cuda/**/*.cu"))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        run("-shared", *pool.map(compiled, sources), "-o", f"{folder}/module.so")
        shutil.move(f"{folder}/module.so", path)


def emulate(module: ModuleType, monkeypatch, device: int = 0) -> None:
    """Let the CUDA wrappers take CPU tensors and call the emulated module.

    Args:
        module: of :func:`emulated_module`.
        monkeypatch: undoes it.
        device: 1 runs blocks, warps and lanes in reverse order, and copies to shared memory at once.
    """
    monkeypatch.setattr(native, "load", lambda kind: module)
    monkeypatch.setattr(native, "cuda_place", lambda x: (device, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
