"""Shared fixtures; Triton's interpreter is switched on where there is no CUDA device."""

from __future__ import annotations

import contextlib
import gc
import os

# Two workers share two cores: threads of NumPy and of other processes would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton reads it when it is first imported, which the conftest.py of a folder may do before pytest_configure.
if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from forking import ADDRESS, Server, run


def pytest_configure(config):
    """Import what tests need; not in the process that only gives them to workers and has them wait for it."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.add_cleanup(Server().close)
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")

    import interpreting
    from hypothesis import HealthCheck, settings

    from growtas.ops import dispatch

    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")  # how long an example takes depends on what else the machine does

    # Autograd starts its threads at the first backward, one for every device it then knows of. torch.compile
    # registers a fake GPU; if that came first, no test that forks could run a backward in its child.
    torch.ones(1, requires_grad=True).sum().backward()

    if dispatch.interpreted():
        interpreting.quicken()


def pytest_collection_finish():
    """Let few garbage collections be, and leave out what was imported: one takes longer than most tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


CPU_BACKENDS = ("torch", "cpu", "triton")
"""The backends that can run on CPU tensors; triton through its interpreter."""


@pytest.fixture(scope="session", autouse=True)
def _no_records_of_the_users(tmp_path_factory):
    """Records that somebody tuned on this machine must not change what is tested."""
    from growtas.ops import dispatch

    os.environ["GROWTAS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    dispatch.changed()


@pytest.fixture(scope="session")
def run_script():
    """Runs a script in a process of its own where Triton compiles: :func:`forking.run`."""
    if ADDRESS in os.environ:
        yield run
    else:
        server = Server()
        yield run
        server.close()


@pytest.fixture(autouse=True)
def _one_thread():
    """Two workers share two cores: one thread each, so that they do not fight."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=CPU_BACKENDS)
def cpu_backend(request):
    """Each backend that runs on CPU tensors, in force for the test."""
    import torch

    from growtas.ops import dispatch

    if request.param == "triton" and torch.cuda.is_available():
        pytest.skip("triton is compiled for the GPU in this process; its CPU interpreter is off")
    with contextlib.ExitStack() as stack:
        stack.enter_context(dispatch.use(request.param))
        if request.param == "triton":
            from growtas.kernels.common import tiles
            from growtas.kernels.relative_attention import tiles as attention_tiles

            # The interpreter's time goes by operations, whatever their size; tests/kernels have small tiles.
            stack.enter_context(tiles.constrained(rows=64, cols=128, depth=64))
            stack.enter_context(attention_tiles.constrained(queries=32, keys=32, chunk=64))
        yield request.param
