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

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # the build front end does not put the project there

if int(setuptools.__version__.split(".")[0]) < 77:  # only an install without build isolation can get here
    raise SystemExit(
        f"growtas: setuptools {setuptools.__version__} is too old to read pyproject.toml: `pip install -U "
        "'setuptools>=77'`, or leave out --no-build-isolation."
    )
try:
    from building.modules import CPU_SOURCES, build_cpu, build_cuda, build_folder
    from building.toolchain import BuildProblem, find_cuda, requested, warn
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"growtas: {missing.name} is missing: `pip install {missing.name}` or leave out --no-build-isolation."
    ) from None


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
        toolkit = find_cuda() if mode == "cuda" else None  # before the CPU module, which takes a while
        with build_folder(self.build_temp) as folder:
            built["cpu"] = build_cpu(folder, suffix)
            if mode != "cpu":
                try:
                    built["cuda"] = build_cuda(folder, suffix, toolkit or find_cuda())
                except BuildProblem as problem:
                    if mode == "cuda":
                        raise
                    why_not = str(problem)
                    warn(f"growtas._cuda is left out, the CPU module is built: {why_not}")
            # `growtas doctor` tells it later: pip shows no output of a build that succeeds.
            built["cpu"][1]["cuda"] = "built" if "cuda" in built else why_not
            for destination in [Path(self.build_lib), *([ROOT] if self.inplace else [])]:
                self._place(built, destination)
        if self.editable_mode:
            self._place_finder(Path(self.get_finalized_command("install").install_lib))

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

    def _place_finder(self, wheel: Path) -> None:
        """Add the finder that a clone in the working folder needs to an editable wheel's site-packages."""
        text = (ROOT / "building" / "beside_clone.py").read_text()
        package = f"PACKAGE = {str(ROOT / 'growtas')!r}"
        (wheel / "_growtas_beside_clone.py").write_text(text.replace('PACKAGE = ""', package))
        (wheel / "_growtas_beside_clone.pth").write_text("import _growtas_beside_clone\n")

    def get_outputs(self) -> list[str]:
        candidates = [t for kind in ("cpu", "cuda") for t in self._targets(kind, Path(self.build_lib))]
        return [str(t) for t in candidates if t.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {o: str(Path("growtas", Path(o).name)) for o in self.get_outputs()}


setup(
    # One extension suffices for setuptools to know that the wheel belongs to a platform.
    ext_modules=[Extension("growtas._cpu", CPU_SOURCES)],
    cmdclass={"build_ext": NinjaBuild},
)
