"""Where the curves of a run go: TensorBoard, Weights & Biases, MLflow. None of them can end a run.

All keep what they write in the run's folder, unless their own environment variables name a server.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from growtas import atomic
from growtas.errors import UsageError, nearest
from growtas.training.curves import Curves
from growtas.training.run import Run

IDS_NAME = "trackers.json"
MLFLOW_AT_ONCE = 500  # points that are sent together


class Tracker(Protocol):
    """One place for curves."""

    def add(self, step: int, **values: float) -> None:
        """Add one point to each curve; a double underscore in a name stands for a slash."""

    def flush(self) -> None:
        """Write what is buffered."""

    def close(self) -> None:
        """End the session; called while an exception passes where the run has failed."""


def names_of(trackers: str | None, tensorboard: bool) -> tuple[str, ...]:
    """The trackers that the settings name.

    Args:
        trackers: names with commas between, ``none`` for none; None where only ``tensorboard`` counts.
        tensorboard: the older setting.

    Raises:
        UsageError: a name is unknown.
    """
    if trackers is None:
        return ("tensorboard",) if tensorboard else ()
    names = tuple(name.strip() for name in trackers.split(",") if name.strip() not in ("", "none"))
    for name in names:
        if name not in TRACKERS:
            raise UsageError(
                f"trackers={trackers!r} names {name!r}, which is unknown.{nearest(name, TRACKERS)}"
            )
    return names


def check_installed(trackers: str | None, tensorboard: bool) -> None:
    """Raises: UsageError: a tracker is unknown or its package is not installed; how to install it."""
    for name in names_of(trackers, tensorboard):
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"trackers={trackers!r} needs the package {name}: pip install 'growtas[{name}]', "
                "or leave it out."
            )


class Trackers:
    """Every tracker of a run; one that fails is left out from then on, with one notice.

    Args:
        run: gives the settings and the folder.
        first_step: where training goes on.
    """

    def __init__(self, run: Run, first_step: int) -> None:
        self._open: dict[str, Tracker] = {}
        for name in names_of(run.config.trackers, run.config.tensorboard):
            with self._noticed(name):
                self._open[name] = TRACKERS[name](run, first_step)

    def add(self, step: int, **values: float) -> None:
        """Add one point to each curve of every tracker. Args: as of :meth:`Tracker.add`."""
        self._each(lambda tracker: tracker.add(step, **values))

    def flush(self) -> None:
        """Write what is buffered."""
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """End every session."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._noticed(name):
                call(tracker)

    def _noticed(self, name: str) -> _Noticed:
        return _Noticed(name, self._open)


class _Noticed:
    """Turns an exception of a tracker into a notice, once: the tracker is dropped."""

    def __init__(self, name: str, trackers: dict[str, Tracker]) -> None:
        self.name, self.trackers = name, trackers

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False  # Ctrl-C and the like
        failed = self.trackers.pop(self.name, None)
        with suppress(Exception):
            failed.close()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(
            f"growtas: {self.name} failed and gets no more curves, the run goes on; log.jsonl has them all: "
            f"{reason}",
            file=sys.stderr,
            flush=True,
        )
        return True


class WandB:
    """Curves in Weights & Biases; a resume continues the same run there.

    Without a key and without WANDB_MODE it is offline: ``wandb sync`` uploads the run folder's ``wandb/``.
    """

    def __init__(self, run: Run, first_step: int) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE")
        if mode is None and not _wandb_has_key(wandb):
            mode = "offline"
            print(
                f"W&B has no key here: its curves are in {run.path / 'wandb'}; wandb sync uploads them.",
                flush=True,
            )
        number = _recorded(run.path, "wandb", lambda: uuid.uuid4().hex[:8])
        self._run = wandb.init(
            dir=str(run.path),
            project=os.environ.get("WANDB_PROJECT", "growtas"),
            name=run.path.name,
            id=number,
            resume="allow",
            mode=mode,
            config=run.config.to_dict(),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="step")  # a resume may go back behind points that were sent

    def add(self, step: int, **values: float) -> None:
        """As of :class:`Tracker`."""
        self._run.log({"step": step, **_named(values)})

    def flush(self) -> None:
        """Nothing to do: a process of its own writes."""

    def close(self) -> None:
        """As of :class:`Tracker`."""
        self._run.finish(exit_code=int(sys.exception() is not None))


def _wandb_has_key(wandb: Any) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(Exception):  # how it is asked has changed between versions
        return bool(wandb.setup().settings.api_key) or bool(wandb.login(prompt=False))
    return False


class MLflow:
    """Curves in MLflow: the run folder's ``mlruns/``, or the server of MLFLOW_TRACKING_URI."""

    def __init__(self, run: Run, first_step: int) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.path.absolute() / "mlruns").as_uri()
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it asks for this consent since 3.7
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client, self._points = Metric, MlflowClient(tracking_uri=uri), []
        self._id = _recorded(run.path, "mlflow", lambda: self._created(run, Param))
        self._client.update_run(self._id, status="RUNNING")

    def _created(self, run: Run, param: Any) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "growtas")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        number = self._client.create_run(experiment, run_name=run.path.name).info.run_id
        settings = [param(key, str(value)[:500]) for key, value in run.config.to_dict().items()]
        for start in range(0, len(settings), 100):  # as many as it takes at once
            self._client.log_batch(number, params=settings[start : start + 100])
        return number

    def add(self, step: int, **values: float) -> None:
        """As of :class:`Tracker`."""
        now = int(1000 * time.time())
        self._points += [self._metric(name, value, now, step) for name, value in _named(values).items()]
        if len(self._points) >= MLFLOW_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """As of :class:`Tracker`."""
        points, self._points = self._points, []
        if points:
            self._client.log_batch(self._id, metrics=points)

    def close(self) -> None:
        """As of :class:`Tracker`."""
        self.flush()
        self._client.set_terminated(self._id, "FINISHED" if sys.exception() is None else "FAILED")


TRACKERS: dict[str, Callable[[Run, int], Tracker]] = {
    "tensorboard": lambda run, first_step: Curves(run.path, True, first_step),
    "wandb": WandB,
    "mlflow": MLflow,
}


def _named(values: dict[str, float]) -> dict[str, float]:
    return {name.replace("__", "/"): value for name, value in values.items()}


def _recorded(folder: Path, name: str, make: Callable[[], str]) -> str:
    """The number that a tracker gave the run, kept in the run's folder so that a resume continues there."""
    path = folder / IDS_NAME
    known = json.loads(path.read_text()) if path.exists() else {}
    if name not in known:
        known[name] = make()
        atomic.write_text(path, json.dumps(known) + "\n")
    return known[name]
