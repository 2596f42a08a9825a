"""Files that are either the old version or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from growtas.errors import GrowtasError


class NotWritten(GrowtasError):
    """A file or a folder could not be written; its cause is the OSError."""


class DeviceFull(NotWritten):
    """No space was left."""


@contextmanager
def replace(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file under a temporary name beside it, flush it to the disk, and rename it into place.

    Args:
        path: the file to create or replace; its folder must exist.

    Yields:
        The temporary path to write to. On an exception it is removed and ``path`` is as it was.

    Raises:
        NotWritten: the file cannot be written; the old one is untouched.
        DeviceFull: since no space is left on the device.

    Example:
        >>> with replace("model.pt") as temporary:
        ...     torch.save(state, temporary)
    """
    path = Path(path)
    name = temporary = None
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
        flush_folder(path.parent)
    except OSError as error:
        if error.filename not in (None, name, str(path), str(path.parent)):
            raise  # the file that is read while this one is written
        raise not_written(path, error, "the previous file is untouched") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # what cannot be removed harms nobody
                temporary.unlink(missing_ok=True)


def not_written(path: Path, error: OSError, kept: str = "nothing was lost") -> NotWritten:
    """The error for a file or a folder that could not be written, to be raised from ``error``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DeviceFull(
            f"No space is left on the device for {path}; {kept}. "
            "Free some space or choose another folder, then repeat the command."
        )
    return NotWritten(
        f"{path} cannot be written ({(error.strerror or str(error)).lower()}); {kept}. "
        "Mend that or choose another folder, then repeat the command."
    )


def make_folder(folder: Path) -> None:
    """Create a folder, and those that it lies in, so that they survive a power cut.

    Raises:
        NotWritten: it cannot be created.
    """
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for each in missing:
            flush_folder(each.parent)
    except OSError as error:
        raise not_written(folder, error) from error


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a file made or renamed there survives a power cut."""
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
