"""Runs tests on CPU kernels compiled with AddressSanitizer and UBSan, or with ThreadSanitizer.

Usage: ``python building/sanitize.py [address|thread] [pytest arguments]``. The module is built in a folder of
its own beside the user's, and ``tests/sanitized.py`` lets the tests load it.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from building.modules import build_cpu, build_folder  # noqa: E402
from building.toolchain import find_cxx, output_of  # noqa: E402

FLAGS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
# Python and torch keep memory until the process ends, and torch's libraries define the same symbols twice.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:alloc_dealloc_mismatch=0:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=0:exitcode=66:ignore_noninstrumented_modules=1",
}
TESTS = {
    "address": [
        "-k", "not emulated and not cuda and not triton", "tests/ops/properties", "tests/ops/layer_norm",
        "tests/ops/linear/test_native_linear.py", "tests/ops/linear/test_native_gelu.py",
        "tests/ops/relative_attention", "tests/ops/test_one_call.py", "tests/ops/test_branches.py",
        "tests/ops/test_checks.py",
    ],
    "thread": ["-k", "single", "tests/ops/properties/test_operations_in_threads.py"],
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Build the module, then run pytest on it; returns pytest's status."""
    kind = arguments.pop(0) if arguments and arguments[0] in FLAGS else "address"
    with build_folder("build") as folder:
        folder = folder.parent / f"sanitized-{kind}"
        folder.mkdir(exist_ok=True)
        flags = ["-O1", "-g", "-fno-omit-frame-pointer", *FLAGS[kind]]
        binary, _ = build_cpu(folder, sysconfig.get_config_var("EXT_SUFFIX"), flags)
    # The C++ library comes along: the sanitizer looks for its throw before anything else has loaded it.
    preloaded = [{"address": "libasan.so", "thread": "libtsan.so"}[kind], "libstdc++.so"]
    found = [output_of([*find_cxx()[0], f"-print-file-name={name}"]) or name for name in preloaded]
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": " ".join(name.strip() for name in found)}
    environment |= {"GROWTAS_SANITIZED": str(binary), "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "pytest", "-p", "sanitized", "-n", "0", "-m", "not cuda"]
    return subprocess.run([*command, *(arguments or TESTS[kind])], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
