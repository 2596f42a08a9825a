"""A pytest plugin: the tests run on the native module named by GROWTAS_SANITIZED (building/sanitize.py)."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys


def pytest_configure(config):
    """Load the module in place of the installed one; torch first, so that its OpenMP serves both."""
    from growtas import native

    path = os.environ["GROWTAS_SANITIZED"]
    loader = importlib.machinery.ExtensionFileLoader("growtas._cpu", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("growtas._cpu", loader))
    loader.exec_module(module)
    sys.modules["growtas._cpu"] = module
    installed = native.metadata

    def metadata(kind):
        found = installed(kind)
        return {**found, "build_id": module.build_id, "target_clones": []} if kind == "cpu" else found

    native.metadata = metadata
    assert native.load("cpu") is module
