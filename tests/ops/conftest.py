"""Fixtures of the tests of operations: fresh memory is NaN, and C++ runs on every instruction set."""

from __future__ import annotations

import pytest
import torch

from growtas.ops import addresses


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh tensors hold NaN, so an element that no kernel writes shows, where zero is right as well."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture(params=[2, 1, 0], ids=["best", "v3", "baseline"])
def level(request, monkeypatch):
    """The C++ code of each instruction set that this processor runs."""
    monkeypatch.setattr(addresses, "SIMD_LEVEL", request.param)
