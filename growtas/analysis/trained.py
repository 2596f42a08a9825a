"""Runs that trained one subnet only, and subnets drawn around them: for figures 1, B, C, D and E."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas import cost
from growtas.analysis.base import Value
from growtas.analysis.evaluations import top1_of
from growtas.errors import GrowtasError, UsageError
from growtas.methods.regions import initialise, used_by
from growtas.space import Space, seeded_rng
from growtas.training.ranks import choose_device
from growtas.training.run import Run
from growtas.training.run_method import create_run_method

if TYPE_CHECKING:
    from growtas.subnet import AnySubnet
    from growtas.supernet import AnySupernet
    from growtas.training.data import Splits


SIDES = {"extended": "smallest", "cropped": "largest"}
INITS = ("standard", "pretrained")


def draw(space: Space, count: int, seed: int) -> list[AnySubnet]:
    """Distinct random subnets of a space, neither its smallest nor its largest among them.

    Args:
        space: to draw from, as training does.
        count: how many; all others where there are fewer.
        seed: of the draw.

    Raises:
        UsageError: the count is below 1, or the space has no others.
    """
    left_out = {space.smallest(), space.largest()}
    others = space.count() - len(left_out)
    if count < 1:
        raise UsageError(f"subnets={count} is not possible; it must be 1 or more.")
    if not others:
        raise UsageError(
            f"Space {space.name!r} has no subnets but its smallest and its largest; give it more choices."
        )
    count = min(count, others)
    rng, found = seeded_rng("extended and cropped subnets", seed), {}
    while len(found) < count:
        subnet = space.sample(rng)
        if subnet not in left_out:
            found[subnet] = None
    return list(found)


@dataclass(frozen=True)
class Trained:
    """A run of one subnet. Args: run: finished; subnet: the smallest or the largest; splits: its data."""

    run: Run
    subnet: AnySubnet
    splits: Splits

    @classmethod
    def of(cls, run: str | Path | Run, which: str) -> Trained:
        """Check a run.

        Args:
            run: of method ``single``, or its folder.
            which: ``smallest`` or ``largest``.

        Raises:
            UsageError: it did not train that subnet alone.
            GrowtasError: it is not finished.
        """
        run = Run.open(run)
        wanted = getattr(run.space, which)()
        method = create_run_method(run)
        if method.name != "single" or method.subnet != wanted:
            trained = f"subnet {method.subnet}" if method.name == "single" else f"by {method.name!r}"
            raise UsageError(
                f"This needs a run that trained only the {which} subnet of its space, but {run.path} trained "
                f"{trained}; train one with method='single', method_options='subnet={which}'."
            )
        if not run.finished:
            raise GrowtasError(f"The run {run.path} is not finished. Continue it with: {run.resume_command}")
        return cls(run, wanted, run.splits())

    def net(self, device: str) -> AnySupernet:
        """The supernet with the run's weights. Args: device: ``auto`` for a GPU where there is one."""
        return self.run.load_net(choose_device(device))

    def extended(self, init: str, seed: int, device: str) -> AnySupernet:
        """The net with everything that the subnet does not use initialised anew."""
        net = self.net(device)
        used = used_by(net, [self.subnet])
        new = {name: ~mask for name, mask in used.items() if not mask.all()}
        initialise(net, new, used, init, seed, stage=1, draw_norms=True)
        return net

    def evaluate(
        self, net: AnySupernet, subnets: list[AnySubnet], calibrated: bool, log: Path | None, desc: str
    ) -> list[float]:
        """Top-1 of subnets on the test images, in per cent."""
        amp = self.run.config.amp
        return top1_of(net, self.splits, subnets, amp=amp, calibrated=calibrated, log=log, desc=desc)

    def group(self, subnet: AnySubnet) -> Value:
        """The choice by which a subnet is grouped."""
        return self.run.space.groups[self.run.space.group_of(subnet)]

    def described(self, subnet: AnySubnet) -> tuple[Value, ...]:
        """The first columns of a subnet's row."""
        params = cost.parameters(subnet, self.run.space, self.run.num_classes)
        return str(subnet), self.group(subnet), params

    def facts(self, seed: int, drawn: list[AnySubnet]) -> dict[str, Any]:
        """The text besides the numbers."""
        space = self.run.space
        return {
            "space": space.name,
            "subnets_in_space": space.count(),
            "axis": space.group_axis,
            "groups": list(space.groups),
            "data": self.run.config.data,
            "num_classes": self.run.num_classes,
            "test_images": len(self.splits.test),
            "seed": seed,
            "subnets": len(drawn),
        }


def pair_of(smallest: str | Path | Run, largest: str | Path | Run) -> dict[str, Trained]:
    """The runs of both sides. Raises: UsageError: they differ in more than the subnet that they trained."""
    runs = zip(SIDES.items(), (smallest, largest), strict=True)
    pair = {side: Trained.of(run, which) for (side, which), run in runs}
    one, other = (each.run for each in pair.values())
    compared = {
        "space": (one.space.to_dict(), other.space.to_dict()),
        "data": (one.config.data, other.config.data),
        "split_seed": (one.config.split_seed, other.config.split_seed),
    }
    for name, (first, second) in compared.items():
        if first != second:
            raise UsageError(
                f"The runs {one.path} and {other.path} differ in their {name}; train both alike."
            )
    return pair


def nets_of(pair: Mapping[str, Trained], seed: int, device: str) -> dict[str, AnySupernet]:
    """The nets of both sides: around the smallest subnet, the rest is initialised by the standard way."""
    return {
        "extended": pair["extended"].extended("standard", seed, device),
        "cropped": pair["cropped"].net(device),
    }
