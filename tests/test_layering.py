"""The house holds: imports go one way, and importing growtas is light."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import growtas

ROOT = Path(__file__).parents[1]

# Lower layers first; a module may import from its own layer's package and from the layers before it.
LAYERS = [
    {"errors", "version", "progress"},
    {"bounds", "plain_yaml"},
    {"atomic", "chain", "files"},
    {"locks"},
    {"plotting", "table"},
    {"spaces"},
    {"subnet"},
    {"space"},
    {"cost"},
    {"threads"},
    {"shadow"},
    {"kernels", "native"},
    {"ops"},
    {"nn"},
    {"architectures"},
    {"supernet"},
    {"methods"},
    {"tuning"},
    {"training"},
    {"searching"},
    {"export"},
    {"timing"},
    {"doctor", "warmup", "listing"},
    {"jobs"},
    {"demo", "comparing", "cli_options"},
    {"analysis", "data_commands", "cli_search"},
    {"checking"},
    {"cli"},
    {"__main__"},
]
#: Within kernels likewise: operations that are made of others come after them.
KERNEL_LAYERS = [
    {"common"},
    {"layer_norm", "tokens"},
    {"linear", "qkv", "relative_attention"},
    {"norm_qkv", "mlp", "pooled_norm"},
]
#: Modules that are run and that nothing imports -> the layer that they belong to.
COMMANDS = {"kernels.compile_ahead": "warmup"}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
SPACES = sorted(f"spaces/{path.stem}" for path in (ROOT / "growtas" / "spaces").glob("*.py"))
TORCH_FREE = (
    "errors",
    "version",
    "bounds",
    "plain_yaml",
    "atomic",
    "chain",
    "files",
    "subnet",
    "space",
    "cost",
    "listing",
    *SPACES,
)


@functools.cache
def modules() -> dict[str, Path]:
    """Every module, by its dotted name without ``growtas.``."""
    found = {}
    for path in (ROOT / "growtas").rglob("*.py"):
        found[".".join(path.relative_to(ROOT / "growtas").with_suffix("").parts)] = path
    for path in (ROOT / "kernels").rglob("*.py"):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    found.pop("__init__")  # the public names, loaded on use
    return found


def imported(path: Path, depth: int = 1) -> set[str]:
    """The growtas packages and modules that a file imports anywhere, also inside functions.

    Args:
        path: of the file.
        depth: 1 for packages of growtas, 2 for packages of these.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "growtas":
                names |= {f"growtas.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return {
        name.split(".")[depth] for name in names if name.startswith("growtas.") and name.count(".") >= depth
    }


@pytest.mark.parametrize("name", sorted(modules()))
def test_arrows_go_one_way(name):
    own = COMMANDS.get(name, name.split(".")[0])
    assert own in RANK, f"growtas.{own} has no layer: add it to the map in this test and in docs"
    public = {
        "Supernet": "supernet",
        "load_space": "space",
        "train": "training",
        "search": "searching",
        "compare": "comparing",
        "tune": "tuning",
        "latency": "timing",
    }
    for other in imported(modules()[name]):
        other = public.get(other, other)
        if other == own or other not in RANK:
            continue
        assert RANK[other] < RANK[own], f"growtas.{name} imports growtas.{other}, which lies above it"


def test_kernels_are_made_of_kernels_below():
    rank = {name: rank for rank, layer in enumerate(KERNEL_LAYERS) for name in layer}
    seen = set()
    for own, path in ((name.split(".")[1], path) for name, path in modules().items() if name.count(".") == 2):
        if path.is_relative_to(ROOT / "kernels"):
            seen.add(own)
            others = (imported(path, 2) & rank.keys()) - {own}
            assert all(rank[other] < rank[own] for other in others), f"{path} imports {others}"
    assert seen == rank.keys()


@pytest.mark.parametrize("name", TORCH_FREE)
def test_spaces_and_costs_need_no_torch(name):
    roots = {
        (node.names[0].name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.walk(ast.parse((ROOT / "growtas" / f"{name}.py").read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not roots & {"torch", "timm", "triton", "numpy"}


def test_importing_is_light(run_script):
    """No GPU, plotting, command line or kernel code; spaces and costs do not even load torch.

    torch and timm import the triton package themselves; what must not load is our kernels.
    """
    code = (
        "import sys, growtas\n"
        "growtas.cost.parameters(growtas.load_space('digits').smallest(), growtas.load_space('digits'))\n"
        "print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
    code = (
        "import sys, torch, growtas\n"
        "net = growtas.Supernet('digits', num_classes=10)\n"
        "heavy = {'growtas.kernels', 'matplotlib', 'tyro', 'sklearn', 'tensorboard'} & set(sys.modules)\n"
        "print(sorted(heavy), torch.cuda.is_initialized())\n"
    )
    result = run_script(code)
    assert result.stdout == "[] False\n", result.stderr


def test_public_names_are_the_functions():
    """``growtas.search`` and the others stay what they are, whichever modules were imported before."""
    for name in modules():
        if not name.endswith("__") and "demo" not in name:
            importlib.import_module(f"growtas.{name}")
    assert all(
        callable(getattr(growtas, name)) for name in ("search", "train", "extract", "evaluate", "tune")
    )


def test_contributing_lists_the_layers():
    (block,) = re.findall(r"^```text\n(errors.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    assert [set(line.split(", ")) for line in block.splitlines()] == LAYERS
