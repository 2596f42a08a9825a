"""Options of the command line, read off signatures and docstrings, so that the two cannot drift apart."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from growtas.bounds import check_text
from growtas.errors import UsageError, brief

INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


class Interrupted(Exception):
    """Stopped by a signal, with the sentence that says how to go on."""

    def __init__(self, sentence: str, exit_status: int = INTERRUPTED) -> None:
        super().__init__(sentence)
        self.exit_status = exit_status


def options(
    function: Callable, args: Sequence[str], verb: str, types: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Parse the arguments of a verb by the signature and the docstring of the function that it calls.

    Args:
        function: of the API.
        args: of the command line.
        verb: for the usage line.
        types: parameters whose type cannot be written in a shell, with the one to read in its place.

    Returns:
        One value per parameter.

    Raises:
        SystemExit: after ``--help``; tyro has printed it.
        UsageError: an argument is unknown, missing or no value of its option.
    """
    return parse(parameters_of(function, types or {}), help_text_of(function), args, verb)


def parameters_of(function: Callable, types: Mapping[str, Any]) -> list[inspect.Parameter]:
    """The parameters with real types: string annotations are read in the function's own module."""
    scope = vars(sys.modules[function.__module__])
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        annotation = types.get(parameter.name, parameter.annotation)
        if isinstance(annotation, str):
            annotation = eval(annotation, scope)  # noqa: S307 - our own source
        parameters.append(parameter.replace(annotation=annotation))
    return parameters


def help_text_of(function: Callable) -> str:
    """The purpose and the arguments of a docstring; what is raised and returned is for Python's readers."""
    lines, keep = [], True
    for line in inspect.getdoc(function).replace("``", "").splitlines():
        if line and not line.startswith(" ") and line.endswith(":"):
            keep = line == "Args:"
        if keep and line.startswith(" " * 8):  # tyro would break the line where the docstring does
            lines[-1] += f" {line.strip()}"
        elif keep:
            lines.append(line)
    return "\n".join(lines).rstrip()


def parse(
    parameters: Sequence[inspect.Parameter], help_text: str, args: Sequence[str], verb: str
) -> dict[str, Any]:
    """Parse arguments. Args: as :func:`options`, by parameters and help in place of the function."""
    import tyro

    def collect(**values: Any) -> dict[str, Any]:
        return values

    collect.__signature__ = inspect.Signature(parameters)
    collect.__annotations__ = {p.name: _named(p) for p in parameters}
    collect.__doc__ = help_text

    def read() -> dict[str, Any]:
        return tyro.cli(collect, args=args, prog=f"growtas {verb}", config=(tyro.conf.DisallowNone,))

    told = io.StringIO()
    try:
        # Into what is no terminal and no UTF-8, tyro writes plain text: no colours, and no box of lines.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            return read()
    except SystemExit as end:
        if end.code in (0, None):
            return read()  # the help, as the terminal has it
        raise UsageError(f"{_sentence(told.getvalue())} See growtas {verb} --help.") from None


def _named(parameter: inspect.Parameter) -> Any:
    """The type of a parameter; the help calls one that is given by its place by its name."""
    import tyro

    if tyro.conf.Positional not in getattr(parameter.annotation, "__metadata__", ()):
        return parameter.annotation
    name = parameter.name.upper().replace("_", "-")
    metavar = name if parameter.default is parameter.empty else f"[{name}]"
    return Annotated[parameter.annotation, tyro.conf.arg(metavar=metavar)]


def _sentence(message: str) -> str:
    """The problem in a message of tyro: a title, a rule, the problem, a rule, what helps."""
    lines = [line.strip() for line in message.splitlines()]
    parts = "\n".join("\f" if set(line) == {"-"} else line for line in lines).split("\f")
    problem = parts[1] if len(parts) > 1 else message
    sentence = brief(" ".join(problem.partition("Got errors:")[0].split()), 400)
    return sentence if sentence.endswith((".", "?")) else f"{sentence}."


def check_arguments(args: Sequence[str]) -> None:
    """Check what holds for every argument.

    Raises:
        UsageError: one is too long, is no text or holds a null byte, or the working directory is gone.
    """
    for place, arg in enumerate(args, 1):
        check_text(f"argument {place}", arg)
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("The working directory was removed; change to a folder that exists.") from error


def positional(kind: Any) -> Any:
    """The type of a parameter that is given by its place."""
    import tyro

    return Annotated[kind, tyro.conf.Positional]


def given(values: Mapping[str, Any], args: Sequence[str]) -> dict[str, Any]:
    """The values that stand in the arguments; tyro's flags cannot be None, so those are looked for there."""
    flags = {arg.removeprefix("--no-").removeprefix("--").replace("-", "_") for arg in args}
    return {k: v for k, v in values.items() if v is not None and (not isinstance(v, bool) or k in flags)}


def optional(parameter: inspect.Parameter) -> inspect.Parameter:
    """The same parameter, but None where it is not given; tyro's flags cannot be None."""
    if parameter.annotation is bool:
        return parameter
    return parameter.replace(default=None, annotation=parameter.annotation | None)
