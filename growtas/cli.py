"""The command line: the verbs of the Python API with the same names and defaults.

Options are read off the API's own signatures and docstrings (growtas.cli_options). Each verb imports
what it needs when it runs: ``growtas --help`` and ``growtas spaces`` do not load torch.

Exit status: 0 done; 1 something went wrong; 2 the call asked for what cannot be; 130 interrupted. Errors are
one sentence on standard error; ``GROWTAS_DEBUG=1`` shows the traceback instead.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from growtas import cli_search, threads
from growtas.bounds import bounded
from growtas.cli_options import (
    INTERRUPTED,
    Interrupted,
    check_arguments,
    given,
    help_text_of,
    optional,
    options,
    parameters_of,
    parse,
    positional,
)
from growtas.errors import MOST_CHARACTERS, GrowtasError, UsageError, brief, command, nearest
from growtas.version import __version__

if TYPE_CHECKING:
    from growtas.training.run import Run

MEASURING = ("latency", "tune")  # verbs whose results depend on how threads wait

USAGE = """\
usage: growtas VERB [OPTIONS]

Supernets of vision transformers: trained small to large, searched under a limit, exported.

{verbs}

growtas VERB --help lists the options of a verb; growtas --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; the process' own where None.

    Returns:
        The exit status.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except SystemExit as done:  # tyro's --help and usage errors
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 2
    except BrokenPipeError:  # the reader of a pipe left; nothing more can be said there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail("Interrupted.", INTERRUPTED)
    except Interrupted as stop:
        return _fail(f"Interrupted. {stop}", stop.exit_status)
    except GrowtasError as error:
        return _fail(error, error.exit_status)
    except OSError as error:  # names the file: a folder without permission, a full device
        return _fail(error, 1)
    except Exception as error:
        return _fail(_unexpected(error), 1)


def _unexpected(error: Exception) -> str:
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error)):
        return f"The memory does not suffice: {brief(str(error), 300) or 'none is left'}"
    return f"unexpected {type(error).__name__}: {error}; GROWTAS_DEBUG=1 shows where."


def _fail(sentence: object, status: int) -> int:
    if os.environ.get("GROWTAS_DEBUG") == "1" and sys.exception() is not None:
        raise  # noqa: PLE0704 - called while the exception is handled
    print(f"growtas: {brief(' '.join(str(sentence).splitlines()), MOST_CHARACTERS - 20)}", file=sys.stderr)
    return status


def _dispatch(argv: list[str]) -> int:
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help", "help"):
        lines = (f"  {name:<10} {run.__doc__.splitlines()[0]}" for name, run in VERBS.items())
        print(USAGE.format(verbs="\n".join(lines)), end="")
        return 0 if argv else 2
    if verb == "--version":
        print(f"growtas {__version__}")
        return 0
    check_arguments(argv)
    if verb not in VERBS:
        raise UsageError(f"There is no verb {verb!r}.{nearest(verb, VERBS)}")
    with nullcontext() if verb in MEASURING else threads.chosen():
        return VERBS[verb](argv[1:]) or 0


# -- verbs -----------------------------------------------------------------------------------------------


def _train(args: list[str]) -> int:
    """train a supernet; --resume OUT continues an interrupted run"""
    from growtas.training.config import TrainConfig

    parameters = parameters_of(TrainConfig, {})
    kind, text = inspect.Parameter.KEYWORD_ONLY, str | None
    own = [inspect.Parameter(name, kind, default=None, annotation=text) for name in ("resume", "config")]
    own.append(inspect.Parameter("dry_run", kind, default=False, annotation=bool))
    settings = help_text_of(TrainConfig).partition("Args:")[2]
    help_text = f"Train a supernet, or continue a run.\n\nArgs:{settings}"
    help_text += "\n    resume: the folder of a run to continue; it knows its settings."
    help_text += (
        "\n    config: config.yaml of a run whose settings a new one begins with; those given besides win."
    )
    help_text += "\n    dry_run: tell what the run would take (steps, memory, disk), and write nothing."
    named = {"--resume", "--config", "--recipe"} & {arg.split("=")[0] for arg in args}
    if named:  # a setting counts as given only where it stands in the arguments
        parameters = [optional(parameter) for parameter in parameters]
    values = parse([*parameters, *own], help_text, args, "train")

    import growtas

    done = growtas.train(**(given(values, args) if named else values))
    print(done) if values["dry_run"] else _report_training(done)
    return 0


