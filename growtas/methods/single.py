"""One subnet only, from the first step to the last: an ordinary network in the supernet's weights."""

from __future__ import annotations

import random
from dataclasses import dataclass

from growtas.errors import UsageError, nearest
from growtas.methods.base import Method, MethodSettings, register
from growtas.methods.schedule import Stage
from growtas.space import Space
from growtas.subnet import AnySubnet, parse_subnet

WORDS = ("smallest", "largest")


@dataclass(frozen=True)
class SingleOptions:
    """Options of the training of one subnet.

    Args:
        subnet: ``smallest`` or ``largest`` of the space, or one in text, such as ``d24-h2,2,2-r2,2,2``.
    """

    subnet: str = "smallest"


@register("single")
class Single(Method):
    """The same subnet in every step; what it does not use stays as it begins, but for weight decay.

    With it one sees what subnets are worth that no step has trained: larger ones around a trained one, or
    smaller ones cut out of it.

    Source: GrowTAS, figure 1.

    Raises:
        UsageError: the option names no subnet of the space.
    """

    Options = SingleOptions

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        self.subnet = named_subnet(self.space, self.options.subnet)
        self.stages = (Stage((self.space.group_of(self.subnet),), 0),)

    def sample(self, step: int, rng: random.Random) -> AnySubnet:
        """The subnet."""
        return self.subnet

    def extremes(self, step: int) -> tuple[AnySubnet, AnySubnet]:
        """The subnet, twice: no step draws another."""
        return self.subnet, self.subnet


def named_subnet(space: Space, text: str) -> AnySubnet:
    """The subnet of a space that a word or its own text names.

    Raises:
        UsageError: the text is neither, or its subnet is outside the space.
    """
    if text in WORDS:
        return space.smallest() if text == "smallest" else space.largest()
    if "-" not in text:
        raise UsageError(
            f"subnet={text!r} of method 'single' is neither a word that it knows nor the text of a subnet "
            f"such as {space.smallest()}.{nearest(text, WORDS)}"
        )
    if not isinstance(parse_subnet(text), type(space.smallest())):
        space.validate(parse_subnet(text))  # the sentence says which family the space is of
    return space.parse(text)
