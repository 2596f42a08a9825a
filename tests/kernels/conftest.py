"""Kernel tests run on a CUDA device where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError(
            "Triton was imported before tests/kernels/conftest.py could set TRITON_INTERPRET=1, so its "
            "kernels would be compiled for a GPU that is not there. Set it in the environment."
        )
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run in this session."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _plans_of_one_test():
    """Tests replace what plans are made from (tiles, counts of programs): none outlives its test."""
    from growtas.kernels.common import launch

    launch.forget()
    yield
    launch.forget()
