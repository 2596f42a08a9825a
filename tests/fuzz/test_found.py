"""Inputs that once ended in a traceback, a hang, a huge message or a wrong number; each has its name."""

from __future__ import annotations

import ast
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import yaml_targets
from harness import Refused, call, judge
from targets import TARGETS

import growtas
from growtas import GrowtasError, Subnet, UsageError, cli
from growtas.errors import command
from growtas.space import PRESET_FOLDER, load_space
from growtas.training import checkpoint
from growtas.training.config import TrainConfig

SPACE = (PRESET_FOLDER / "digits.yaml").read_text()
CONVOLUTIONS = (PRESET_FOLDER / "ofa-mobilenetv3.yaml").read_text()
LONG = "1" * 5000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefgh")
)


def changed(text: str, name: str, value: str) -> str:
    """A YAML text in which one field has another value."""
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")), len(lines))
    indent = lines[at].partition(name)[0] if lines[at:] else ""
    lines[at : at + 1] = [f"{indent}{name}: {value}"]
    return "\n".join(lines) + "\n"


def said(target: str, text: str | bytes, folder: Path) -> str:
    """The sentence that an input ends in."""
    data = text if isinstance(text, bytes) else text.encode()
    verdict, sentence = judge(TARGETS[target], data, folder)
    assert verdict == "sentence", (verdict, sentence)
    return sentence


FILES = {
    "anchor bomb": (BOMB + SPACE, "an alias such as *name is not read"),
    "anchor bomb as the family": (f"{BOMB}family: *h\n{SPACE}", "an alias"),
    "value within itself": ("a: &a [*a]\n" + SPACE, "an alias"),
    "list as a key": ("? [a, b]\n: 1\n", "is no word"),
    "number as a key": ("1: 2\n", "is no word"),
    "key twice": (SPACE + "head_dim: 8\nhead_dim: 9\n", "the key 'head_dim' stands there twice"),
    "brackets": ("[" * 100_000, "is not YAML of plain values"),
    "nested lists": ("a: " + "[" * 40 + "]" * 40, "more than 32 deep"),
    "large file": ("x" * (5 << 20), "is larger than 4 MiB"),
    "UTF-16": (b"\xff\xfea\0", "can't decode byte 0xff"),
    "bytes that are no text": (b"name: \xc3\x28\n", "can't decode byte 0xc3"),
    "null byte": ("name: a\0b\n", "is not YAML of plain values"),
    "empty": ("", "must hold the fields of a space"),
    "activation of a list": (changed(CONVOLUTIONS, "activations", "[[1], a, a, a, a]"), "cannot hold [1]"),
    "no channel": (changed(SPACE, "mlp_ratio", "[0.001]"), "are 0 to 0 channels wide"),
    "wide MLP": (
        changed(changed(SPACE, "embed_dim", "[65536]"), "mlp_ratio", "[2]"),
        "131,072 channels wide",
    ),
    "256 blocks": (changed(CONVOLUTIONS, "depth", "[52]"), "256 is the most that is possible"),
}
FIELDS = {
    "float abc": ("head_dim", "!!float 'abc'", "'abc' is no float"),
    "int x": ("head_dim", "!!int 'x'", "'x' is no int"),
    "bool x": ("head_dim", "!!bool 'x'", "'x' is no bool"),
    "minutes": ("head_dim", "1:30", "'1:30' is no int"),
    "timestamp": ("head_dim", "!!timestamp 'x'", "is not read"),
    "object": ("head_dim", "!!python/name:os.system", "is not read"),
    "list as a mapping": ("head_dim", "!!map [1]", "this is no mapping"),
    "month 13": ("head_dim", "2024-13-45", "not '2024-13-45'"),
    "long number": ("head_dim", LONG, "a number of 5,000 characters"),
    "infinity": ("head_dim", ".inf", ".inf is not a finite number"),
    "float too large": ("head_dim", "1.0e+400", "is not a finite number"),
    "36.0": ("head_dim", "36.0", "must be a positive whole number, not 36.0"),
    "23 digits": ("head_dim", "9" * 23, "is over 1,024"),
    "no list": ("embed_dim", "36.0", "must be a list of choices, not 36.0"),
    "word among numbers": ("embed_dim", "[1, a]", "must hold positive numbers"),
    "choice nan": ("embed_dim", "[24, .nan]", "is not a finite number"),
    "heads 2.9": ("num_heads", "[2.9]", "must hold whole numbers, not [2.9]"),
    "deep network": ("depth", "[100000]", "must hold numbers up to 256"),
    "choices": ("mlp_ratio", str(list(range(1, 99))), "offers 98 choices; give at most 64"),
    "supernet's 48.0": ("super_embed_dim", "48.0", "positive whole number"),
    "supernet's list": ("super_depth", "[4]", "positive whole number"),
    "family of lists": ("family", "[[1]]", "There is no family [[1]]"),
    "family of a mapping": ("family", "{a: 1}", "There is no family {'a': 1}"),
    "name of a list": ("name", "[1]", "must be text of 1 to 200"),
    "name of 5,000 letters": ("name", "a" * 5000, "must be text of 1 to 200"),
    "parameters of a word": ("schedule_params", "many", "must be a positive number or null"),
}


