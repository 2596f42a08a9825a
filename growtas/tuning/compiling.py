"""Compiles the Triton kernels that a tuning will race, in several processes at once, before timing.

Each process runs the jobs of some cases once: so exactly those variants enter Triton's cache that the race
launches, for the weights as they are read there. What fails here fails again in the race, and is told there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from growtas.tuning.children import Child

MOST_PROCESSES = 16
BYTES_PER_PROCESS = 4 * 2**30  # of GPU memory: a context and the tensors of one job, about


def processes(device: torch.device, count: int) -> int:
    """How many compilers run at once: by cases, processors and the GPU's free memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(MOST_PROCESSES, count, cores, free // BYTES_PER_PROCESS))


def compile_ahead(requests: Sequence[dict[str, Any]], jobs: int, patience: float) -> None:
    """Run every case once with kernels that Triton compiles.

    Args:
        requests: what a worker is asked about each case.
        jobs: processes.
        patience: seconds that one process may take for one case.
    """
    from growtas.progress import Progress

    with Progress(len(requests), "compile", "class") as bar:

        def run(own: Sequence[dict[str, Any]]) -> None:
            child = Child("triton", patience)
            try:
                for request in own:
                    child.ask({**request, "compile": True})
                    bar.update()
            finally:
                child.close()

        # The cases with the most kernels come last: deal them out first.
        shares = [list(requests)[::-1][place::jobs] for place in range(jobs)]
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(run, share) for share in shares]:
                done.result()