def _finetune(args: list[str]) -> int:
    """train a finished run's weights further: GrowTAS+"""
    import growtas
    from growtas.training.config import TrainConfig

    types = {"run": positional(str), "out": str | None}
    wanted = set(inspect.signature(TrainConfig).parameters) - {"space", "initial", "recipe"}
    _report_training(growtas.finetune(**_with_settings(growtas.finetune, args, "finetune", types, wanted)))
    return 0


def _transfer(args: list[str]) -> int:
    """fine-tune an extracted or timm model on other data; --resume OUT continues"""
    import growtas
    from growtas.export.transfer import SETTINGS

    text = str | None
    types = {"model": positional(text), "data": text, "out": text, "resume": text}
    run = growtas.transfer(**_with_settings(growtas.transfer, args, "transfer", types, SETTINGS))
    if os.environ.get("RANK", "0") == "0":
        print(f"wrote {run.path / 'model.safetensors'}, config.json and README.md")
        print(f"next: {command('evaluate', run.path)}")
    return 0


def _with_settings(
    function: Callable, args: list[str], verb: str, types: dict[str, Any], wanted: Collection[str]
) -> dict[str, Any]:
    """Parse a function's own parameters and the wanted settings of training, those that are given."""
    from growtas.training.config import TrainConfig

    own = parameters_of(function, types)[:-1]  # not **settings
    names = {parameter.name for parameter in own}
    others = [p for p in parameters_of(TrainConfig, {}) if p.name in wanted and p.name not in names]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *map(optional, others))]
    purpose, _, own_help = help_text_of(function).partition("\n    settings:")[0].partition("Args:")
    help_text = (
        f"{purpose}Args:{help_text_of(TrainConfig).partition('Args:')[2]}{own_help}"  # the last counts
    )
    return given(parse(parameters, help_text, args, verb), args)


def _report_training(run: Run) -> None:
    if os.environ.get("RANK", "0") != "0":  # torchrun starts one process per GPU; one of them speaks
        return
    from growtas.training.log import last_record

    finish, evaluation = (last_record(run.path, event) for event in ("finish", "eval"))
    skipped = f"{finish['skipped']} of them skipped" if finish else "its log was removed"
    print(f"{run.path}: {run.config.epochs} epochs, {run.steps:,} steps, {skipped}")
    for result in evaluation["results"] if evaluation else ():
        print(
            f"  {result['name']:<9} {result['subnet']}: {result['params']:,} parameters, "
            f"top-1 {result['top1']:.2f} % on the search split"
        )
    print(f"next: {command('search', run.path, '--max-params', 'N')}")


@bounded()
def extract(
    run: str,
    out: str,
    subnet: str = "best",
    overwrite: bool = False,
    averaged: bool = False,
    license: str | None = None,
) -> None:
    """Save a subnet of a run as a standalone timm model, its logits compared with the supernet slice's.

    Args:
        run: folder of a training run.
        out: folder for model.safetensors, config.json, the file that runs it without growtas, and README.md,
            the model's card.
        subnet: best (of the run's finished search; best:6e6 of that under the limit 6e6), pareto:3 or
            pareto:6e6 (of its front, by number or limit), smallest, largest, or sizes such as
            d24-h2,2,3-r2,3,2.
        overwrite: replace another model in that folder.
        averaged: take the moving average of the weights that a run with ema_decay keeps.
        license: of the weights, such as cc-by-4.0, for config.json; nothing is said where it is not given.
    """
    import growtas.export

    model = growtas.export.extract(run, subnet, averaged=averaged)
    folder = growtas.export.save(model, out, overwrite, license)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{growtas.export.subnet_of(model)}: {parameters:,} parameters")
    print(f"largest difference of a logit from the supernet slice's: {model.extraction_error:.3g}")
    for name in ("model.safetensors", "config.json", f"{model.architecture}.py", "README.md"):
        print(f"wrote {folder / name}")
    print(
        f"load it: growtas.export.load({str(folder)!r}), or where growtas is not installed: "
        f"import {model.architecture} from that folder, {model.architecture}.load({str(folder)!r})"
    )


def _extract(args: list[str]) -> int:
    """save a subnet as a standalone timm model (safetensors)"""
    extract(**options(extract, args, "extract", {"run": positional(str)}))
    return 0