@pytest.mark.parametrize("case", [*FILES, *FIELDS])
def test_a_space(case, tmp_path):
    text, expected = FILES.get(case) or (changed(SPACE, *FIELDS[case][:2]), FIELDS[case][2])
    sentence = said("space", text, tmp_path / "case")
    assert expected in sentence and len(sentence) < 700


@pytest.fixture(scope="module")
def config() -> str:
    """The config.yaml of a run."""
    return yaml_targets._configs()[0].decode()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps_per_epoch", "10", "steps_per_epoch=10, but 1,151 images in batches of 32 make 35"),
        ("steps_per_epoch", "35.5", "steps_per_epoch=35.5, but"),
        ("steps_per_epoch", "9" * 23, "but 1,151 images"),
        ("num_classes", "-1", "num_classes=-1 is not possible; it must be 1 or more"),
        ("num_classes", "7", "it has 10 classes, but num_classes=7"),
        ("num_classes", "10.0", "num_classes=10.0 is not possible; it must be a whole number"),
        ("classes", "['0', 1, '2', '3', '4', '5', '6', '7', '8', '9']", "classes must be names"),
        ("classes", "7", "is damaged or not the configuration of a run"),
        ("digest", "[1]", "images must be names and values, not {"),
        ("torch", "[2]", "versions must be names and values, not {"),
        ("epochs", "9" * 23, "epochs=99999999999999999999999 is not possible"),
        ("batch_size", "-1", "batch_size=-1 is not possible"),
        ("subnets_per_step", "2.9", "subnets_per_step=2.9 is not possible; it must be a whole number"),
        ("lr", ".inf", ".inf is not a finite number"),
        ("resolutions", "1-" + "9" * 23, "write sizes of 1 to 16,384 pixels"),
        ("out", '"a\\0b"', "holds a null byte"),
        ("seed", "[&a 1, *a]", "an alias"),
        ("format", "[1]", "has format [1], but"),
    ],
)
def test_a_configuration(name, value, expected, config, tmp_path):
    sentence = said("run-config", changed(config, name, value), tmp_path / "case")
    assert expected in sentence and len(sentence) < 900


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_heads": [2.9]}, "num_heads=2.9 of a subnet is no whole number"),
        ({"num_heads": ["2"]}, "num_heads='2' of a subnet is no whole number"),
        ({"num_heads": [True]}, "num_heads=True of a subnet is no whole number"),
        ({"embed_dim": 24.5}, "embed_dim=24.5 of a subnet is no whole number"),
        ({"embed_dim": float("nan")}, "embed_dim=nan of a subnet is no whole number"),
        ({"depth": float("inf")}, "depth=inf of a subnet is no whole number"),
        ({"mlp_ratio": [float("nan")]}, "are lists of numbers"),
        ({"mlp_ratio": ["3"]}, "are lists of numbers"),
        ({"depth": 10**400}, "a number of about 400 digits"),
    ],
)
def test_a_subnet_of_json(values, expected):
    fields = {"embed_dim": 24, "depth": 1, "num_heads": [2], "mlp_ratio": [2], **values}
    with pytest.raises(UsageError, match=expected):
        Subnet.from_json(fields)
    with pytest.raises(UsageError):
        Subnet.from_json(json.dumps(fields)[:-1])


def test_whole_sizes_that_are_written_as_fractions_are_kept():
    subnet = Subnet.from_json({"embed_dim": 36.0, "depth": 1, "num_heads": [2.0], "mlp_ratio": [2.0]})
    assert subnet == Subnet(36, 1, (2,), (2,)) and type(subnet.embed_dim) is int


