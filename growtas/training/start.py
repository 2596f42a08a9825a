"""``growtas.train``: begin a run, or continue one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growtas import atomic, threads
from growtas.bounds import bounded
from growtas.errors import GrowtasError, UsageError, nearest
from growtas.ops import dispatch
from growtas.space import ModelSpace, Space, load_space
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.training import checkpoint, initial
from growtas.training.config import BOUNDS, RUNTIME, TrainConfig
from growtas.training.data import Splits, splits_of
from growtas.training.data.loader import TrainingLoader
from growtas.training.dry_run import DryRun
from growtas.training.dry_run import dry_run as estimate
from growtas.training.embedded import data_for
from growtas.training.environment import changes, environment
from growtas.training.external import load_teacher
from growtas.training.guards import preserved_generators
from growtas.training.log import RunLog
from growtas.training.loop import Trainer
from growtas.training.precision import announced, resolved, tf32
from growtas.training.ranks import Ranks, choose_device
from growtas.training.ranks.restart import own_run, restarted
from growtas.training.run import Run, check_free, read_config, remove_leftovers, versions
from growtas.training.trackers import Trackers, check_installed
from growtas.tuning import tune_before_training


@bounded(**BOUNDS)
def train(
    space: str | Path | Space | None = None,
    data: str | None = None,
    *,
    resume: str | Path | Run | None = None,
    config: str | Path | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> Run | DryRun:
    """Train a supernet.

    Args:
        space: a search space, the name of a preset or the path of a YAML file.
        data: ``digits``, ``glyphs``, ``typefaces``, ``folder:PATH``, ``packed:PATH`` or a timm data set name;
            needed, unless the space is named after an embedded set.
        resume: the folder of a run to continue instead; it knows its settings, and only those of
            :data:`growtas.training.config.RUNTIME` may be given again.
        config: config.yaml of another run, or its folder: the new run begins with its settings and its space,
            all but ``out``; what is given besides wins, and nothing else follows from it.
        dry_run: tell what the run would take, and write nothing; ``out`` is not needed.
        settings: those of :class:`growtas.training.config.TrainConfig`; ``out`` is needed.

    Returns:
        The finished run, or what it would take.

    Raises:
        UsageError: a setting is unknown or makes no sense, the data is not there, or the folder holds
            something else. Nothing was written.
        GrowtasError: the disk is full, the loss was not finite ten times in a row, or a checkpoint cannot be
            used. What was saved is kept.
        growtas.training.guards.Interrupted: Ctrl-C or SIGTERM; saved, and can be resumed.

    Example:
        >>> run = train("digits", epochs=60, out="runs/digits")
        >>> run = train(resume="runs/digits")  # after a crash: ends bit for bit where it would have
    """
    given = settings if data is None else {"data": data, **settings}
    if resume is not None:
        if config is not None or dry_run:
            raise UsageError("A resumed run keeps its settings; leave out config and dry_run.")
        return resumed(Run.open(resume), {"space": space, **given})
    found = None
    if config is not None:
        before, found = read_config(config)
        if given.get("recipe") not in (None, before["recipe"]):
            raise UsageError(
                f"config={str(config)!r} gives every setting, and recipe={given['recipe']!r} would change "
                "none; give one of the two."
            )
        given = before | {name: value for name, value in given.items() if value is not None}
    if space is not None:
        found = load_space(space)
        given = given | {"space": found.name if isinstance(space, Space) else str(space)}
    if found is None:
        raise UsageError("Give space=NAME (such as 'digits'), or resume=FOLDER to continue a run.")
    return begin(TrainConfig.from_dict(given), found, dry_run)


def begin(
    config: TrainConfig,
    space: Space | ModelSpace | None = None,
    dry_run: bool = False,
    source: initial.Source | None = None,
) -> Run | DryRun:
    """Begin a run and train it to its end.

    Args:
        config: its settings.
        space: the space that ``config.space`` names, where it has been loaded already.
        dry_run: only tell what the run would take.
        source: of the weights that ``config.initial`` names, where it has been opened already.

    Returns, Raises: as :func:`train`.
    """
    space = space or load_space(config.space)
    config = dataclasses.replace(config, data=data_for(space.name, config.data))
    config = config.resolved(convolutional=isinstance(space, MobileNetSpace))
    threads.fit(space)
    if config.out is None and not dry_run:
        raise UsageError("Give out=FOLDER: where the run is written.")
    check_installed(config.trackers, config.tensorboard)
    path = Path(config.out or ".")
    if source is None and config.initial is not None:
        source = initial.open_source(config.initial)
    device = choose_device(config.device)
    config = dataclasses.replace(config, amp=resolved(config.amp, device))
    config = initial.adopted(config, source)
    with Ranks.joined(device, config.rank_timeout) as ranks:
        if not dry_run:
            # a machine whose own ranks did not fail may count no restart
            if ranks.sum(torch.tensor(float(restarted()), device=device)).item():
                own = ranks.on_first(lambda: own_run(path, config, space))
                if own is not None:
                    if ranks.first:
                        print(f"This is a restart: the run in {path} goes on.", flush=True)
                    return _continued(own, device, ranks)
            ranks.on_first(lambda: check_free(path))
        splits = _load_data(lambda: splits_of(config, space), config, device, ranks)
        loader = TrainingLoader(splits.train, config, ranks.rank, ranks.world)
        run = Run(
            path,
            config,
            space,
            splits.num_classes,
            loader.steps_per_epoch,
            splits.summary(),
            versions(),
            splits.classes,
        )
        with preserved_generators():  # the trainer checks every setting before a file is written
            weights = None if source is None else initial.of_source(source, run)
            teacher = load_teacher(run, splits, device)
            run = dataclasses.replace(run, teacher_digest=teacher and teacher.digest)
            trainer = Trainer(run, splits, device, ranks, initial=weights, teacher=teacher)
            initial.check_needed(trainer.method, source)
            if dry_run:
                with tf32(config.amp, device):
                    return estimate(trainer)
            _tune(run, device, ranks)
            with _locked(run, ranks) as log:
                ranks.on_first(lambda: _create(run, log, weights))
                _run(trainer, run, log)
        return run


def _create(run: Run, log: RunLog, weights: Mapping[str, Tensor] | None) -> None:
    """Write what a run begins with; the folder is a run once all is there.

    Args:
        run: that begins.
        log: its lock; another process may have had the folder since it was looked at.
        weights: of another run.
    """
    try:
        check_free(run.path)
        remove_leftovers(run.path)
        if weights is not None:
            run = dataclasses.replace(run, initial_digest=initial.write(run, weights))
        run.write_config()
    except BaseException:
        log.discard()
        raise


def _tune(run: Run, device: torch.device, ranks: Ranks) -> None:
    """Race backends where the device has no record: rank 0 does, and all ranks follow what it found."""
    config = run.config
    if isinstance(run.space, ModelSpace):  # a model that is plain PyTorch
        return
    batch = max(1, config.batch_size // ranks.world // config.accumulate)
    found = ranks.on_first(lambda: tune_before_training(run.space, device, config.amp, batch, config.tune))
    if found is not None and ranks.world > 1:
        dispatch.adopt(device, found)


def _load_data(load: Callable[[], Splits], config: TrainConfig, device: torch.device, ranks: Ranks) -> Splits:
    """The data, on every rank the same. Args: load: loads it."""
    if (config.download or config.bad_images == "skip") and ranks.world > 1:
        ranks.on_first(lambda: load() and None)  # one downloads or checks, the others find what it left
    found = load()
    first = ranks.on_first(found.summary)
    differ = torch.tensor([float(found.summary() != first)], device=device)
    if ranks.sum(differ).item():
        raise GrowtasError(
            f"The data {config.data!r} is not the same on all {ranks.world} ranks: rank {ranks.rank} has "
            f"{found.summary()}, rank 0 has {first}. Give every machine the same copy."
        )
    return found


def resumed(run: Run, given: Mapping[str, Any]) -> Run:
    """Continue a run. Args: run: as it was left; given: settings that the user repeated."""
    given = {name: value for name, value in given.items() if value is not None}
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for name in given:
        if name not in known:
            raise UsageError(f"Training has no setting {name!r}.{nearest(name, known)}")
        if name not in RUNTIME:
            raise UsageError(
                f"A resumed run keeps its settings, so {name} cannot be given, only {', '.join(RUNTIME)}; "
                "to change others, start a new run."
            )
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, **given))
    threads.fit(run.space)
    check_installed(run.config.trackers, run.config.tensorboard)
    device = choose_device(run.config.device)
    with Ranks.joined(device, run.config.rank_timeout) as ranks:
        return _continued(run, device, ranks)


def _continued(run: Run, device: torch.device, ranks: Ranks) -> Run:
    """Train a run from where it stands to its end."""
    with _locked(run, ranks) as log, preserved_generators():
        state = ranks.on_first(lambda: _load_checkpoint(run))
        if state is None or state["step"] < run.steps or state.get("to_assess"):
            weights = initial.read(run) if state is None else None
            splits = _load_data(run.splits, run.config, device, ranks)
            teacher = load_teacher(run, splits, device)
            trainer = Trainer(run, splits, device, ranks, state, weights, teacher)
            _tune(run, device, ranks)
            _run(trainer, run, log, state)
        else:
            checkpoint.check_belongs(state, run.identity(), run.checkpoint_path)
    return run


def _load_checkpoint(run: Run) -> dict | None:
    """The checkpoint, or None where the run was killed before its first one."""
    return checkpoint.load(run.checkpoint_path) if run.checkpoint_path.exists() else None


@contextmanager
def _locked(run: Run, ranks: Ranks) -> Iterator[RunLog | None]:
    """The run's log, on rank 0, locked against other processes."""
    held: list[RunLog] = []

    def hold() -> None:
        atomic.make_folder(run.path)
        held.append(RunLog(run.path))

    ranks.on_first(hold)
    try:
        yield held[0] if held else None
    finally:
        for log in held:
            log.close()


def _run(trainer: Trainer, run: Run, log: RunLog | None, state: Mapping[str, Any] | None = None) -> None:
    curves = None
    try:
        if log is not None:
            print(trainer.splits, flush=True)
            _keep(log, run, state)
            remove_leftovers(run.path)
            curves = Trackers(run, trainer.progress.step)
            print("\n".join(announced(run.space, run.config.amp, trainer.device)), flush=True)
            if state is not None:
                now = {"ranks": trainer.ranks.world, "environment": environment(trainer.device)}
                changed = changes(state, now | {"versions": versions()})
                if changed:
                    print(changed, flush=True)
        with tf32(run.config.amp, trainer.device):
            trainer.train(log, curves)
    finally:
        if curves is not None:
            curves.close()


def _keep(log: RunLog, run: Run, state: Mapping[str, Any] | None) -> None:
    """Cut off what was logged after the checkpoint."""
    if state is None:
        log.keep()
    else:
        step = state["step"]
        log.keep(state["log_offset"], state.get("log_check"), step, step // run.steps_per_epoch)
