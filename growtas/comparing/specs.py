"""Methods with settings of their own: ``NAME`` or ``NAME:key=value,key=value``. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growtas.errors import UsageError, nearest
from growtas.methods.options import split_pairs
from growtas.training.config import RUNTIME, TrainConfig
from growtas.training.settings_checks import KINDS

SECOND_PHASES = {"growtas+": "growtas"}
"""Methods that go on from a finished run of another one with :func:`growtas.finetune`, and that other."""

FIRST_PHASE_SETTINGS = (
    "stages",
    "transition",
    "transition_params",
    "transition_max_params",
    "transition_beta",
    "new_region",
    "new_region_moments",
)
"""Settings of a second-phase method that describe the run it goes on from, not the second phase."""

# What all methods share for the comparison to be fair, or what compare itself decides.
SHARED = ("space", "data", "method", "out", "seed", "split_seed", "initial", "data_folder", "download")
DECIDED = (*SHARED, *RUNTIME, "eval_every", "eval_subnets", "log_every")
_WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None}


@dataclass(frozen=True)
class MethodSpec:
    """A method and the settings in which it differs from the others.

    Args:
        name: of the method.
        given: keys and values as text, sorted by key.

    Example:
        >>> str(MethodSpec.parse("growtas:transition=30,stages=0,1/0,1,2"))
        'growtas:stages=0,1/0,1,2,transition=30'
    """

    name: str
    given: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> MethodSpec:
        """Read ``growtas:stages=3``; a piece without ``=`` belongs to the value before it.

        Raises:
            UsageError: the text has no such form.
        """
        name, colon, rest = text.strip().partition(":")
        pairs = split_pairs(rest, f"{name!r}") if rest.strip() else {}
        if not name or colon and not pairs:
            raise UsageError(f"{text!r} is no method; write NAME or NAME:key=value,key=value.")
        return cls(name, tuple(sorted(pairs.items())))

    def __str__(self) -> str:
        pairs = ",".join(f"{key}={value}" for key, value in self.given)
        return f"{self.name}:{pairs}" if pairs else self.name

    @property
    def folder(self) -> str:
        """A name for a folder, another one for every spec."""
        plain = re.sub(r"[^A-Za-z0-9.+_-]+", "_", str(self))
        if plain == str(self):
            return plain
        return f"{plain[:60]}-{hashlib.sha256(str(self).encode()).hexdigest()[:6]}"

    @property
    def first(self) -> MethodSpec | None:
        """The method whose finished run this one goes on from; None where it begins anew."""
        if self.name not in SECOND_PHASES:
            return None
        own = tuple(pair for pair in self.given if pair[0] in FIRST_PHASE_SETTINGS)
        return MethodSpec(SECOND_PHASES[self.name], own)

    def settings(self) -> dict[str, Any]:
        """The settings of training that it gives, typed, with the method's own options as ``method_options``.

        Those of a second phase are without the ones of :attr:`first`.

        Raises:
            UsageError: one of them is common to all methods, or its value makes no sense.
        """
        known, own = typing.get_type_hints(TrainConfig), self.option_names()
        values: dict[str, Any] = {}
        options: list[str] = []
        for key, text in self.given:
            if self.first is not None and key in FIRST_PHASE_SETTINGS:
                continue
            if key in own:  # also where training has a setting of that name
                options.append(f"{key}={text}")
                continue
            if key in DECIDED:
                raise UsageError(f"{key} of {str(self)!r} is the same for every method; give it to compare.")
            if key == "lr" and self.first is None:
                raise UsageError(
                    f"lr of {str(self)!r} cannot be given: the learning rate is chosen for the space, never "
                    "per method. Give compare lr=NUMBER."
                )
            if key == "method_options":
                options.append(text)
            elif key in known:
                values[key] = setting_value(key, text, known[key])
            else:
                options.append(f"{key}={text}")
        return {**values, **({"method_options": ",".join(options)} if options else {})}

    def option_names(self) -> set[str]:
        """Of the method's own options; none where the method is unknown."""
        from growtas.methods import method_names
        from growtas.methods.base import registered

        method_names()  # so that every method is registered
        method = registered().get(self.name)
        return {field.name for field in dataclasses.fields(method.Options)} if method else set()


def setting_value(name: str, text: str, hint: Any) -> Any:
    """The value of a setting that was written in a shell. Raises: UsageError: it is none of its type."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    word = text.strip().lower()
    if word in _WORDS and type(_WORDS[word]) in allowed:
        return _WORDS[word]
    for kind in (int, float, str):
        if kind in allowed:
            try:
                return kind(text)
            except ValueError:
                continue
    kinds = " or ".join(KINDS[kind] for kind in allowed)
    raise UsageError(f"{name}={text!r} is not possible; it must be {kinds}.")


def common_settings(given: tuple[str, ...] | Mapping[str, Any]) -> dict[str, Any]:
    """Settings of training that all methods share, of ``key=value`` texts or a mapping.

    Raises:
        UsageError: one is unknown, has an option of its own, or is no ``key=value``.
    """
    known = typing.get_type_hints(TrainConfig)
    if not isinstance(given, Mapping):
        pairs = [text.partition("=") for text in given]
        for text, (_, equals, _) in zip(given, pairs, strict=True):
            if not equals:
                raise UsageError(f"{text!r} is no setting; write key=value, such as batch_size=64.")
        given = {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}
    own = {"space", "data", "method", "out", "seed", "epochs", "lr", "device", "initial"}
    values = {}
    for key, value in given.items():
        if key in own:
            raise UsageError(f"{key} cannot be a common setting: it has an option of its own, or none.")
        if key not in known:
            raise UsageError(f"Training has no setting {key!r}.{nearest(key, known)}")
        values[key] = setting_value(key, value, known[key]) if isinstance(value, str) else value
    return values


def read_methods(methods: typing.Iterable[str]) -> tuple[MethodSpec, ...]:
    """The specs of texts, in order.

    Raises:
        UsageError: none is given, one stands there twice, or one cannot be read.
    """
    if isinstance(methods, str):
        methods = (methods,)
    specs = tuple(MethodSpec.parse(text) for text in methods)
    if not specs:
        raise UsageError("Give at least one method, such as uniform.")
    for spec in specs:
        if specs.count(spec) > 1:
            raise UsageError(f"The method {str(spec)!r} is given twice; drop one.")
    return specs


def check_known(specs: typing.Iterable[MethodSpec]) -> None:
    """Raises: UsageError: a method is not registered, or does not know a setting or option."""
    from growtas.methods import method_names

    known = method_names()
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for spec in specs:
        if spec.name not in known:
            raise UsageError(f"There is no method {spec.name!r}.{nearest(spec.name, known)}")
        options = spec.option_names()
        for key, _ in spec.given:
            if key not in fields | options:
                names = nearest(key, (fields | options) - set(DECIDED))
                raise UsageError(
                    f"{key!r} of {str(spec)!r} is neither a setting of training nor an option of the "
                    f"method.{names}"
                )
