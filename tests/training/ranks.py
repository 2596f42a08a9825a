"""Several ranks of one run, each in a forked process, as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
import socket

from runs import Child


def free_ports(count):
    """So many ports, as text."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


def launch(folder, work, world=2):
    """Call ``work(rank)`` on every rank. Returns: exit statuses and outputs."""
    (port,) = free_ports(1)

    def begin(rank):
        os.environ.update(
            WORLD_SIZE=str(world),
            LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        work(rank)

    ranks = [Child(lambda rank=rank: begin(rank), folder / f"output-{rank}") for rank in range(world)]
    results = [rank.finish() for rank in ranks]
    return [status for status, _ in results], [output for _, output in results]
