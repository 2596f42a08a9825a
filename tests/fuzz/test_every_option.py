"""Every option of every verb with bad values: read off the parser, so that a new one cannot be forgotten."""

from __future__ import annotations

import inspect
import math
import typing
from types import UnionType

import pytest
from cli_targets import MISSING, option, parameters, verbs
from harness import Refused, call

import growtas
from growtas import UsageError, cli, data_commands, demo, doctor, listing, warmup
from growtas.bounds import Bound
from growtas.training.config import BOUNDS, TrainConfig

FUNCTIONS = {
    "train": growtas.train,
    "finetune": growtas.finetune,
    "transfer": growtas.transfer,
    "search": growtas.search,
    "latency": growtas.latency,
    "emit": growtas.emit,
    "extract": cli.extract,
    "evaluate": growtas.evaluate,
    "check": growtas.check,
    "export": growtas.export.convert,
    "compare": growtas.compare,
    "report": growtas.report,
    "spaces": listing.spaces,
    "tune": growtas.tune,
    "warmup": warmup.warmup,
    "doctor": doctor.main,
    "demo": demo.demo,
    "data check": data_commands.check,
    "data pack": growtas.data_pack,
}
OF_THE_COMMAND_LINE = {
    "latency_batch": "batch",
    "latency_threads": "threads",
}  # of search, for growtas.latency
WITHIN = ("lr",)  # of compare: a number, or a word


def kinds(annotation: object) -> set[type]:
    """The plain types within an annotation."""
    inner = [each for each in typing.get_args(annotation) if each is not Ellipsis]
    if isinstance(annotation, UnionType) or inner:
        return set().union(*(kinds(each) for each in inner)) if inner else set()
    return {annotation} if isinstance(annotation, type) else set()


def numbers(verb: str) -> dict[str, inspect.Parameter]:
    """The options of a verb that take a number."""
    return {p.name: p for p in parameters(verb) if kinds(p.annotation) & {int, float}}


def bound_of(verb: str, name: str) -> Bound:
    if name in OF_THE_COMMAND_LINE:
        return growtas.latency.bounds[OF_THE_COMMAND_LINE[name]]
    return FUNCTIONS[verb].bounds.get(name) or BOUNDS[name]


def test_every_verb_is_known():
    assert set(FUNCTIONS) == set(verbs()) == {*MISSING, "train", "doctor", "demo"}
    assert sum(len(numbers(verb)) for verb in verbs()) > 150


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_every_number_has_two_ends(verb):
    for name in numbers(verb):
        bound = bound_of(verb, name)
        assert math.isfinite(bound.least) and bound.most <= 1e30
        step = 1 if bound.whole else 1e-3 * bound.most
        low = bound.least + (step if bound.above else 0)
        high = bound.most - (step if bound.below else 0)
        bound(name, low), bound(name, high)
        worse = (
            bound.most * 2 + 1,
            10**400,
            -(10**400),
            bound.least - 1,
            math.nan,
            math.inf,
            True,
            [[1j]],
        )
        for value in worse:
            with pytest.raises(UsageError, match=f"^{name}=") as refused:
                bound(name, value)
            assert len(str(refused.value)) < 300
        assert not bound.whole or pytest.raises(UsageError, bound, name, 2.9)


OTHER_RUNS = ("finetune", "transfer")
"""Verbs that have most settings of training, with its bounds."""


@pytest.mark.parametrize(
    ("verb", "every"),
    [(verb, 4 if verb in OTHER_RUNS else 1) for verb in FUNCTIONS]
    + [pytest.param(verb, 1, marks=pytest.mark.slow) for verb in OTHER_RUNS],
)
def test_a_number_of_23_digits_is_refused_by_name(verb, every, tmp_path, monkeypatch):
    """Before a run, a space or data is looked for: what each verb works on is not there.

    Of the settings of training, ``train`` has all tried, and the other two every fourth.
    """
    monkeypatch.chdir(tmp_path)
    own = [
        *verb.split(),
        *MISSING.get(verb, ["--space", "digits", "--out", "new"] if verb == "train" else []),
    ]
    settings = list(numbers("train")) if every > 1 else []
    for name in numbers(verb):
        if name in WITHIN or (name in settings and settings.index(name) % every):
            continue
        with pytest.raises(Refused) as refused:
            call(*own, option(name), "9" * 31 if name == "lr" else "9" * 23)
        assert refused.value.status == 2 and f"{name}=" in str(refused.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_a_number_that_is_none_is_refused(verb):
    """One option of each type stands for the others: tyro reads them all alike."""
    own = [*verb.split(), *MISSING.get(verb, ["--space", "digits"] if verb == "train" else [])]
    read = {frozenset(kinds(p.annotation)): name for name, p in numbers(verb).items()}
    for types, name in read.items():
        for value in ("many", "1e", "0x1", "²", "", "1" * 5000, *([] if float in types else ["2.9", "nan"])):
            with pytest.raises(Refused) as refused:
                call(*own, option(name), value)
            said = str(refused.value)
            assert refused.value.status == 2 and said.startswith("growtas: ") and said.count("\n") == 1
            assert len(said) < 1000


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_text_and_paths_refuse_a_null_byte_and_bytes_that_are_no_text(verb):
    texts = [p.name for p in parameters(verb) if str in kinds(p.annotation)]
    function = FUNCTIONS[verb]
    names = {p.name: p.kind for p in inspect.signature(function).parameters.values()}
    for name in texts:
        known = name in names or any(kind is inspect.Parameter.VAR_KEYWORD for kind in names.values())
        must = ("run", "out", "data", "space", "source", "to", "folder")
        needed = {each: "x" for each in must if each in names}
        for value in ("a\0b", "\udcff"):
            for arguments in ([option(name), value], [f"{option(name)}={value}"]):
                with pytest.raises(Refused, match="^growtas: argument .* (null byte|UTF-8)"):
                    call(*verb.split(), *arguments)
            if known and name != "resume":
                with pytest.raises(UsageError, match=f"^{name}=.*(null byte|UTF-8)"):
                    function(**{**needed, name: value})


def test_every_setting_of_training_that_is_a_number_is_bounded():
    assert set(numbers("train")) - set(BOUNDS) == set()
    assert all(
        f.name in BOUNDS for f in TrainConfig.__dataclass_fields__.values() if f.name in numbers("train")
    )


def test_a_removed_working_directory(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for verb in verbs():
        with pytest.raises(Refused, match="The working directory was removed") as refused:
            call(*verb.split())
        assert refused.value.status == 2
    monkeypatch.chdir(tmp_path)


def test_an_argument_of_any_length():
    with pytest.raises(Refused, match="argument 3=.* has 100,000 characters") as refused:
        call("train", "--space", "x" * 100_000)
    assert len(str(refused.value)) < 300
