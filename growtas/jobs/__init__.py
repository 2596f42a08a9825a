"""Folders of jobs: a plan in a file, jobs that can be killed and started again, locks, progress."""

from growtas.jobs.job import Job, Launcher
from growtas.jobs.placement import Placement
from growtas.jobs.runner import Runner

__all__ = ["Job", "Launcher", "Placement", "Runner"]
