"""The version, in one place: setup.py reads this file, runs and checkpoints record it."""

__version__ = "0.1.0"
