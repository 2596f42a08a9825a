"""Where the ranks of one start meet, apart from what an earlier start left.

torchrun keeps one store over all restarts, and torch reads addresses from it under the same keys every time:
a rank that is restarted may connect to the rank 0 that was killed (seen with torch 2.14 and Gloo). The number
of restarts tells starts apart on one machine, but is counted by each machine for itself.
"""

from __future__ import annotations

import functools
import secrets
import time
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from growtas.errors import GrowtasError

_POLL = 0.02  # seconds


def fresh_store(timeout: float) -> tuple[Store, int, int]:
    """The store of this start, as torchrun's environment names it, this rank and the number of ranks.

    Args:
        timeout: seconds to wait for the other ranks.

    Raises:
        GrowtasError: they do not come.
    """
    store, rank, world = _base(timeout)
    return meet(store, rank, world, timeout), rank, world


def meet(store: Store, rank: int, world: int, timeout: float) -> Store:
    """Find the ranks of the same start.

    Each rank names itself at random; rank 0 answers every name it finds with its own one, under which they
    meet. Names of ranks that are gone are answered too, and nobody listens.

    Args:
        store: that all of them reach, and that earlier starts may have used.
        rank: of this process.
        world: ranks.
        timeout: seconds to wait for the others.

    Returns:
        The part of the store that is theirs.

    Raises:
        GrowtasError: they do not come.
    """
    end, own = time.monotonic() + timeout, secrets.token_hex(8)
    if rank:
        store.set(f"growtas/rank/{rank}", own)
        answer = f"growtas/answer/{own}"
        try:
            store.wait([answer], timedelta(seconds=timeout))
        except DistError as error:
            raise _late(rank, [0], timeout) from error
        meeting = store.get(answer).decode()
        store.set(f"growtas/{meeting}/{rank}", "")
        return PrefixStore(f"growtas/{meeting}", store)
    answered, missing = set(), list(range(1, world))
    while missing:
        for each in missing:
            name = f"growtas/rank/{each}"
            if store.check([name]) and (theirs := store.get(name).decode()) not in answered:
                store.set(f"growtas/answer/{theirs}", own)
                answered.add(theirs)
        missing = [each for each in missing if not store.check([f"growtas/{own}/{each}"])]
        if missing and time.monotonic() > end:
            raise _late(rank, missing, timeout)
        time.sleep(_POLL if missing else 0.0)
    return PrefixStore(f"growtas/{own}", store)


@functools.cache  # the next group of this process meets at the same store
def _base(timeout: float) -> tuple[Store, int, int]:
    return next(rendezvous("env://", timeout=timedelta(seconds=timeout)))


def _late(rank: int, missing: list[int], timeout: float) -> GrowtasError:
    named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
    return GrowtasError(
        f"Rank {rank} waited {timeout:g} s for rank {named}, which did not start. Look for its error, or "
        "give a longer rank_timeout."
    )
