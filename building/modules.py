"""Compiles growtas._cpu and growtas._cuda: each a build.ninja, a run of ninja, and the metadata beside it."""

import fcntl
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path

import pybind11

from building.toolchain import (
    BuildProblem,
    arch_flags,
    clone_targets,
    compiles,
    find_cxx,
    max_jobs,
    output_of,
    warn,
)

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "growtas" / "version.py").read_text()).group(1)


def sources(pattern: str) -> list[str]:
    """The sources of a kind, as setuptools wants them: relative to the root, with slashes."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


CPU_SOURCES = ["csrc/cpu_module.cpp", *sources("csrc/cpu/**/*.cpp")]
CUDA_SOURCES = ["csrc/cuda_module.cpp", *sources("csrc/cuda/**/*.cu")]
HOPPER = "90a"  # the architecture of sources named *_sm90a.cu, which nothing else can run


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

    def rule(self, name: str, command: str) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]

    def compile_rule(self, name: str, compiler: str, log: bool = False) -> None:
        """A rule for object files, which follows includes and keeps the compiler's output where asked."""
        keep = " >$out.log 2>&1 || { cat $out.log; exit 1; }" if log else ""
        self.rule(name, f"{compiler} -MD -MF $out.d -c $in -o $out{keep}")
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
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        )  # fmt: skip
        print(done.stdout, flush=True)
        if done.returncode:
            errors = [s for s in done.stdout.splitlines() if re.search(r"\berror\b|fatal", s, re.IGNORECASE)]
            raise BuildProblem(errors[0].strip() if errors else f"ninja ended with status {done.returncode}")
        return self.folder / target


def python_include() -> str:
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        raise BuildProblem(
            f"Python.h is missing from {include}: install this Python's headers (Debian and Ubuntu: `apt "
            f"install python{sys.version_info[0]}.{sys.version_info[1]}-dev`), then install again."
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


def build_cpu(folder: Path, suffix: str, more_flags: list[str] | None = None) -> tuple[Path, dict]:
    cxx, cxx_version = find_cxx()
    flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
    # Wide vectors never cross a call, so their calling convention does not matter.
    flags += ["-Wall", "-Wextra", "-Wno-psabi"]
    openmp = compiles([*cxx, "-fopenmp"], "#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n")
    if openmp:
        flags.append("-fopenmp")
    else:
        warn(
            f"{cxx[0]} has no OpenMP, so the CPU kernels will use one thread: install libomp or libgomp, or "
            "set CXX=g++."
        )
    flags += more_flags or []
    clones = clone_targets(cxx)
    defines = [f"-DGROWTAS_TARGET_CLONES={clones}"] if clones else []
    build_id = build_name(cxx_version, *flags, *defines)

    ninja = Ninja(folder / "cpu")
    ninja.compile_rule("cxx", shell([*cxx, *flags, *defines, *module_flags(build_id)]))
    link = ["-shared", *(["-fopenmp"] if openmp else []), *(more_flags or [])]
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
            "newer, or set CXX; the compiler's whole output stands above."
        ) from None
    metadata = common_metadata(build_id, cxx_version, [*flags, *defines])
    return binary, metadata | {"openmp": openmp, "target_clones": re.findall(r'"(?:arch=)?(.+?)"', clones)}


def build_cuda(folder: Path, suffix: str, toolkit: dict) -> tuple[Path, dict]:
    nvcc, archs = toolkit["path"], toolkit["archs"]
    cxx, cxx_version = find_cxx()
    host = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    host += ["-DGROWTAS_SM90A"] if HOPPER in archs else []
    common = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "--threads=2"]
    portable = arch_flags(archs, toolkit["known_archs"])
    flags = [*common, *portable]
    build_id = build_name(cxx_version, toolkit["version"], *host, *flags)

    ninja = Ninja(folder / "cuda")
    ninja.compile_rule("cxx", shell([*cxx, *host, *module_flags(build_id)]))
    # ptxas says what each kernel uses only while it compiles; the log beside the object outlives that.
    ninja.compile_rule("nvcc", shell([nvcc, *flags, f"-I{ROOT / 'csrc'}"]), log=True)
    hopper = [*common, f"-gencode=arch=compute_{HOPPER},code=sm_{HOPPER}"]
    ninja.compile_rule("nvcc_sm90a", shell([nvcc, *hopper, f"-I{ROOT / 'csrc'}"]), log=True)
    # The CUDA runtime is linked in, so the module loads without a driver; hidden, so torch's stays apart.
    link = ["-shared", "-cudart=static", "-Xcompiler=-fPIC", *portable]
    hide = ["-Xlinker=--exclude-libs,ALL"] if sys.platform != "darwin" else []
    ninja.rule("link", shell([nvcc, *link, *hide]) + " $in -o $out")
    for source in CUDA_SOURCES:
        if not source.endswith("_sm90a.cu"):
            ninja.object("nvcc" if source.endswith(".cu") else "cxx", source)
        elif HOPPER in archs:
            ninja.object("nvcc_sm90a", source)
    try:
        binary = ninja.run(f"_cuda{suffix}", "link")
    except BuildProblem as problem:
        raise BuildProblem(
            f"growtas._cuda does not compile with nvcc {toolkit['version']} ({toolkit['toolkit']}): "
            f"{problem}. Install a complete CUDA toolkit (12.0 or newer) with a C++ compiler it supports "
            "(NVCC_CCBIN names one), or set GROWTAS_BUILD=cpu; the compiler's whole output stands above."
        ) from None
    kernels = kernel_resources([ninja.folder / f"{o}.log" for o in ninja.objects])
    metadata = common_metadata(build_id, cxx_version, flags)
    metadata |= {"nvcc": toolkit["version"], "toolkit": toolkit["toolkit"], "archs": archs}
    return binary, metadata | {"kernels": kernels}


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
    names = (output_of(["c++filt", "-p", *(k["kernel"] for k in kernels)]) or "").splitlines()
    for kernel, name in zip(kernels, names, strict=False):  # without binutils the mangled names stay
        kernel["kernel"] = name.rpartition("(anonymous namespace)::")[2]
    return kernels
