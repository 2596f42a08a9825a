"""Folders of runs whose logs hold what a method drew, without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from growtas.space import load_space
from growtas.training.config import TrainConfig
from growtas.training.log import RunLog
from growtas.training.run import Run
from growtas.training.run_method import create_run_method

IMAGES = {"train": 96, "search": 20, "test": 20}


def run_of(path: Path, method: str, epochs: int = 6, steps: int = 3, **settings: Any) -> Run:
    """The folder of a run with its settings, and nothing else yet."""
    space = load_space(settings.pop("space", "digits"))
    values = {"space": space.name, "method": method, "epochs": epochs, **settings}
    config = TrainConfig.from_dict(values).resolved(convolutional=space.name == "digits-mobilenet")
    run = Run(path, config, space, 10, steps, IMAGES, {})
    path.mkdir(parents=True)
    run.write_config()
    return run


def logged_run(path: Path, method: str, **settings: Any) -> Run:
    """A run whose log is what the loop would write: the stages of its method and its draws."""
    run = run_of(path, method, **settings)
    made, log = create_run_method(run), RunLog(path)
    for step in range(run.steps):
        epoch, stage = step // run.steps_per_epoch, made.begins_at(step)
        if stage is not None:
            told = {"phase": made.phases[stage].name} if method == "shrinking" else {}
            log.write("stage", step, epoch, stage=stage, groups=list(made.stages[stage].groups), **told)
        if step % run.config.log_every == 0:
            write_step(log, run, step, made.stage_of(step), [str(s) for s in made.subnets(step)])
    log.close()
    return run


def write_step(log: RunLog, run: Run, step: int, stage: int, subnets: list[str]) -> None:
    """The record of a step that trained these subnets."""
    from growtas.subnet import parse_subnet

    groups = [run.space.group_of(parse_subnet(text)) for text in subnets]
    epoch = step // run.steps_per_epoch
    log.write("step", step, epoch, stage=stage, groups=[], group=groups, subnets=subnets, loss=1.0, lr=0.1)
