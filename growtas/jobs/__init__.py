"""Folders of jobs: a plan in a file, processes that can be killed and started again, locks, progress."""

from growtas.jobs.runner import Job, Runner

__all__ = ["Job", "Runner"]
