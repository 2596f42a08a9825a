"""``growtas data``: commands about images on disk."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from growtas import atomic
from growtas.bounds import PROCESSES, bounded
from growtas.cli_options import options, positional
from growtas.errors import UsageError, nearest

if TYPE_CHECKING:
    from growtas.training.data.files import FileData

NAMED = 20  # unreadable images that are printed


@bounded(workers=PROCESSES)
def check(
    data: str,
    data_folder: str | None = None,
    out: str | None = None,
    workers: int | None = None,
    download: bool = False,
) -> int:
    """Decode every image of a data set, and name those that cannot be read.

    Args:
        data: folder:PATH or PATH (PATH/train/CLASS/* and PATH/val/CLASS/*), or a timm data set name such as
            torch/cifar10.
        data_folder: where timm data sets are stored.
        out: file that all unreadable images are written to, one a line with the reason; 20 are printed.
        workers: processes that decode; as many as there are cores where None.
        download: let timm download the data set into data_folder.

    Returns:
        The number of images that cannot be read. The result is kept for bad_images=skip.

    Raises:
        UsageError, GrowtasError: as growtas.training.data.load_splits.
    """
    from growtas.training.data.files import decoded, keep, read_files
    from growtas.training.embedded import EMBEDDED

    if data.partition(":")[0] in EMBEDDED:
        raise UsageError(f"The data {data!r} is embedded: it has no files to check.")
    if Path(data).expanduser().is_dir():
        data = f"folder:{data}"
    files = read_files(data, data_folder, download)
    sizes, bad = {}, {}
    for place, size, reason in decoded(files, workers):
        if reason:
            bad[place] = reason
        else:
            sizes[size[0] * size[1]] = size
    keep(files, bad)
    print(summary(files, sizes, len(bad)))
    named = [f"{files.parts()[part].name(number)}: {reason}" for (part, number), reason in bad.items()]
    for line in named[:NAMED]:
        print(f"  unreadable {line}")
    if len(named) > NAMED:
        print(f"  and {len(named) - NAMED:,} more; --out FILE writes all of them")
    if out is not None:
        atomic.write_text(out, "".join(f"{line}\n" for line in named))
        print(f"wrote {out}")
    return len(bad)


def summary(files: FileData, sizes: dict[int, tuple[int, int]], bad: int) -> str:
    """One line about checked data.

    Args:
        files: the data.
        sizes: (width, height) in pixels of its images, by their product.
        bad: images that cannot be read.
    """
    return (
        f"data {files.name}: {files.num_classes:,} classes; {len(files.train):,} training and "
        f"{len(files.test):,} test images"
        + (", {}x{} to {}x{} pixels".format(*sizes[min(sizes)], *sizes[max(sizes)]) if sizes else "")
        + f", {bad:,} of them unreadable{files.remarks()}"
    )


def _check(args: Sequence[str]) -> int:
    """decode every image, and name those that cannot be read"""
    return min(1, check(**options(check, args, "data check", {"data": positional(str)})))


def _pack(args: Sequence[str]) -> None:
    """write images as shards of small ones, to be read fast"""
    from growtas.training.data.pack import data_pack

    paths = {"data": positional(str), "out": positional(str)}
    out = data_pack(**options(data_pack, args, "data pack", paths))
    size = sum(path.stat().st_size for path in out.rglob("*.tar"))
    print(f"wrote {out}: {size / 1e6:,.1f} MB. Train on it with --data {shlex.quote(f'packed:{out}')}")


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {"check": _check, "pack": _pack}


def main(args: Sequence[str]) -> int:
    """Run a command. Args: args: its name, then its own. Returns: the exit status."""
    name = args[0] if args else "--help"
    if name in ("-h", "--help"):
        lines = (f"  {name:<10} {run.__doc__.splitlines()[0]}\n" for name, run in COMMANDS.items())
        print(f"usage: growtas data COMMAND [OPTIONS]\n\n{''.join(lines)}", end="")
        return 0 if args else 2
    if name not in COMMANDS:
        raise UsageError(f"growtas data has no command {name!r}.{nearest(name, COMMANDS)}")
    return COMMANDS[name](args[1:]) or 0
