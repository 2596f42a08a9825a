"""Reading files that may be damaged: one sentence, whatever is wrong with them. No torch."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from growtas import plain_yaml
from growtas.errors import GrowtasError

_CHUNK = 2**20  # bytes that are checked at a time


@contextmanager
def reading(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Turn all that a damaged file can raise, while it is read and understood, into one sentence.

    Args:
        path: the file.
        kind: of its content, such as ``"the plan of a comparison"``.
        remedy: a sentence.

    Raises:
        FileNotFoundError: there is no such file; each caller says what that means.
        GrowtasError: the file cannot be read, is damaged, or holds something else. An error of growtas that
            is no UsageError, and has its own sentence, passes.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise GrowtasError(
            f"{path} cannot be read ({(error.strerror or str(error)).lower()}). Nothing was changed; make "
            "it readable and repeat the command."
        ) from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise GrowtasError(f"{path} is damaged or not {kind} ({_reason(error)}). {remedy}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, its checksum compared where it has one; call it within :func:`reading`."""
    data = _mapping(json.loads(path.read_bytes()))
    check = data.pop("crc", None)
    if check not in (None, _crc(data)):
        raise ValueError("its checksum does not match its values: it was changed")
    return data


def signed(data: Mapping[str, Any]) -> dict[str, Any]:
    """An object with a checksum over its values, for a JSON file that is written once."""
    return {**data, "crc": _crc(data)}


def _crc(data: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(data).encode()):08x}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; call it within :func:`reading`."""
    return _mapping(plain_yaml.read(path))


def _mapping(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"it holds a {type(data).__name__}, not names and values")
    return data


def damaged_record(file: IO[bytes]) -> str | None:
    """Check the checksum of every record of a zip archive, such as torch.save writes; torch does not.

    Args:
        file: the archive, opened; it is read from its beginning to its end.

    Returns:
        The first record that is damaged, or what else is wrong; None where all is well.
    """
    name = "the list of its records"
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                name = f"the record {info.filename}"
                if (
                    info.external_attr or info.compress_type
                ):  # torch takes a "directory" for a tensor of noise
                    return name
                with archive.open(info) as record:
                    while record.read(_CHUNK):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError):
        return name
    return None
