"""Files that are either the old version or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from growtas.errors import GrowtasError


class DeviceFull(GrowtasError):
    """No space was left; its cause is the OSError."""


@contextmanager
def replace(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file under a temporary name beside it, flush it to the disk, and rename it into place.

    Args:
        path: the file to create or replace; its folder must exist.

    Yields:
        The temporary path to write to. On an exception it is removed and ``path`` is as it was.

    Raises:
        DeviceFull: no space is left on the device; the old file is untouched.

    Example:
        >>> with replace("model.pt") as temporary:
        ...     torch.save(state, temporary)
    """
    path = Path(path)
    temporary = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; the user's umask decides instead
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DeviceFull(
                f"No space is left on the device for {path}; the previous file is untouched. "
                "Free some space or choose another folder, then repeat the command."
            ) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush the directory entry, so that the rename itself survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Atomically write ``data`` as the whole content of a file; raises as :func:`replace` does."""
    with replace(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Atomically write ``text``, as UTF-8, as the whole content of a file; raises as :func:`replace` does."""
    write_bytes(path, text.encode())
