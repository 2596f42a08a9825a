"""Builds the native modules: writes a build.ninja and runs ninja. Everything else is in pyproject.toml.

``growtas._cpu`` (C++17) is always built, ``growtas._cuda`` (CUDA C++) where nvcc is found. Neither sees
torch: they take pointers, sizes and strides, so no torch upgrade can break them and an isolated build needs
only pybind11 and ninja.

Environment:
    GROWTAS_BUILD        auto (default): CUDA where it can be built; cpu: never; cuda: it must be built.
    GROWTAS_CUDA_ARCHS   for example "80;90a". Default: the GPUs present, else 80 and 90a.
    CXX, NVCC_CCBIN      the C++ compiler, and the one nvcc uses.
    CUDA_HOME, CUDA_PATH the CUDA toolkit, where it should not be looked for.
    MAX_JOBS             compilers at once. Default: the processors, as far as the memory goes.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "growtas" / "version.py").read_text()).group(1)
CPU_SOURCES = [
    "csrc/cpu_module.cpp",
    *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("csrc/cpu/*.cpp")),
]
CUDA_SOURCES = [
    "csrc/cuda_module.cpp",
    *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("csrc/cuda/*.cu")),
]
OLDEST_NVCC = (12, 0)  # the first that knows sm_90a
DEFAULT_ARCHS = ["80", "90a"]
GIB_PER_JOB = 2


class BuildProblem(Exception):
    """One sentence that says what is wrong and what to do about it."""


def warn(sentence: str) -> None:
    print(f"growtas build warning: {sentence}", file=sys.stderr, flush=True)


def output_of(command: list[str], **options) -> str | None:
    """What a command prints on both streams, or None where it cannot be run or fails."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            errors="replace",
            **options,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


# ---------------------------------------------------------------------------------------------------- what is
# asked for


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
        gib.append(
            int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text()).group(1)) / 2**20
        )
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit():
            gib.append(int(limit) / 2**30)
    except (OSError, AttributeError):
        pass  # no such accounting here: the processors alone decide
    return max(1, min([processors, *(int(g / GIB_PER_JOB) for g in gib)]))


# ---------------------------------------------------------------------------------------------------- the C++
# compiler


def compiles(command: list[str], source: str) -> bool:
    """Whether a command turns a small source into a shared library."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.cpp")
        path.write_text(source)
        return (
            output_of([*command, str(path), "-shared", "-fPIC", "-o", str(Path(folder, "probe.so"))])
            is not None
        )


def find_cxx() -> tuple[list[str], str]:
    """The C++ compiler's command and what it calls itself."""
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = [named] if named else [["g++"], ["c++"], ["clang++"]]
    present = [c for c in candidates if shutil.which(c[0])]
    if not present:
        what = (
            f"CXX={' '.join(named)!r} is not on PATH"
            if named
            else "no C++ compiler (g++, c++ or clang++) is on PATH"
        )
        raise BuildProblem(
            f"growtas needs a C++17 compiler, and {what}: install one (Debian and Ubuntu: `apt install g++`; "
            "Fedora: "
            "`dnf install gcc-c++`; macOS: `xcode-select --install`) or set CXX, then install again."
        )
    for command in present:
        if compiles([*command, "-std=c++17"], "#include <optional>\nstd::optional<int> probe;\n"):
            return command, (output_of([*command, "--version"]) or "unknown").splitlines()[0]
    raise BuildProblem(
        f"{' '.join(present[0])} cannot compile a C++17 program: install GCC 9 or Clang 10 or newer with its "
        "standard "
        "library (Debian and Ubuntu: `apt install g++`) or set CXX to another compiler."
    )


def clone_targets(cxx: list[str]) -> str:
    """What compiler and linker support in target_clones, as C strings; empty where they support nothing."""
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


# ------------------------------------------------------------------------------------------------------- nvcc


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
        return [int(n) for n in re.findall(r"\d+", path.parts[3])] or [
            10**6
        ]  # plain /usr/local/cuda comes first

    beside = sorted(Path("/usr/local").glob("cuda*/bin/nvcc"), key=release)
    if beside:
        return str(beside[-1])
    raise BuildProblem(
        "no nvcc was found in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda*: install the CUDA toolkit 12.0 "
        "or newer "
        "(https://developer.nvidia.com/cuda-downloads) and set CUDA_HOME to it, or set GROWTAS_BUILD=cpu."
    )


