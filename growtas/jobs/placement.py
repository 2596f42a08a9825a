"""The place where jobs run: cores and GPUs of this machine, or Slurm."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from growtas import threads
from growtas.errors import UsageError
from growtas.jobs.job import Launcher
from growtas.jobs.local import Local
from growtas.jobs.slurm import Options, Slurm
from growtas.space import Space


@dataclass(frozen=True)
class Placement:
    """The user's choice of where jobs run.

    Args:
        jobs: at once; chosen by the device and the size of the nets where None.
        asked: the device as the user named it.
        ranks: processes that a job trains with.
        slurm: options of sbatch, ``KEY=VALUE``; this machine where None.
        device: for the jobs to compute on.
        gpus: that they are spread over, as CUDA_VISIBLE_DEVICES calls them.
    """

    jobs: int | None
    asked: str
    ranks: int
    slurm: tuple[str, ...] | None
    device: str
    gpus: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, jobs: int | None, device: str, ranks: int = 1, slurm: Sequence[str] | None = None
    ) -> Placement:
        """Check the choice. Raises: UsageError: a count, the device or an option of Slurm is not possible."""
        from growtas.jobs.folder import check_counts

        check_counts({"jobs": jobs, "ranks": ranks}, {"jobs": 1, "ranks": 1})
        if slurm is not None:
            if device not in ("auto", "cpu", "cuda"):
                raise UsageError(
                    f"device={device!r} names one device, but Slurm chooses the GPUs of each job; give auto, "
                    "cpu or cuda."
                )
            slurm = (slurm,) if isinstance(slurm, str) else tuple(slurm)
            Options.parse(slurm)
            return cls(jobs, device, ranks, slurm, device)
        name, gpus = _device(device)
        if gpus and ranks > len(gpus):
            raise UsageError(
                f"ranks={ranks} needs as many GPUs for each job, and device={device!r} gives {len(gpus)}; "
                "lower ranks, or make more GPUs visible."
            )
        return cls(jobs, device, ranks, None, name, gpus)

    def launcher(self, space: Space, folder: Path) -> Launcher:
        """A launcher of jobs on a space. Args: folder: for what Slurm's jobs are given and print."""
        small, cores = threads.is_small(space), threads.cores()
        if self.slurm is not None:
            return Slurm.of(self, folder, 1 if small else None)
        jobs = self.jobs
        if jobs is None:
            room = len(self.gpus) if self.gpus else cores if small and self.device == "cpu" else 1
            jobs = max(1, room // self.ranks)
        count = 1 if small else max(1, cores // (jobs * self.ranks))
        return Local(jobs, count, self.ranks, self.gpus)

    def words(self) -> str:
        """The options of the command line that choose the same place; empty, or with a space in front."""
        words = [] if self.jobs is None else ["--jobs", str(self.jobs)]
        words += ["--device", self.asked] if self.asked != "auto" else []
        words += ["--ranks", str(self.ranks)] if self.ranks > 1 else []
        if self.slurm is not None:
            words += ["--slurm", *self.slurm]
        return f" {shlex.join(words)}" if words else ""


def _device(name: str) -> tuple[str, tuple[str, ...]]:
    """The device for jobs, and the GPUs that they are spread over. No GPU is touched."""
    import torch

    from growtas.training.ranks import choose_device

    kind, _, index = ("cuda" if name == "auto" else name).partition(":")
    if kind != "cuda" or not torch.cuda.is_available():
        return str(choose_device(name)), ()
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    gpus = [each.strip() for each in visible.split(",")] if visible else list(map(str, range(count)))
    if index:
        if not index.isdecimal() or len(index) > 6 or int(index) >= count:
            raise UsageError(f"device={name!r} cannot be used here: torch sees {count} CUDA GPUs.")
        return "cuda", (gpus[int(index)],)
    return "cuda", tuple(gpus[:count])
