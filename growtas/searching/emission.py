"""``growtas.emit``: the subnet that a run's trained sampler names for a budget; nothing is evaluated."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from growtas import cost
from growtas.bounds import COST, bounded
from growtas.errors import GrowtasError, UsageError
from growtas.searching.limits import Limits
from growtas.subnet import Subnet

if TYPE_CHECKING:
    from growtas.methods.focus import FocusFormer
    from growtas.training.run import Run


@bounded(max_params=COST, max_macs=COST)
def emit(
    run: Run | str | os.PathLike, max_params: float | None = None, max_macs: float | None = None
) -> Subnet:
    """The subnet that the sampler of a ``focusformer`` run names for a budget.

    The likeliest choice is taken at every decision; where the result is over a limit, the likeliest subnet
    within the limits that a beam search finds is taken in its place. Nothing is drawn or evaluated: the same
    checkpoint and budget always give the same subnet.

    Args:
        run: a training run of method ``focusformer``, or its folder; it may still be unfinished.
        max_params: most parameters of the subnet, head included; the budget where the run's sampler was
            trained with ``cost=params``.
        max_macs: most multiply-accumulates of one image; the budget of a run trained with ``cost=macs``.

    Returns:
        A subnet within every limit that was given.

    Raises:
        UsageError: no limit, or not the one that the sampler knows, was given; no subnet meets the limits;
            the run's method has no sampler.
        GrowtasError: there is no checkpoint yet, or its sampler has not been updated yet.

    Example:
        >>> subnet = emit("runs/focus", max_params=60_000)  # doctest: +SKIP
    """
    limits = Limits(max_params=max_params, max_macs=max_macs)

    from growtas.training.run import Run

    run = Run.open(run)
    method = _trained_method(run)
    kind = f"max_{method.options.cost}"
    budget = getattr(limits, kind)
    if budget is None:
        raise UsageError(
            f"The sampler of {run.path} was trained with budgets in {method.options.cost}: give {kind} "
            "(and any other limit beside it)."
        )

    def admits(subnet: Subnet) -> bool:
        return limits.meet(
            *(count(subnet, run.space, run.num_classes) for count in (cost.parameters, cost.macs))
        )

    if not admits(run.space.smallest()):
        raise _below_smallest(run, limits)
    greedy = method.sampler.greedy(budget)
    return greedy if admits(greedy) else method.sampler.most_probable(budget, admits)


def _below_smallest(run: Run, limits: Limits) -> UsageError:
    smallest = run.space.smallest()
    params = cost.parameters(smallest, run.space, run.num_classes)
    macs = cost.macs(smallest, run.space, run.num_classes)
    return UsageError(
        f"No subnet of {run.space.name} meets {limits}: the smallest has {params:,} parameters and "
        f"{macs:,} MACs. Raise the limit."
    )


def _trained_method(run: Run) -> FocusFormer:
    """The method of a run as its checkpoint holds it."""
    from growtas.methods.focus import FocusFormer
    from growtas.training import checkpoint
    from growtas.training.run_method import create_run_method

    method = create_run_method(run)
    if not isinstance(method, FocusFormer):
        raise UsageError(
            f"{run.path} was trained by method {run.config.method!r}, which has no sampler to ask; search it "
            "with growtas search, or train with method='focusformer'."
        )
    state = checkpoint.load(run.checkpoint_path)
    checkpoint.check_belongs(state, run.identity(), run.checkpoint_path)
    method.load_state_dict(state["method"])
    if not method.reinforce.updated:
        raise GrowtasError(
            f"The sampler of {run.path} has not been updated yet at step {state['step']}: it draws uniformly "
            f"for {method.uniform_steps} steps and is updated every {method.options.update_every} from then "
            "on. Train longer, or lower the method options update_every and uniform."
        )
    return method