def inspect_nvcc(nvcc: str) -> dict:
    """What this nvcc is: version, the toolkit it really belongs to, the architectures it knows."""
    text = output_of([nvcc, "--version"])
    found = re.search(r"release (\d+)\.(\d+), V([\d.]+)", text or "")
    if not found:
        raise BuildProblem(
            f"{nvcc} does not run (`{nvcc} --version` fails): if it is a wrapper, the toolkit it points to "
            "is gone; "
            "repair it or set CUDA_HOME to an installed CUDA toolkit."
        )
    if (int(found[1]), int(found[2])) < OLDEST_NVCC:
        raise BuildProblem(
            f"{nvcc} is version {found[3]}, and growtas needs {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]} or newer: "
            "install a newer "
            "CUDA toolkit and set CUDA_HOME to it, or set GROWTAS_BUILD=cpu."
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
                "install the "
                "toolkit's headers and a C++ compiler nvcc supports (the whole `cuda-toolkit` package, or "
                "`cuda-cudart-dev`), or set CUDA_HOME to a complete toolkit."
            )
    known = re.findall(r"sm_(\d+[af]?)", output_of([nvcc, "--list-gpu-code"]) or "")
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
                    f"GROWTAS_CUDA_ARCHS={asked!r} holds {word!r}, which is no architecture: write for "
                    "example '80;90a'."
                )
            archs.append("".join(match.groups()))
        unknown = [
            a
            for a in archs
            if known and (a.rstrip("af") not in [k.rstrip("af") for k in known] or int(a.rstrip("af")) < 80)
        ]
        if unknown:
            usable = sorted({k for k in known if int(k.rstrip("af")) >= 80})
            raise BuildProblem(
                f"GROWTAS_CUDA_ARCHS={asked!r}: this nvcc cannot build growtas for {', '.join(unknown)}; it "
                "can for "
                f"{', '.join(usable)}."
            )
        return list(dict.fromkeys(archs))
    present = output_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]) or ""
    found = sorted({m[1] + m[2] for m in re.finditer(r"^(\d+)\.(\d)$", present, re.MULTILINE)}, key=int)
    usable = ["90a" if a == "90" else a for a in found if int(a) >= 80 and (not known or a in known)]
    return usable or DEFAULT_ARCHS


