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
TESTS = [
    "tests/ops/properties", "tests/ops/layer_norm", "tests/ops/linear/test_native_linear.py",
    "tests/ops/linear/test_native_gelu.py", "tests/ops/relative_attention", "tests/ops/test_one_call.py",
    "tests/ops/test_branches.py", "tests/ops/test_checks.py", "tests/ops/test_tokens.py",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    """Build the module, then run pytest on it; returns pytest's status."""
    kind = arguments.pop(0) if arguments and arguments[0] in FLAGS else "address"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with build_folder("build") as folder:
        folder = folder.parent / f"sanitized-{kind}"
        folder.mkdir(exist_ok=True)
        binary, metadata = build_cpu(folder, suffix, ["-O1", "-g", "-fno-omit-frame-pointer", *FLAGS[kind]])
    runtime = "libasan.so" if kind == "address" else "libtsan.so"
    cxx, _ = find_cxx()
    library = (output_of([*cxx, f"-print-file-name={runtime}"]) or "").strip()
    environment = {
        **os.environ, **OPTIONS, "LD_PRELOAD": library, "GROWTAS_SANITIZED": str(binary),
        "GROWTAS_BUILD_ID": metadata["build_id"], "PYTHONPATH": str(ROOT / "tests"),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "sanitized",
        "-n",
        "0",
        "-k",
        "not emulated",
        "-m",
        "not cuda",
    ]
    return subprocess.run([*command, *(arguments or TESTS)], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
