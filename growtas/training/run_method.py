"""The method of a run, built from its settings."""

from __future__ import annotations

from growtas.methods import Method, MethodSettings, create_method
from growtas.training.run import Run


def create_run_method(run: Run) -> Method:
    """The method of a run. Raises: UsageError: its name, stages or transition are not possible."""
    config = run.config
    settings = MethodSettings(
        space=run.space,
        num_classes=run.num_classes,
        epochs=config.epochs,
        steps_per_epoch=run.steps_per_epoch,
        seed=config.seed,
        stages=config.stages,
        transition=config.transition,
        transition_params=config.transition_params,
        transition_max_params=config.transition_max_params,
        transition_beta=config.transition_beta,
        new_region=config.new_region,
        new_region_moments=config.new_region_moments,
        subnets_per_step=config.subnets_per_step,
        sandwich=config.sandwich,
        distill=config.distill,
        options=config.method_options,
        lr=config.lr,
        warmup_epochs=config.warmup_epochs,
    )
    return create_method(config.method, settings)
