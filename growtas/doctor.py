"""Report the installation, the backends that run here, and how to get the others: ``growtas doctor``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growtas import threads
from growtas.bounds import bounded
from growtas.errors import command, nearest
from growtas.version import __version__

PACKAGES = ("torch", "torchvision", "triton", "timm", "numpy", "scikit-learn", "tyro", "safetensors")
BACKENDS = ("torch", "cpu", "cublas", "triton", "cuda")
ROOT = Path(__file__).resolve().parent.parent


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(built_from: str | None) -> str | None:
    """The commit of the checkout growtas runs from, or the one its binaries were built from."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return built_from
        if done.returncode == 0:
            return done.stdout.strip()
    return built_from


def sources_digest(root: Path) -> str | None:
    """The digest of the native sources of a checkout, as setup.py writes it into the build metadata.

    Args:
        root: the checkout.

    Returns:
        Sixteen hexadecimal digits, or None where there are no sources (a wheel).
    """
    files = sorted(p for p in root.glob("csrc/**/*") if p.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16] if files else None


def _shares_torch_threads(module: Any) -> bool:
    """Return whether torch.set_num_threads reaches the C++ kernels."""
    import torch

    before = torch.get_num_threads()
    try:
        other = 2 if before == 1 else 1
        torch.set_num_threads(other)
        return module.threads() == other
    finally:
        torch.set_num_threads(before)


def _cpu() -> dict[str, Any]:
    """The processor, its vector level and threads, and how the C++ module was built."""
    import torch

    from growtas import native

    built = native.metadata("cpu")
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if native.status("cpu").ok:
        module = native.load("cpu")
        facts |= {
            "vector_level": module.vector_level(),
            "clones": built.get("target_clones", []),
            "openmp": built.get("openmp"),
            "shares_torch_threads": _shares_torch_threads(module),
            "compiler": built.get("compiler"),
        }
    return facts


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        gib = round(seen.total_memory / 2**30, 1)
        gpus.append({"name": seen.name, "capability": f"{seen.major}.{seen.minor}", "memory_gib": gib})
    return gpus


def _tuning() -> list[dict[str, Any]]:
    """Per device: the tuning record in force, and what it says."""
    import torch

    from growtas.ops import dispatch, records
    from growtas.tuning.report import summaries

    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    told = []
    for device in devices:
        found = dispatch.record(device)
        one: dict[str, Any] = {"device": str(device), "name": records.key(device)["device"], "source": None}
        if found is not None:
            record = found.record
            one |= {"source": found.source, "path": str(found.path), "date": record.get("date")}
            one |= {"about": record.get("about"), "choices": summaries(record)}
        told.append(one)
    return told


def _latency() -> list[dict[str, Any]]:
    """The tables of ``growtas latency`` in the cache, by file name."""
    from growtas.ops import records

    told = []
    for path in sorted((records.cache_folder() / "latency").glob("*.json")):
        one: dict[str, Any] = {"path": str(path)}
        try:
            found = json.loads(path.read_text())
            one |= {name: found["key"][name] for name in ("device", "on", "batch", "threads")}
            one |= {"space": found["space"], "validation": found.get("validation")}
        except (OSError, ValueError, KeyError, TypeError):
            one["damaged"] = True  # or of an older version
        told.append(one)
    return told


