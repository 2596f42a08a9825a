"""A disk that fails: it counts the calls that change a folder, and one of them fails, kills or loses power.

These calls count: opening a file for writing, write, truncate, fsync, rename, unlink and mkdir. A loss of
power is modelled as POSIX allows it: of a file, only its content at the last fsync is there for certain; of a
folder, only the entries at its last fsync. What came later is there, in part, as zeros, or not at all.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ERRORS = {
    "ENOSPC": {"open", "write", "fsync", "rename", "mkdir"},
    "EACCES": {"open", "rename", "unlink", "mkdir"},
    "EIO": {"open", "write", "truncate", "fsync", "rename", "unlink", "mkdir"},
}
"""The calls that may fail so."""
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
MOST_SHOWN = 2000  # bytes of what an attempt printed
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_replaced: dict[str, Callable] = {}  # what install() put others in the place of


@dataclass(frozen=True)
class Fault:
    """A fault and its moment.

    Args:
        what: one of ``SIGNALS`` or ``ERRORS``, or ``power``.
        at: the number of the call, from 1.
        of: ``disk`` where the calls that change the folder are counted, ``python`` for those of any function.
        lasting: every later call fails, too, as on a disk that is full.
        seed: of what a loss of power leaves; where it is negative, all that is not certain is lost.
    """

    what: str
    at: int
    of: str = "disk"
    lasting: bool = False
    seed: int = 0

    def __str__(self) -> str:
        lasting = " and ever after" if self.lasting else ""
        return f"{self.what} at call {self.at} of {self.of}{lasting}"


class Counts:
    """Numbers of calls, shared with the processes that are forked from this one."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    def __getitem__(self, of: str) -> int:
        return struct.unpack_from("q", self._memory, 8 * (of == "python"))[0]

    def add(self, of: str, calls: int = 1) -> int:
        """Add calls. Returns: how many there were."""
        found = self[of] + calls
        struct.pack_into("q", self._memory, 8 * (of == "python"), found)
        return found


