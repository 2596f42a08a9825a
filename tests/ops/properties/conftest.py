"""Tiles for Triton's interpreter, whose time goes by operations."""

from __future__ import annotations

import contextlib

import pytest


@pytest.fixture
def small_tiles():
    from growtas.kernels.common import tiles
    from growtas.kernels.relative_attention import tiles as attention_tiles

    with contextlib.ExitStack() as stack:
        stack.enter_context(tiles.constrained(rows=64, cols=128, depth=64))
        stack.enter_context(attention_tiles.constrained(queries=32, keys=32, chunk=64))
        yield