def _ptxas(gpus: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The assembler that Triton calls for the first GPU, or for a Hopper one where there is none."""
    from growtas.tuning import ptxas

    capabilities = [gpu["capability"] for gpu in gpus]
    found = ptxas.version(*capabilities[:1])
    if found is None:
        return None
    path, numbers = found
    return {"path": path, "version": ".".join(map(str, numbers)), "notice": ptxas.notice(capabilities)}


def _backend(name: str) -> dict[str, Any]:
    from growtas import native
    from growtas.ops import dispatch

    try:
        state = dispatch.available(name)
    except Exception as error:  # the doctor has to report what is broken, whatever way it broke
        return {"ok": False, "reason": f"asking for it failed ({error!r})", "remedy": native.REBUILD}
    found: dict[str, Any] = {"ok": state.ok, "reason": state.reason, "remedy": state.remedy}
    if name in native.KINDS and native.status(name).ok:
        built = native.metadata(name)
        found["build"] = {
            k: built[k] for k in ("commit", "compiler", "nvcc", "toolkit", "archs") if built.get(k)
        }
        now = sources_digest(ROOT)
        if now and built.get("sources") != now:
            found["warning"] = f"growtas._{name} was built from older sources. {native.REBUILD}"
    return found


def collect() -> dict[str, Any]:
    """Everything ``growtas doctor`` tells.

    Returns:
        ``versions``, ``commit``, ``python``, ``platform``, ``cpu``, ``gpus``, ``backends`` (per backend
        ``ok``, ``reason``, ``remedy``), ``tuning`` (per device the record in force), ``latency`` (the tables
        in the cache), ``ptxas``, ``environment`` (the variables set that growtas or its threads follow); all
        of it JSON.
    """
    from growtas import native

    gpus, told = _gpus(), (*threads.VARIABLES, *threads.WAITING, "CUDA_VISIBLE_DEVICES")
    return {
        "versions": {"growtas": __version__} | {p: _version(p) for p in PACKAGES},
        "commit": _commit(native.metadata("cpu").get("commit")),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpus": gpus,
        "backends": {name: _backend(name) for name in BACKENDS},
        "tuning": _tuning(),
        "latency": _latency(),
        "ptxas": _ptxas(gpus),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("GROWTAS_") or k in told},
    }


def complaints(facts: dict[str, Any], require: Sequence[str] = ()) -> list[str]:
    """List requests that cannot be met.

    Args:
        facts: of :func:`collect`.
        require: backends that must run here, beside those GROWTAS_BACKEND and GROWTAS_BUILD ask for.

    Returns:
        One sentence each; empty when all is well.
    """
    asked = [("--require", name) for name in require]
    environment = facts["environment"]
    for variable in ("GROWTAS_BACKEND", "GROWTAS_BUILD"):
        value = environment.get(variable, "").strip()
        if value and value != "auto":
            asked.append((variable, value))
    found = []
    for source, name in asked:
        if name not in BACKENDS:
            found.append(f"{source} asks for {name!r}, which is no backend.{nearest(name, BACKENDS)}")
            continue
        state = facts["backends"][name]
        enough = state["ok"] or (source == "GROWTAS_BUILD" and "build" in state)  # built is all that one asks
        if not enough:
            found.append(f"{source} asks for {name}, and {state['reason'].rstrip('.')}. {state['remedy']}")
    if not facts["backends"]["cpu"]["ok"]:  # every install has it, so its absence is a broken install
        state = facts["backends"]["cpu"]
        found.append(f"The C++ module is broken: {state['reason'].rstrip('.')}. {state['remedy']}")
    return list(dict.fromkeys(found))


def report(facts: dict[str, Any], problems: Sequence[str]) -> str:
    """The facts as text for a terminal.

    Args:
        facts: of :func:`collect`.
        problems: of :func:`complaints`.

    Returns:
        Lines without a trailing newline.
    """
    cpu, versions = facts["cpu"], facts["versions"]
    commit = f", commit {facts['commit'][:12]}" if facts["commit"] else ""
    lines = [
        f"growtas {versions['growtas']}{commit}",
        f"python  {facts['python']}",
        "with    " + ", ".join(f"{p} {versions[p] or 'missing'}" for p in PACKAGES),
        f"on      {facts['platform']}",
        "",
        "backends",
    ]
    for name, state in facts["backends"].items():
        built = state.get("build", {})
        with_what = built.get("nvcc") and f"nvcc {built['nvcc']}, sm {', '.join(built['archs'])}"
        detail = with_what or built.get("compiler") or ""
        if state["ok"]:
            lines.append(f"  {name:<7} available{f' ({detail})' if detail else ''}")
        else:
            lines.append(f"  {name:<7} not available: {state['reason']}{f' ({detail})' if detail else ''}")
            lines.append(f"  {'':<7} {state['remedy']}")
        if "warning" in state:
            lines.append(f"  {'':<7} {state['warning']}")
    lines += ["", "processor"]
    lines.append(f"  {cpu['machine']}, {cpu['cores']} cores, torch uses {cpu['threads']} threads")
    if "vector_level" in cpu:
        lines.append(
            f"  vectors {cpu['vector_level']} (built for: {', '.join(cpu['clones']) or 'one level'})"
        )
        shared = "shared with torch" if cpu["shares_torch_threads"] else "NOT shared with torch"
        lines.append(f"  OpenMP  {'thread pool ' + shared if cpu['openmp'] else 'none, one thread'}")
    lines += ["", "GPUs"]
    lines += [f"  {g['name']}, {g['memory_gib']} GiB, sm {g['capability']}" for g in facts["gpus"]] or [
        "  none"
    ]
    if facts["ptxas"]:
        lines.append(f"  Triton's ptxas {facts['ptxas']['version']}: {facts['ptxas']['path']}")
        lines += [f"  {facts['ptxas']['notice']}"] if facts["ptxas"]["notice"] else []
    lines += ["", "what auto takes", *_tuning_lines(facts["tuning"])]
    if facts["latency"]:
        lines += ["", "latency tables", *map(_latency_line, facts["latency"])]
    if facts["environment"]:
        lines += ["", *(f"{k}={v}" for k, v in facts["environment"].items())]
    lines += (
        ["", *(f"Problem: {p}" for p in problems)] if problems else ["", "All that was asked for is there."]
    )
    return "\n".join(lines)


def _tuning_lines(told: Sequence[dict[str, Any]]) -> list[str]:
    """The tuning records as text."""
    from growtas.tuning.report import table

    lines = []
    for one in told:
        head = f"  {one['name']} ({one['device']}): "
        measure = command("tune", "--device", one["device"])
        if one["source"] is None:
            lines.append(f"{head}no record, so torch everywhere. Measure it: {measure}")
            continue
        whose = "your record" if one["source"] == "user" else "a record that comes with growtas"
        lines.append(f"{head}{whose}, {(one['date'] or 'without a date')[:10]}, {one['path']}")
        if one["source"] == "shipped":
            lines.append(f"    {one['about']} Measure your own: {measure}")
        lines += [f"    {line}" for line in table(one["choices"]).splitlines()]
    return lines


def _latency_line(one: dict[str, Any]) -> str:
    if "damaged" in one:
        return f"  {one['path']}: damaged, or of an older version; remove it"
    count = f"{one['threads']} thread{'s' * (one['threads'] > 1)}"
    measured, found = f"  {one['space']} on {one['device']}, ", one["validation"]
    measured += f"{one['on']}, batch {one['batch']}, {count}: "
    if found is None:
        return f"{measured}predictions not validated"
    return (
        f"{measured}predictions with rank correlation {found['rank_correlation']:.3f} and median error "
        f"{100 * found['error']:.1f} % on {found['subnets']} subnets"
    )


@bounded()
def main(require: Sequence[str] | None = None, as_json: bool = False) -> int:
    """Print the report.

    Args:
        require: backends that must run here.
        as_json: print the facts as JSON instead of text.

    Returns:
        The exit status: 0, or 1 when something that was asked for is broken.
    """
    try:
        importlib.import_module("torch")
    except ImportError as error:
        print(f"growtas {__version__}, python {platform.python_version()}\n")
        print(
            f"Problem: torch does not import ({error}). Install it: https://pytorch.org/get-started/locally/"
        )
        return 1
    facts = collect()
    problems = complaints(facts, require or ())
    print(json.dumps(facts | {"problems": problems}, indent=1) if as_json else report(facts, problems))
    return 1 if problems else 0
