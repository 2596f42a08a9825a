"""Subnets by name: ``best`` of a run's search, ``smallest`` and ``largest`` of a space, or their sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from growtas.errors import UsageError
from growtas.searching.log import read_result

if TYPE_CHECKING:
    from growtas.space import Space
    from growtas.subnet import AnySubnet
    from growtas.training.run import Run


def named_subnet(subnet: AnySubnet | str, space: Space, run: Run | None = None) -> AnySubnet:
    """A subnet by its name or sizes.

    Args:
        subnet: ``best``, ``smallest``, ``largest``, sizes such as ``d24-h2,2,3-r2,3,2``, or a subnet.
        space: that it is from.
        run: whose finished search knows the best one.

    Raises:
        UsageError: the text is none of these, or ``best`` is asked for without a run.
        GrowtasError: the run has no finished search.
    """
    if not isinstance(subnet, str):
        return subnet
    if subnet in ("smallest", "largest"):
        return getattr(space, subnet)()
    if subnet != "best":
        return space.parse(subnet)
    if run is None:
        raise UsageError("The best subnet is what the search of a run found: give the run, or the sizes.")
    return read_result(run.path).best.subnet
