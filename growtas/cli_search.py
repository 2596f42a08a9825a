"""The verbs of the command line that find subnets: search, latency, emit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from growtas import bounds
from growtas.cli_options import Interrupted, help_text_of, options, parameters_of, parse, positional
from growtas.errors import command
from growtas.progress import silent

if TYPE_CHECKING:
    from growtas.searching.result import SearchResult


def search(args: list[str]) -> int:
    """find the best subnet of a trained supernet under limits"""
    import growtas
    from growtas.searching.named import reference_to
    from growtas.training.run import Run

    limits = tuple[float, ...] | None
    several = ("max_params", "max_macs", "max_latency_ms")
    types = {"run": positional(str), **dict.fromkeys(several, limits), "pareto": str | None}
    *parameters, _ = parameters_of(growtas.search, types | {"out": str | None, "latency": str})
    own = {"latency_on": "cpu", "latency_batch": 1, "latency_threads": None}
    kinds = {"latency_threads": int | None}
    for name, default in own.items():
        kind = kinds.get(name, type(default))
        parameters.append(parameters[-1].replace(name=name, default=default, annotation=kind))
    help_text = help_text_of(growtas.search).partition("\n    latency:")[0]
    help_text += (
        "\n    latency_on: cpu, cuda, cpu-compiled, cuda-compiled or onnxruntime of this machine, on which "
        "latencies are measured."
    )
    help_text += "\n    latency_batch: images of one call."
    help_text += "\n    latency_threads: of the processor; as many as torch takes where None."
    values = parse(parameters, help_text, args, "search")
    of_latency = {f"latency_{name}": bound for name, bound in growtas.latency.bounds.items()}
    bounds.check({**of_latency, **growtas.search.bounds}, values)
    measured = {name: values.pop(f"latency_{name}") for name in ("on", "batch", "threads")}
    values["latency"] = None
    for name in several:
        if values[name] is not None and len(values[name]) == 1:
            (values[name],) = values[name]
    try:
        if values["max_latency_ms"] is not None or values["pareto"] == "latency":
            values["latency"] = growtas.latency(Run.open(values["run"]), **measured)
        found = growtas.search(**values)
    except KeyboardInterrupt as stop:
        raise Interrupted("Every evaluation up to here is kept: repeat the command to continue.") from stop
    if silent():
        return 0  # one of several ranks tells it
    for each in found if isinstance(found, list) else (found,):
        if each.ranking is not None:
            print(f"predictor: {each.ranking}")
    if values["pareto"] is None:
        for each in found if isinstance(found, list) else (found,):
            _report_search(values["run"], each)
    else:
        print(found)
        for file in (found.path, *found.files):
            print(f"wrote {file}")
        _report_next(values["run"], f"{reference_to(found)}:1")
    return 0


def _report_search(run: str, found: SearchResult) -> None:
    from growtas.searching.named import reference_to

    print(found)
    if found.certainty:
        print(found.certainty)
    print(f"log: {found.path}")
    _report_next(run, reference_to(found))


def _report_next(run: str, subnet: str) -> None:
    print(f"next: {command('extract', run, '--subnet', subnet, '--out', 'FOLDER')}")


def latency(args: list[str]) -> int:
    """measure the latency of a space's subnets on this machine"""
    import growtas

    try:
        table = growtas.latency(**options(growtas.latency, args, "latency", {"space": positional(str)}))
    except KeyboardInterrupt as stop:
        raise Interrupted("Finished rounds are kept: repeat the command to continue.") from stop
    print(table)
    return 0


def emit(args: list[str]) -> int:
    """the subnet that a trained sampler (focusformer) names for a budget"""
    import growtas
    from growtas import cost
    from growtas.training.run import Run

    values = options(growtas.emit, args, "emit", {"run": positional(str)})
    subnet, run = growtas.emit(**values), Run.open(values["run"])
    parameters, macs = (count(subnet, run.space, run.num_classes) for count in (cost.parameters, cost.macs))
    print(f"{subnet}: {parameters:,} parameters, {macs:,} MACs")
    print(f"next: {command('evaluate', run.path, '--subnet', subnet)}")
    return 0
