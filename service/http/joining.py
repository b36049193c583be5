"""A transport that joins what is written within one turn of the event loop into one system call.

In: the head and the body of an answer, in two calls of `write`. Out: one packet, where they fit into one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class JoiningTransport:
    """A transport that keeps what is written until `flush`, at the latest at the next turn of the event loop.

    `close` first asks whether somebody else will end the connection.
    """

    __slots__ = ("_lingers", "_loop", "_transport", "_waiting")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, lingers: Callable[[], bool] = lambda: False
    ) -> None:
        self._lingers = lingers
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def forget(self) -> None:
        """Whom it asks, once the connection has ended: the two would keep each other until the garbage collector comes,
        which it seldom does where the models' memory is spared (`service.process.memory`)."""
        self._lingers = lambda: False

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(data)

    def flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            if not self._transport.is_closing():  # else the client has left, and writing would raise
                self._transport.writelines(waiting)

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        if not self._lingers():
            self._transport.close()