def arch_flags(archs: list[str]) -> list[str]:
    """Machine code for each architecture, and PTX of the newest portable one for GPUs newer still."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    portable = [a for a in archs if a.isdigit()]
    if portable:
        flags.append(f"-gencode=arch=compute_{max(portable, key=int)},code=compute_{max(portable, key=int)}")
    return flags


def kernel_resources(logs: list[Path]) -> list[dict]:
    """Registers, shared memory and spills of each kernel, from what ptxas printed."""
    kernels, current = [], None
    for line in "\n".join(log.read_text() for log in logs if log.exists()).splitlines():
        if match := re.search(r"Compiling entry function '(.+?)' for 'sm_(\w+)'", line):
            current = {"kernel": match[1], "arch": match[2]}
            kernels.append(current)
        elif current and (
            match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line)
        ):
            current |= {"stack": int(match[1]), "spill_stores": int(match[2]), "spill_loads": int(match[3])}
        elif current and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            current |= {"registers": int(match[1]), "shared_bytes": int(shared[1]) if shared else 0}
    return kernels


# ------------------------------------------------------------------------------------------------------ ninja


def ninja_command() -> list[str]:
    try:
        import ninja

        beside = Path(ninja.BIN_DIR, "ninja")
        if beside.is_file():
            return [str(beside)]
    except ImportError:
        pass  # a --no-build-isolation build may rely on the system's ninja instead
    if shutil.which("ninja"):
        return ["ninja"]
    raise BuildProblem("ninja is missing: `pip install ninja`, or leave out --no-build-isolation.")


def quote(path: str) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def shell(words: list[str]) -> str:
    return shlex.join(words).replace("$", "$$")


@contextmanager
def build_folder(fallback: str):
    """A folder that lasts, so that one changed kernel compiles alone; one build at a time works in it."""
    folder = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError:  # a read-only checkout
        folder = Path(fallback, "native").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


class Ninja:
    """One module's build.ninja: object files, a shared library, and the run of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.lines = ["ninja_required_version = 1.5"]
        self.objects: list[str] = []

    def rule(self, name: str, command: str, depfile: bool = False) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def object(self, rule: str, source: str) -> None:
        self.objects.append(source.replace("/", "_") + ".o")
        self.lines.append(f"build {self.objects[-1]}: {rule} {quote(str(ROOT / source))}")

    def run(self, target: str, link_rule: str) -> Path:
        self.lines.append(f"build {target}: {link_rule} {' '.join(self.objects)}")
        text = "\n".join(self.lines) + "\n"
        path = self.folder / "build.ninja"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        done = subprocess.run(
            [*ninja_command(), "-C", str(self.folder), "-j", str(max_jobs()), target],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        print(done.stdout, flush=True)
        if done.returncode:
            errors = [
                line
                for line in done.stdout.splitlines()
                if re.search(r"\berror\b|fatal", line, re.IGNORECASE)
            ]
            raise BuildProblem("; ".join(errors[:2]) or f"ninja ended with status {done.returncode}")
        return self.folder / target


def python_include() -> str:
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        raise BuildProblem(
            f"Python.h is missing from {include}: install this Python's headers (Debian and Ubuntu: `apt "
            "install "
            f"python{sys.version_info[0]}.{sys.version_info[1]}-dev`), then install again."
        )
    return include


def sources_digest() -> str:
    """The digest of the native sources; growtas/doctor.py makes the same one to tell an old build."""
    digest = hashlib.sha256()
    for path in sorted(p for p in ROOT.glob("csrc/**/*") if p.is_file()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build_name(*parts: str) -> str:
    """One name for a build: version, sources, compiler, flags. The module and its metadata both carry it."""
    return hashlib.sha256("\0".join((VERSION, sources_digest(), *parts)).encode()).hexdigest()[:16]


def commit() -> str | None:
    if not (ROOT / ".git").exists():
        return None
    found = output_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    return found.strip() if found else None


def module_flags(build_id: str) -> list[str]:
    includes = [f"-I{ROOT / 'csrc'}", "-isystem", python_include(), "-isystem", pybind11.get_include()]
    return [*includes, f'-DGROWTAS_VERSION="{VERSION}"', f'-DGROWTAS_BUILD_ID="{build_id}"']


def common_metadata(build_id: str, cxx_version: str, flags: list[str]) -> dict:
    return {
        "version": VERSION,
        "build_id": build_id,
        "sources": sources_digest(),
        "commit": commit(),
        "python": sysconfig.get_config_var("SOABI"),
        "compiler": cxx_version,
        "flags": flags,
        "pybind11": pybind11.__version__,
    }


def build_cpu(folder: Path, suffix: str) -> tuple[Path, dict]:
    cxx, cxx_version = find_cxx()
    flags = [
        "-std=c++17",
        "-O3",
        "-fPIC",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
    ]
    flags += [
        "-Wextra",
        "-Wno-psabi",
    ]  # wide vectors never cross a call: everything that takes them is inlined
    openmp = compiles([*cxx, "-fopenmp"], "#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n")
    if openmp:
        flags.append("-fopenmp")
    else:
        warn(
            f"{cxx[0]} has no OpenMP (install libomp or libgomp, or set CXX=g++): the CPU kernels will use "
            "one thread."
        )
    clones = clone_targets(cxx)
    defines = [f"-DGROWTAS_TARGET_CLONES={clones}"] if clones else []
    build_id = build_name(cxx_version, *flags, *defines)

    ninja = Ninja(folder / "cpu")
    ninja.rule(
        "cxx",
        shell([*cxx, *flags, *defines, *module_flags(build_id)]) + " -MMD -MF $out.d -c $in -o $out",
        True,
    )
    link = ["-shared", *(["-fopenmp"] if openmp else [])]
    if sys.platform == "darwin":
        link += ["-undefined", "dynamic_lookup"]
    ninja.rule("link", shell(cxx) + " $in -o $out " + shell(link))
    for source in CPU_SOURCES:
        ninja.object("cxx", source)
    try:
        binary = ninja.run(f"_cpu{suffix}", "link")
    except BuildProblem as problem:
        raise BuildProblem(
            f"growtas._cpu does not compile with {cxx_version}: {problem}. Install GCC 9 or Clang 10 or "
            "newer, or set CXX; "
            "the compiler's whole output stands above."
        ) from None
    metadata = common_metadata(build_id, cxx_version, [*flags, *defines])
    return binary, metadata | {"openmp": openmp, "target_clones": re.findall(r'"(?:arch=)?(.+?)"', clones)}


def build_cuda(folder: Path, suffix: str) -> tuple[Path, dict]:
    toolkit = inspect_nvcc(find_nvcc())
    nvcc, archs = toolkit["path"], cuda_archs(toolkit["known_archs"])
    cxx, cxx_version = find_cxx()
    host = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    flags = [
        "-std=c++17",
        "-O3",
        "-Xcompiler=-fPIC,-fvisibility=hidden",
        "-Xptxas=-v",
        "--threads=2",
        *arch_flags(archs),
    ]
    build_id = build_name(cxx_version, toolkit["version"], *host, *flags)

    ninja = Ninja(folder / "cuda")
    ninja.rule("cxx", shell([*cxx, *host, *module_flags(build_id)]) + " -MMD -MF $out.d -c $in -o $out", True)
    compile_kernel = shell([nvcc, *flags, f"-I{ROOT / 'csrc'}"]) + " -MD -MF $out.d -c $in -o $out"
    # ptxas says what each kernel uses only while it compiles; the log beside the object outlives that.
    ninja.rule("nvcc", f"{compile_kernel} >$out.log 2>&1 || {{ cat $out.log; exit 1; }}", True)
    # The CUDA runtime is linked in, so the module loads without a driver; its symbols stay inside, apart
    # from torch's.
    link = ["-shared", "-cudart=static", "-Xcompiler=-fPIC", *arch_flags(archs)]
    hide = ["-Xlinker=--exclude-libs,ALL"] if sys.platform != "darwin" else []
    ninja.rule("link", shell([nvcc, *link, *hide]) + " $in -o $out")
    for source in CUDA_SOURCES:
        ninja.object("nvcc" if source.endswith(".cu") else "cxx", source)
    try:
        binary = ninja.run(f"_cuda{suffix}", "link")
    except BuildProblem as problem:
        raise BuildProblem(
            f"growtas._cuda does not compile with nvcc {toolkit['version']} ({toolkit['toolkit']}): "
            f"{problem}. Install a "
            "complete CUDA toolkit (12.0 or newer) with a C++ compiler it supports (NVCC_CCBIN names one), "
            "or set "
            "GROWTAS_BUILD=cpu; the compiler's whole output stands above."
        ) from None
    kernels = kernel_resources([ninja.folder / f"{o}.log" for o in ninja.objects])
    metadata = common_metadata(build_id, cxx_version, flags)
    return binary, metadata | {
        "nvcc": toolkit["version"], "toolkit": toolkit["toolkit"], "archs": archs, "kernels": kernels,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- setuptools


class NinjaBuild(build_ext):
    """build_ext that leaves the compiling to ninja and keeps each module's metadata beside it."""

    def _targets(self, kind: str, folder: Path) -> list[Path]:
        return [
            folder / "growtas" / f"_{kind}{sysconfig.get_config_var('EXT_SUFFIX')}",
            folder / "growtas" / f"_build_{kind}.json",
        ]

    def run(self) -> None:
        try:
            self._build()
        except BuildProblem as problem:
            raise SystemExit(f"growtas: {problem}") from None

    def _build(self) -> None:
        mode, suffix = requested(), sysconfig.get_config_var("EXT_SUFFIX")
        built, why_not = {}, "GROWTAS_BUILD=cpu was set when growtas was built"
        with build_folder(self.build_temp) as folder:
            built["cpu"] = build_cpu(folder, suffix)
            if mode != "cpu":
                try:
                    built["cuda"] = build_cuda(folder, suffix)
                except BuildProblem as problem:
                    if mode == "cuda":
                        raise
                    why_not = str(problem)
                    warn(f"growtas._cuda is left out, the CPU module is built: {why_not}")
            # `growtas doctor` tells it later: pip shows no output of a build that succeeds.
            built["cpu"][1]["cuda"] = "built" if "cuda" in built else why_not
            for destination in [Path(self.build_lib), *([ROOT] if self.inplace else [])]:
                self._place(built, destination)

    def _place(self, built: dict[str, tuple[Path, dict]], destination: Path) -> None:
        (destination / "growtas").mkdir(parents=True, exist_ok=True)
        for kind in ("cpu", "cuda"):
            library, notes = self._targets(kind, destination)
            if kind not in built:  # left from an earlier build: it would be loaded, and packed into wheels
                library.unlink(missing_ok=True)
                notes.unlink(missing_ok=True)
                continue
            binary, metadata = built[kind]
            # Renamed into place: a running process keeps the file it has mapped.
            temporary = library.with_name(f".{library.name}.{os.getpid()}")
            shutil.copy2(binary, temporary)
            os.replace(temporary, library)
            temporary.write_text(json.dumps(metadata, indent=1) + "\n")
            os.replace(temporary, notes)

    def get_outputs(self) -> list[str]:
        candidates = [t for kind in ("cpu", "cuda") for t in self._targets(kind, Path(self.build_lib))]
        return [str(t) for t in candidates if t.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {o: str(Path("growtas", Path(o).name)) for o in self.get_outputs()}


setup(
    ext_modules=[
        Extension("growtas._cpu", CPU_SOURCES)
    ],  # tells setuptools that the wheel belongs to one platform
    cmdclass={"build_ext": NinjaBuild},
)
