"""The version, in one place: setup.py reads this file, runs and checkpoints record it."""

import functools
import subprocess
from pathlib import Path

__version__ = "0.1.0"


@functools.cache
def commit() -> str | None:
    """The commit of the git checkout that holds this package, ``+`` if it was changed; None elsewhere."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "version.py") is None:
        return None  # installed, perhaps inside of another project's checkout
    changed = git("status", "--porcelain", "--untracked-files=no", ".", "../kernels", "../csrc")
    return f"{git('rev-parse', '--short=12', 'HEAD')}{'+' if changed else ''}"