def _evaluate(args: list[str]) -> int:
    """accuracy of one subnet of a run, or of a saved model"""
    from growtas import evaluate

    types = {"run": positional(str), "subnet": str}
    print(evaluate(**options(evaluate, args, "evaluate", types)))
    return 0


def _check(args: list[str]) -> int:
    """verify the files of a run, search, comparison, report or exported model"""
    from growtas import check

    checked = check(**options(check, args, "check", {"folder": positional(str)}))
    print(checked)
    return 0 if checked.ok else 1


def _export(args: list[str]) -> int:
    """write a model as ONNX, .pt2 or TorchScript, checked in that runtime"""
    from growtas.export import convert

    types = {"source": positional(str), "out": str | None}
    print(convert(**options(convert, args, "export", types)))
    return 0


def _spaces(args: list[str]) -> int:
    """list the search spaces with their sizes"""
    from growtas.listing import spaces

    spaces(**options(spaces, args, "spaces", {"space": positional(str | None)}))
    return 0


def _warmup(args: list[str]) -> int:
    """compile a space's Triton kernels, so that training waits for no compiler"""
    from growtas.warmup import warmup

    numbers, names = tuple[int, ...], tuple[str, ...]
    types = {"space": positional(str), "batch": numbers, "dtype": names, "arch": numbers}
    warmup(**options(warmup, args, "warmup", types))
    return 0


def _tune(args: list[str]) -> int:
    """race the backends on this machine, and keep which ones win"""
    from growtas.tuning import tune

    types = {"space": positional(str), "dtype": tuple[str, ...], "batch": int | None, "out": str | None}
    values = options(tune, args, "tune", types)
    try:
        tune(**values)
    except KeyboardInterrupt as stop:
        raise Interrupted("Finished classes are kept: repeat the command to continue.") from stop
    return 0


def _doctor(args: list[str]) -> int:
    """versions, backends and hardware, and what is missing"""
    from growtas import doctor

    return doctor.main(**options(doctor.main, args, "doctor"))


def _demo(args: list[str]) -> int:
    """train, search and export on scikit-learn's digits in a few minutes"""
    from growtas.demo import demo

    values = options(demo, args, "demo")
    again = f"What was done is kept: {command('demo', '--out', values['out'])} continues."
    try:
        demo(**values)
    except KeyboardInterrupt as stop:
        raise Interrupted(again) from stop
    except GrowtasError as stop:
        if stop.exit_status < 128:
            raise
        raise Interrupted(again, stop.exit_status) from stop  # training's own sentence is about the run alone
    return 0


def _compare(args: list[str]) -> int:
    """train several methods on equal terms, and tell where they differ"""
    from growtas import compare

    names = tuple[str, ...] | None
    types = {"out": positional(str), "space": str | None, "lr": str | None}
    values = options(compare, args, "compare", types | {n: names for n in ("methods", "limits", "settings")})
    made = compare(**values)
    print(made)
    for file in made.files:
        print(f"wrote {file}")
    for name, reason in made.failed.items():
        print(f"growtas: {name} failed: {reason}", file=sys.stderr)
    return 1 if made.failed else 0


def _report(args: list[str]) -> int:
    """every figure and table of the paper for your data, on one page"""
    from growtas import report

    names = tuple[str, ...] | None
    types = {"run": positional(str | None), "out": str | None, "space": str | None}
    made = report(**options(report, args, "report", types | {"only": names, "settings": names}))
    print(made)
    for name, reason in made.failed.items():
        print(f"growtas: {name} failed: {reason}", file=sys.stderr)
    return 1 if made.failed else 0


def _data(args: list[str]) -> int:
    """check a folder of images before training"""
    from growtas import data_commands

    return data_commands.main(args)


VERBS: dict[str, Callable[[list[str]], int | None]] = {
    "train": _train,
    "finetune": _finetune,
    "transfer": _transfer,
    "search": cli_search.search,
    "latency": cli_search.latency,
    "emit": cli_search.emit,
    "extract": _extract,
    "evaluate": _evaluate,
    "check": _check,
    "export": _export,
    "compare": _compare,
    "report": _report,
    "data": _data,
    "spaces": _spaces,
    "tune": _tune,
    "warmup": _warmup,
    "doctor": _doctor,
    "demo": _demo,
}
