"""Finds the C++ compiler and nvcc, asks them what they can do, and says in one sentence what is missing."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OLDEST_NVCC = (12, 0)  # the first that knows sm_90a
OLDEST_ARCH = 80
DEFAULT_ARCHS = ["80", "90a"]
GIB_PER_JOB = 2


class BuildProblem(Exception):
    """One sentence that says what is wrong and what to do about it."""


def warn(sentence: str) -> None:
    print(f"growtas build warning: {sentence}", file=sys.stderr, flush=True)


def output_of(command: list[str]) -> str | None:
    """The output of a command on both streams, or None where it cannot be run or fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
            timeout=120,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def requested() -> str:
    mode = os.environ.get("GROWTAS_BUILD", "").strip().lower() or "auto"
    if mode not in ("auto", "cpu", "cuda"):
        raise BuildProblem(f"GROWTAS_BUILD={mode!r} is unknown: set it to auto, cpu or cuda.")
    return mode


def max_jobs() -> int:
    asked = os.environ.get("MAX_JOBS", "").strip()
    if asked:
        if not asked.isdigit() or int(asked) < 1:
            raise BuildProblem(
                f"MAX_JOBS={asked!r} is no number of jobs: set it to 1 or more, or leave it unset."
            )
        return int(asked)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gib = []
    try:
        free = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        gib.append(int(free[1]) / 2**20)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit():
            gib.append(int(limit) / 2**30)
    except (OSError, TypeError):
        pass  # no such accounting here: the processors alone decide
    return max(1, min([processors, *(int(g / GIB_PER_JOB) for g in gib)]))


def compiles(command: list[str], source: str) -> bool:
    """True if a command turns a small source into a shared library."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.cpp")
        path.write_text(source)
        done = output_of([*command, str(path), "-shared", "-fPIC", "-o", str(Path(folder, "probe.so"))])
        return done is not None


def find_cxx() -> tuple[list[str], str]:
    """The C++ compiler's command and what it calls itself."""
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = [named] if named else [["g++"], ["c++"], ["clang++"]]
    present = [c for c in candidates if shutil.which(c[0])]
    if not present:
        where = f"CXX={' '.join(named)!r} is not" if named else "none (g++, c++, clang++) is"
        raise BuildProblem(
            f"growtas needs a C++17 compiler, and {where} on PATH: install one (Debian and Ubuntu: `apt "
            "install g++`; Fedora: `dnf install gcc-c++`) or set CXX to one, then install again."
        )
    for command in present:
        if compiles([*command, "-std=c++17"], "#include <optional>\nstd::optional<int> probe;\n"):
            return command, (output_of([*command, "--version"]) or "unknown").splitlines()[0]
    raise BuildProblem(
        f"{' '.join(present[0])} cannot compile a C++17 program: install GCC 9 or Clang 10 or newer with its "
        "standard library (Debian and Ubuntu: `apt install g++`) or set CXX to another compiler."
    )


def clone_targets(cxx: list[str]) -> str:
    """The target_clones that compiler and linker support, as C strings; empty where they support none."""
    for targets in (("arch=x86-64-v4", "arch=x86-64-v3"), ("arch=skylake-avx512", "arch=haswell")):
        quoted = ",".join(f'"{t}"' for t in (*targets, "default"))
        source = (
            f"__attribute__((target_clones({quoted}))) float leaf(float* x, long n)"
            "{ float s = 0; for (long i = 0; i < n; ++i) s += x[i]; return s; }\n"
            "float probe(float* x, long n) { return leaf(x, n); }\n"
        )
        if compiles([*cxx, "-O2", "-Werror"], source):
            return quoted
    return ""