class Disk:
    """The disk of one process and of those that it forks.

    Args:
        folder: whose changes are counted, with all below it.
        journal: a folder outside of it, for what is on the disk for certain; None where power is not lost.
        counts: of calls.
        fault: what happens; nothing where None.
        moments: count the calls of functions, too, where there is no fault.
    """

    def __init__(
        self,
        folder: Path,
        journal: Path | None,
        counts: Counts,
        fault: Fault | None = None,
        moments: bool = False,
    ) -> None:
        self.folder, self.journal, self.counts, self.fault = str(folder), journal, counts, fault
        self.moments = moments
        self.root, self.torn = os.getpid(), 0
        if journal is not None:
            shutil.rmtree(journal, ignore_errors=True)
            journal.mkdir(parents=True)
            for place, _, names in os.walk(folder):  # what was there before counts as being on the disk
                self._keep_folder(place)
                for name in names:
                    self._keep_file(os.path.join(place, name))

    def install(self) -> None:
        """Put this disk under Python's functions, for as long as the process lives."""
        for name, kind in (("replace", "rename"), ("rename", "rename"), ("unlink", "unlink")):
            self._put(name, kind)
        os.remove = os.unlink
        self._put("mkdir", "mkdir"), self._put("truncate", "truncate")
        self._put("fsync", "fsync"), self._put("ftruncate", "truncate")
        _replaced["os.open"], os.open = os.open, self._os_open
        _replaced["open"] = builtins.open
        builtins.open = io.open = tarfile.bltn_open = self._open
        if self.fault is not None and self.fault.of == "python":
            sys.setprofile(self._moment)
        elif self.moments:
            sys.setprofile(self._count)

    def end(self) -> None:
        """The work is done: power may be lost now."""
        sys.setprofile(None)
        if self.fault is not None and self.fault.what == "power" and self.fault.at > self.counts["disk"]:
            self.lose()

    # -- counting ----------------------------------------------------------------------------------------

    def _count(self, *_: Any) -> None:
        self.counts.add("python")

    def _moment(self, *_: Any) -> None:
        if os.getpid() == self.root and self.counts.add("python") == self.fault.at:
            sys.setprofile(None)
            os.kill(self.root, getattr(signal, self.fault.what))

    def _holds(self, path: Any) -> str | None:
        """The path in the folder that is meant, None where another one is."""
        try:
            found = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        except (OSError, TypeError):
            return None
        found = os.path.abspath(os.fsdecode(found))
        return found if found == self.folder or found.startswith(f"{self.folder}/") else None

    def strikes(self, kind: str) -> None:
        """Count a call, which may be the last one. Raises: OSError: it fails."""
        fault, number = self.fault, self.counts.add("disk")
        if fault is None or fault.of != "disk":
            return
        if number != fault.at and not (fault.lasting and number > fault.at):
            return
        if fault.what in ERRORS:
            if fault.lasting and kind not in ERRORS[fault.what]:
                return
            name = fault.what if kind in ERRORS[fault.what] else "EIO"
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
        if fault.what == "power":
            for pid in self._others():
                os.kill(pid, signal.SIGKILL)
            self.lose()
        os.kill(os.getpid(), getattr(signal, fault.what, signal.SIGKILL))

    def _others(self) -> list[int]:
        found = [self.root]
        for pid in found:
            with suppress(OSError), _real("open")(f"/proc/{pid}/task/{pid}/children") as file:
                found += [int(child) for child in file.read().split()]
        return [pid for pid in found if pid != os.getpid()]

    # -- calls -------------------------------------------------------------------------------------------

    def _put(self, name: str, kind: str) -> None:
        real = _replaced[f"os.{name}"] = getattr(os, name)

        def call(path: Any, *rest: Any, **given: Any) -> Any:
            held = self._holds(path) if "dir_fd" not in given else None
            if held is None:
                return real(path, *rest, **given)
            self.strikes(kind)
            found = real(path, *rest, **given)
            if kind == "fsync" and self.journal is not None:
                (self._keep_folder if os.path.isdir(held) else self._keep_file)(held)
            return found

        setattr(os, name, call)

    def _os_open(self, path: Any, flags: int, *rest: Any, **given: Any) -> int:
        held = self._holds(path) if flags & _WRITING else None
        if held is None:
            return _real("os.open")(path, flags, *rest, **given)
        self.strikes("open")
        new = not os.path.exists(held)
        found = _real("os.open")(path, flags, *rest, **given)
        if new:
            self._forget(os.fstat(found).st_ino)
        return found

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **given: Any) -> Any:
        held = self._holds(file) if set(mode) & set("wax+") else None
        if held is None or rest or given.get("opener"):
            return _real("open")(file, mode, buffering, *rest, **given)
        self.strikes("open")
        new = not isinstance(file, int) and not os.path.exists(held)
        plain = "".join(sorted(set(mode) - set("bt"), key="rwax+".index))
        raw = _File(self, file, plain, given.get("closefd", True))
        if new:
            self._forget(os.fstat(raw.fileno()).st_ino)
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return buffered
        text = {name: given.get(name) for name in ("encoding", "errors", "newline")}
        found = io.TextIOWrapper(buffered, **text, line_buffering=buffering == 1)
        found.mode = mode
        return found

    # -- a loss of power ---------------------------------------------------------------------------------

    def _keep_file(self, path: str) -> None:
        shutil.copyfile(path, self.journal / f"{os.stat(path).st_ino}")

    def _keep_folder(self, path: str) -> None:
        entries = {entry.name: entry.inode() for entry in os.scandir(path)}
        (self.journal / f"{os.stat(path).st_ino}.folder").write_text(json.dumps(entries))

    def _forget(self, inode: int) -> None:
        """A new file may have the number of one that was removed."""
        if self.journal is not None:
            with suppress(FileNotFoundError):
                _real("os.unlink")(self.journal / f"{inode}")

    def lose(self) -> None:
        """Leave in the folder what a loss of power may leave."""
        rng = random.Random(self.fault.seed)
        builtins.open = io.open = _real("open")
        for name in ("open", "unlink", "replace", "rename", "mkdir", "truncate", "ftruncate", "fsync"):
            setattr(os, name, _real(f"os.{name}"))
        os.remove = os.unlink
        self._lose(Path(self.folder), rng)

    def _lose(self, folder: Path, rng: random.Random) -> None:
        kept = self.journal / f"{folder.stat().st_ino}.folder"
        certain = json.loads(kept.read_text()) if kept.exists() else {}
        now = {path.name: path.stat().st_ino for path in folder.iterdir()}
        contents = {}  # read before the first change: a name that goes may be another's certain file
        for path in folder.iterdir():
            if path.is_file():
                contents[path.stat().st_ino] = self._content(path, rng)
        for name in sorted(now.keys() | certain.keys()):
            path, old = folder / name, certain.get(name)
            if now.get(name) != old and self._loses(rng):  # the change of this entry is lost
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.exists():
                    path.unlink()
                if old is not None:
                    content = self.journal / f"{old}"
                    path.write_bytes(contents.get(old) or (content.read_bytes() if content.exists() else b""))
            elif path.is_dir():
                self._lose(path, rng)
            elif path.exists():
                path.write_bytes(contents[now[name]])

    def _loses(self, rng: random.Random) -> bool:
        return self.fault.seed < 0 or rng.random() < 0.5

    def _content(self, path: Path, rng: random.Random) -> bytes:
        kept, now = self.journal / f"{path.stat().st_ino}", path.read_bytes()
        certain = kept.read_bytes() if kept.exists() else b""
        if now == certain or self.fault.seed < 0:
            return certain
        same = len(os.path.commonprefix([now, certain]))
        part = now[: rng.randint(same, len(now))]
        return rng.choice([certain, now, part, part + bytes(len(now) - len(part)), now[:same]])


class _File(io.FileIO):
    """A file of a Disk."""

    def __init__(self, disk: Disk, path: Any, mode: str, closefd: bool) -> None:
        super().__init__(path, mode, closefd)
        self._disk, self._error = disk, None

    def write(self, data: Any) -> int:
        """Write; the call that fails or is killed has written one half, as it may on a real disk."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        fault, half = self._disk.fault, memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
        due = fault is not None and fault.of == "disk" and self._disk.counts["disk"] + 1 == fault.at
        if due and fault.what not in ERRORS and fault.seed % 2:
            super().write(half)
        try:
            self._disk.strikes("write")
        except OSError as error:
            if not due or not half or not fault.seed % 2:
                raise
            self._error = error  # the system takes what it can and refuses the rest
            return super().write(half)
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self._disk.strikes("truncate")
        return super().truncate(size)


def _real(name: str) -> Callable:
    """A function as it was before :meth:`Disk.install`."""
    if name in _replaced:
        return _replaced[name]
    return builtins.open if name == "open" else getattr(os, name.removeprefix("os."))
