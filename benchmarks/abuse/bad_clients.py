"""Clients of one byte a second, half-closed and idle ones, all in one thread that takes little processor time.

In: how many of each. Out: they are connected while the block runs, and do nothing while they are paused. Whoever is cut
off comes again on a new connection.
A client is a generator over its sockets: it yields for how many seconds it sleeps, or a socket that it reads until the
server closes it. asyncio's streams took twice as much of the processors that the server needs: 200 half-closed clients
0.11 of one, here 0.06. Bad clients are on other machines: so here they get what the server and the good clients leave
of this one's processors, and `Crowd.connections` tells whether that was enough for them.
"""

from __future__ import annotations

import os
import random
import selectors
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from heapq import heappop, heappush
from itertools import count
from time import monotonic

_CUT = 40  # bytes of a request after which a half-closed client stops
_AGAIN_AFTER_S = (0.2, 1.8)  # each after a time of its own: together they would be a flood of connections, another test
_LOOK_S = 0.1  # how often the thread looks whether it should end
_STOPS_WITHIN_S = 30.0  # on whatever machine; else their thread has ended
_READ = 1 << 16
_LAST = 19  # niceness: only what nobody else wants

Address = tuple[str, int]
Waits = Generator[float | socket.socket]
Behaviour = Callable[[socket.socket, bytes], Waits]


def slow(sock: socket.socket, request: bytes) -> Waits:
    """The head at once, so that the server waits for the body with a request in hand; the body a byte a second."""
    head = request.index(b"\r\n\r\n") + 4
    sock.sendall(request[:head])
    for place in range(head, len(request)):
        sock.sendall(request[place : place + 1])
        yield 1.0
    yield sock


def half_closed(sock: socket.socket, request: bytes) -> Waits:
    """Part of a request, then no more will come; reads until the server closes."""
    sock.sendall(request[:_CUT])
    sock.shutdown(socket.SHUT_WR)
    yield sock
    yield random.uniform(*_AGAIN_AFTER_S)


def idle(sock: socket.socket, request: bytes) -> Waits:
    yield sock


@contextmanager
def bad_clients(address: Address, request: bytes, counts: dict[Behaviour, int]) -> Iterator[Crowd]:
    """All are connected when the block begins and gone when it ends."""
    crowd, ended = Crowd(address, request, counts), threading.Event()
    thread = threading.Thread(target=crowd.live, args=(ended,))
    thread.start()
    try:
        yield crowd
    finally:
        ended.set()
        crowd.resume()
        thread.join()


class Crowd:
    """Each client does its first step here, which connects it. A pause is no time for them: none wakes up late."""

    def __init__(self, address: Address, request: bytes, counts: dict[Behaviour, int]) -> None:
        self.connections = 0  # made so far
        self._clients = [self._life(address, one, request) for one, many in counts.items() for _ in range(many)]
        self._selector = selectors.DefaultSelector()
        self._asleep: list[tuple[float, int, Waits]] = []
        self._order = count()
        self._going = threading.Event()
        self._going.set()
        self._rests = threading.Event()
        self._paused_s = 0.0
        for client in self._clients:
            self._step(client)

    def _life(self, address: Address, behaviour: Behaviour, request: bytes) -> Waits:
        while True:
            with socket.create_connection(address) as sock, suppress(ConnectionError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                yield from behaviour(sock, request)

    def live(self, ended: threading.Event) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST)  # of this thread, on Linux
        with closing(self._selector):
            while not ended.is_set():
                if not self._going.is_set():
                    began = monotonic()
                    self._rests.set()
                    self._going.wait()
                    self._paused_s += monotonic() - began
                self._wake_up()
                due = self._asleep[0][0] - self._now() if self._asleep else _LOOK_S
                for key, _ in self._selector.select(max(0.0, min(due, _LOOK_S))):
                    self._read(key)
            for client in self._clients:
                client.close()

    def pause(self) -> None:
        """They have stopped when it returns."""
        self._going.clear()
        if not self._rests.wait(_STOPS_WITHIN_S):
            raise RuntimeError(f"the bad clients have not stopped within {_STOPS_WITHIN_S:g} s")

    def resume(self) -> None:
        self._rests.clear()
        self._going.set()

    def _now(self) -> float:
        return monotonic() - self._paused_s

    def _step(self, client: Waits) -> None:
        waits = next(client)
        if isinstance(waits, socket.socket):
            self._selector.register(waits, selectors.EVENT_READ, client)
        else:
            heappush(self._asleep, (self._now() + waits, next(self._order), client))

    def _wake_up(self) -> None:
        while self._asleep and self._asleep[0][0] <= self._now():
            self._step(heappop(self._asleep)[2])

    def _read(self, key: selectors.SelectorKey) -> None:
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        data = b""
        with suppress(ConnectionError):
            data = sock.recv(_READ)
        if not data:
            self._selector.unregister(sock)
            self._step(key.data)