def find_nvcc() -> str:
    """The nvcc to use: the one of CUDA_HOME or CUDA_PATH, the one on PATH, the newest under /usr/local."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable, "").strip()
        if home:
            nvcc = Path(home, "bin", "nvcc")
            if nvcc.is_file():
                return str(nvcc)
            sentence = f"{variable}={home} holds no bin/nvcc: point it at a CUDA toolkit or unset it"
            if requested() == "cuda":
                raise BuildProblem(f"{sentence}, then install again.")
            warn(f"{sentence}; looking elsewhere.")
    on_path = shutil.which("nvcc")
    if on_path:
        return on_path

    def release(path: Path) -> list[int]:
        numbers = re.findall(r"\d+", path.parts[3])
        return [int(n) for n in numbers] if numbers else [10**6]  # /usr/local/cuda itself comes before any

    beside = sorted(Path("/usr/local").glob("cuda*/bin/nvcc"), key=release)
    if beside:
        return str(beside[-1])
    raise BuildProblem(
        "no nvcc was found in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda*: install the CUDA toolkit 12.0 "
        "or newer (https://developer.nvidia.com/cuda-downloads) and set CUDA_HOME to it, or set "
        "GROWTAS_BUILD=cpu."
    )


def find_cuda() -> dict:
    """The nvcc to use, its version and toolkit, and the architectures to compile for."""
    found = inspect_nvcc(find_nvcc())
    return found | {"archs": cuda_archs(found["known_archs"])}


def inspect_nvcc(nvcc: str) -> dict:
    """Properties of this nvcc: version, the toolkit it really belongs to, the architectures it knows."""
    text = output_of([nvcc, "--version"])
    found = re.search(r"release (\d+)\.(\d+), V([\d.]+)", text or "")
    if not found:
        raise BuildProblem(
            f"{nvcc} does not run (`{nvcc} --version` fails): if it is a wrapper, the toolkit it points to "
            "is gone; repair it or set CUDA_HOME to an installed CUDA toolkit."
        )
    if (int(found[1]), int(found[2])) < OLDEST_NVCC:
        raise BuildProblem(
            f"{nvcc} is version {found[3]}, and growtas needs {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]} or newer: "
            "install a newer CUDA toolkit and set CUDA_HOME to it, or GROWTAS_BUILD=cpu."
        )
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.cu")
        probe.write_text("#include <cuda_runtime.h>\n#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n")
        # A wrapper on PATH may be anything, so nvcc itself is asked where its toolkit lies.
        plan = output_of([nvcc, "--dryrun", "-E", str(probe)]) or ""
        top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
        toolkit = str(Path(top[1]).resolve()) if top else str(Path(nvcc).resolve().parent.parent)
        if output_of([nvcc, "-E", "-o", os.devnull, str(probe)]) is None:
            raise BuildProblem(
                f"{nvcc} runs, but its toolkit {toolkit} cannot preprocess `#include <cuda_runtime.h>`: "
                "install the toolkit's headers (the whole `cuda-toolkit` package, or `cuda-cudart-dev`) and "
                "a C++ compiler nvcc supports, or set CUDA_HOME to a complete toolkit."
            )
    known = re.findall(r"sm_(\d+)\b", output_of([nvcc, "--list-gpu-code"]) or "")
    return {"path": nvcc, "version": found[3], "toolkit": toolkit, "known_archs": known}


def cuda_archs(known: list[str]) -> list[str]:
    """The architectures to compile for, such as ["80", "90a"]."""
    asked = os.environ.get("GROWTAS_CUDA_ARCHS", "").strip()
    if asked:
        archs = []
        for word in re.split(r"[\s,;]+", asked):
            match = re.fullmatch(r"(?:sm_|compute_)?(\d{1,2})\.?(\d)([af]?)", word)
            if not match:
                raise BuildProblem(
                    f"GROWTAS_CUDA_ARCHS={asked!r} holds {word!r}, which is no architecture: write "
                    "for example '80;90a'."
                )
            archs.append("".join(match.groups()))
        unknown = [a for a in archs if not _can_build(a, known)]
        if unknown:
            usable = ", ".join(k for k in known if int(k) >= OLDEST_ARCH)
            raise BuildProblem(
                f"GROWTAS_CUDA_ARCHS={asked!r}: this nvcc cannot build growtas for {', '.join(unknown)}; it "
                f"can for {usable} (with an 'a' from 90 on)."
            )
        return list(dict.fromkeys(archs))
    present = output_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]) or ""
    found = sorted({m[1] + m[2] for m in re.finditer(r"^(\d+)\.(\d)$", present, re.MULTILINE)}, key=int)
    usable = ["90a" if a == "90" else a for a in found if _can_build(a, known)]
    return usable or DEFAULT_ARCHS


def _can_build(arch: str, known: list[str]) -> bool:
    base, kind = int(arch.rstrip("af")), arch.lstrip("0123456789")
    oldest = {"": OLDEST_ARCH, "a": 90, "f": 100}[kind]
    return base >= oldest and (not known or str(base) in known)


def arch_flags(archs: list[str], known: list[str] = ()) -> list[str]:
    """Machine code for each architecture, and PTX of the oldest one, which any newer GPU compiles for itself.

    PTX of an architecture such as 90a runs on nothing newer, so it is never the one that is shipped.
    """
    usable = [int(k) for k in known if int(k) >= OLDEST_ARCH] or [OLDEST_ARCH]
    oldest = min(usable)
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    return [*flags, f"-gencode=arch=compute_{oldest},code=compute_{oldest}"]
