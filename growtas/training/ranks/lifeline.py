"""A connection of every rank to rank 0, over which all learn at once that one of them has failed.

The kernel closes the sockets of a process however it ends, so a killed rank is noticed within milliseconds.
Without this, Gloo fails with an error that names nobody, and NCCL waits until the time of its watchdog is up.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch.distributed as dist

from growtas.errors import GrowtasError

GRACE = 10.0  # seconds that a rank has to end by itself once another one has failed
_CONNECT = 10.0  # seconds to connect to one address
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # a lost machine: 30 seconds


class RankFailed(GrowtasError):
    """Another rank failed, which the sentence names; the exit status is that rank's."""

    def __init__(self, sentence: str, exit_status: int = 1) -> None:
        super().__init__(sentence)
        self.exit_status = exit_status


class Lifeline:
    """One end of the connections, with a thread that listens.

    Where another rank fails and this process does not leave within :data:`GRACE`, because it waits in a
    collective that nothing interrupts, the thread tells the failure and ends the process.

    Args:
        rank: of this process.
        sockets: rank 0 has one to every other rank, those have one to rank 0.
        names: of the processes at their other ends, by rank.
    """

    def __init__(self, rank: int, sockets: Mapping[int, socket.socket], names: Mapping[int, str]) -> None:
        self.rank, self._sockets, self._names = rank, dict(sockets), dict(names)
        self.failure: RankFailed | None = None
        self._note, self._turns, self._ready = "", 0, 0
        self._changed, self._sending = threading.Condition(), threading.Lock()
        self._finished: set[int] = set()
        self._timer: threading.Timer | None = None
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.PollSelector()  # without a descriptor of its own, which forks would share
        self._selector.register(self._woken, selectors.EVENT_READ)
        for peer, each in self._sockets.items():
            self._selector.register(each, selectors.EVENT_READ, (peer, bytearray()))
        _open.add(self)
        self._thread = threading.Thread(target=self._listen, name="growtas lifeline", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls, rank: int, world: int) -> Lifeline:
        """Connect every rank of the process group to rank 0; a collective call."""
        own = f"process {os.getpid()} on {socket.gethostname()}"
        server, given = None, [None]
        if rank == 0:
            family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
            server = socket.create_server(
                ("", 0), family=family, backlog=world, dualstack_ipv6=socket.has_dualstack_ipv6()
            )
            given = [(_addresses(), server.getsockname()[1], secrets.token_hex(), own)]
        dist.broadcast_object_list(given, src=0)
        addresses, port, token, first = given[0]
        sockets, names = {}, {0: first}
        if rank:
            found = _reach(addresses, port)
            if found is None:
                print(
                    f"growtas: rank {rank} ({own}) cannot reach rank 0 at {', '.join(addresses)}, port "
                    f"{port}: it will notice the failure of another rank only when rank_timeout has passed.",
                    file=sys.stderr,
                )
            else:
                found.sendall(_line(token=token, rank=rank, name=own))
                sockets[0] = found
        connected: list[bool] = [False] * world
        dist.all_gather_object(connected, bool(sockets))
        if server is not None:
            with server:
                sockets, names = _accept(server, token, sum(connected))
        for each in sockets.values():
            _keep_alive(each)
        return cls(rank, sockets, names)

    # -- what the training thread calls ------------------------------------------------------------------

    def check(self) -> None:
        """Raises: RankFailed: another rank has failed."""
        if self.failure is not None:
            raise self.failure

    def wait(self, seconds: float) -> RankFailed | None:
        """The failure of another rank; None where there is none within the time."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None, seconds)
            return self.failure

    def turn(self) -> None:
        """Wait, however long, until rank 0 has come to the same call; rank 0 goes on at once.

        Raises:
            RankFailed: a rank failed meanwhile.
        """
        self._turns += 1
        if self.rank == 0:
            self._send(ready=self._turns)
        elif self._sockets:
            with self._changed:
                self._changed.wait_for(lambda: self._ready >= self._turns or self.failure is not None)
                if self._ready < self._turns:
                    raise self.failure

    def note(self, sentence: str) -> None:
        """Give all ranks the end of the sentence that a failure is told with. Call it on rank 0."""
        self._note = sentence
        self._send(note=sentence)

    def report(self, sentence: str, exit_status: int) -> None:
        """Tell the others that this rank fails; it has :data:`GRACE` to end."""
        own = f"Rank {self.rank} (process {os.getpid()} on {socket.gethostname()}) failed: {sentence}"
        if self.rank == 0:
            self._fail(own, exit_status)
        else:
            self._send(failed=own, status=exit_status)
            self._limit(RankFailed(own, exit_status))

    def close(self) -> None:
        """Leave without being missed."""
        self._send(done=True)
        self._wake.send(b"\n")
        self._thread.join()
        if self._timer is not None:
            self._timer.cancel()
        self.let_go()
        _open.discard(self)

    def let_go(self) -> None:
        """Close this process's ends; in a forked process the connections stay as they are."""
        for each in (*self._sockets.values(), self._wake, self._woken):
            each.close()

    # -- the connections ---------------------------------------------------------------------------------

    def _send(self, **message: Any) -> None:
        with self._sending:
            for each in self._sockets.values():
                with suppress(OSError):  # its end is heard of by the thread
                    each.sendall(_line(**message))

    def _listen(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:  # closed
                    return
                peer, unread = key.data
                try:
                    data = key.fileobj.recv(2**16)
                except OSError:
                    data = b""
                unread += data
                *lines, rest = unread.split(b"\n")
                unread[:] = rest
                for line in lines:
                    self._hear(peer, json.loads(line))
                if not data:
                    self._selector.unregister(key.fileobj)
                    if peer not in self._finished:
                        self._fail(
                            f"Rank {peer} ({self._names[peer]}) ended without a word: it was killed, or its "
                            "machine is out of memory or gone.",
                            1,
                        )

    def _hear(self, peer: int, message: Mapping[str, Any]) -> None:
        if "failed" in message:
            self._fail(message["failed"], message["status"], noted=peer == 0)
        elif "done" in message:
            self._finished.add(peer)
        elif "note" in message:
            self._note = message["note"]
        else:
            with self._changed:
                self._ready = message["ready"]
                self._changed.notify_all()

    def _fail(self, sentence: str, exit_status: int, noted: bool = False) -> None:
        """Keep the first failure, tell it to the others, and limit the time of this process."""
        with self._changed:
            if self.failure is not None:
                return
            if self._note and not noted and "--resume" not in sentence:
                sentence = f"{sentence.removesuffix('.')}; {self._note}"
            self.failure = RankFailed(sentence, exit_status)
            self._changed.notify_all()
        if self.rank == 0:
            self._send(failed=str(self.failure), status=exit_status)
        self._limit(self.failure)

    def _limit(self, failure: RankFailed) -> None:
        if self._timer is None:
            self._timer = threading.Timer(GRACE, _end, [failure])
            self._timer.daemon = True
            self._timer.start()


_open: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """In a forked process, which may outlive its parent: the parent's death must be seen at once."""
    for each in list(_open):
        each.let_go()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _end(failure: RankFailed) -> None:
    with suppress(OSError):
        os.write(2, f"growtas: {failure}\n".encode())  # at once: nothing is flushed any more
    os._exit(failure.exit_status)


def _line(**message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _addresses() -> list[str]:
    """Where other machines may find this one, the likeliest first."""
    host = socket.gethostname()
    found = [host, os.environ.get("MASTER_ADDR", host)]
    with suppress(OSError):
        found += [info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    return list(dict.fromkeys(found))


def _reach(addresses: list[str], port: int) -> socket.socket | None:
    if addresses[0] == socket.gethostname():
        addresses = ["127.0.0.1", *addresses]
    for address in addresses:
        with suppress(OSError):
            found = socket.create_connection((address, port), _CONNECT)
            found.settimeout(None)
            return found
    return None


def _accept(server: socket.socket, token: str, count: int) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """The connections of so many ranks, and the names of their processes."""
    sockets, names = {}, {}
    server.settimeout(_CONNECT)
    with suppress(TimeoutError):
        while len(sockets) < count:
            found = server.accept()[0]
            found.settimeout(_CONNECT)
            with suppress(OSError, ValueError, KeyError, TypeError), found.makefile("rb", 0) as file:
                hello = json.loads(file.readline(2**12))
                if secrets.compare_digest(hello["token"], token):
                    sockets[hello["rank"]], names[hello["rank"]] = found, hello["name"]
                    found.settimeout(None)
                    continue
            found.close()
    return sockets, names


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel notice that the machine at the other end is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # of Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