@pytest.mark.parametrize(
    "text", ["d1e400-h1-r1", "d" + "9" * 5000 + "-h1-r1", "d24-h2-r1e400", "d24-h2-rnan", "-"]
)
@pytest.mark.parametrize("name", ["digits", "digits-mobilenet"])
def test_a_subnet_of_text(text, name):
    with pytest.raises(UsageError) as refused:
        load_space(name).parse(text)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"device": "meta"}, "device='meta' cannot be used here"),
        ({"device": "cuda:²"}, "cannot be used here"),
        ({"data": "glyphs:" + "9" * 23}, "names no number of training images from 1 to 999,999"),
        ({"stages": "²"}, "is neither a number nor groups per stage"),
        ({"stages": "1" * 4000}, "stages="),
        ({"transition": "1" * 4000}, "do not satisfy"),
        ({"resolutions": "1-" + "9" * 23}, "write sizes of 1 to 16,384 pixels"),
        ({"method_options": "window=1e400"}, "window='1e400' of method 'growtas' is not possible"),
        ({"method": "focusformer", "method_options": "budgets=2147483648"}, "at most 4,096"),
        ({"method": "focusformer", "method_options": "hidden=2147483648"}, "at most 4,096"),
        (
            {"method": "prenas", "method_options": "images=" + "9" * 23},
            "images=9.* of prenas is not possible",
        ),
        ({"initial": LONG}, "has 5,000 characters; 4,096 is the most"),
    ],
)
def test_a_setting_of_training(given, expected):
    with pytest.raises(UsageError, match=expected) as refused:
        growtas.train("digits", dry_run=True, epochs=4, **given)
    assert len(str(refused.value)) < 2000


def test_a_dry_run_with_the_most_epochs_answers(capsys):
    most = TrainConfig.__dataclass_fields__["epochs"].metadata["check"].most
    assert growtas.train("digits", dry_run=True, epochs=most).epochs == most


@contextmanager
def unreadable(content: bytes) -> Iterator[Path]:
    """A file that this process may not read; where it is root's, it becomes nobody's meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.yaml")
        path.write_bytes(content)
        path.chmod(0)
        Path(folder).chmod(0o755)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            yield path
        finally:
            os.seteuid(user)


def test_a_checkpoint_without_permission_is_not_called_damaged():
    with unreadable(b"weights") as path, pytest.raises(GrowtasError, match="permission denied") as refused:
        checkpoint.load(path)
    assert "move it away" not in str(refused.value) and "truncated" not in str(refused.value)


def test_a_space_without_permission():
    with unreadable(SPACE.encode()) as path, pytest.raises(UsageError, match="Permission denied"):
        load_space(path)


def test_memory_that_does_not_suffice(monkeypatch):
    def allocate(args: list[str]) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nMore."
        )

    monkeypatch.setitem(cli.VERBS, "spaces", allocate)
    with pytest.raises(Refused, match="^growtas: The memory does not suffice: .* More.$") as refused:
        call("spaces")
    assert refused.value.status == 1


def test_a_line_break_in_a_name_stays_in_one_sentence():
    with pytest.raises(Refused, match="^growtas: The space file a b.yaml does not exist.*\n$"):
        call("spaces", "a\nb.yaml")


def test_a_compiler_that_dies(monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    from growtas import warmup

    class Pool:
        def __init__(self, *args: object, **values: object) -> None: ...

        def map(self, *args: object) -> None:
            raise BrokenProcessPool("A process in the process pool was terminated abruptly")

        def shutdown(self, **values: object) -> None: ...

    monkeypatch.setattr(warmup, "ProcessPoolExecutor", Pool)
    with pytest.raises(GrowtasError, match="ended without an answer. Give --arch as Triton knows it"):
        warmup._compile_all([((90, None, None), "a")] * 2, (load_space("digits"), (1,), (), 10, ()), 2)


def test_a_name_longer_than_the_system_takes():
    for verb in ("evaluate", "search", "spaces"):
        with pytest.raises(Refused) as refused:
            call(verb, "a" * 3000)
        assert len(str(refused.value)) <= 2000


def test_commands_quote_their_paths():
    assert command("train", "--resume", Path("my run/it's")) == """growtas train --resume 'my run/it'"'"'s'"""
    with pytest.raises(UsageError, match="growtas train --out 'my runs/one'$"):
        growtas.training.Run.open("my runs/one")


def test_every_command_in_a_message_is_quoted():
    """A path in a command such as ``growtas train --resume PATH`` goes through growtas.errors.command."""
    from growtas.cli import VERBS

    found = []
    for file in Path(growtas.__file__).parent.rglob("*.py"):
        source = file.read_text()
        if not re.search(rf'f".*growtas ({"|".join(VERBS)})\b', source):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                if re.search(rf"growtas ({'|'.join(VERBS)})( check| pack)?( --[a-z-]+)* \0", text):
                    found.append(f"{file}:{node.lineno}: {text}")
    assert not found
