"""Answers that have ended here and are not read there: each waits in memory for its client, bounded in time and in sum.

In: transports with bytes in their buffers. Out: those of clients that do not read are aborted.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from dataclasses import dataclass

PROGRESS = 1 << 16  # bytes that a client has to read between two looks
MOST_BYTES = 1 << 28  # of all such answers of a process, or of one


@dataclass(slots=True)
class _Unread:
    left: int  # bytes at the last look
    buffered: int  # of them in the transport's buffer, which only shrinks until another answer
    look: asyncio.TimerHandle


class UnreadAnswers:
    """Looks at each every `look_s` seconds; where all together are more than `most_bytes`, the largest go at once.

    One alone may be larger: its request was within its limits, and how long it waits is bounded.
    """

    def __init__(self, look_s: float, most_bytes: int = MOST_BYTES) -> None:
        self._look_s = look_s
        self._most_bytes = most_bytes
        self._unread: dict[asyncio.Transport, _Unread] = {}
        self._buffered = 0  # as they were when each was watched: all are not asked again for each answer

    def watch(self, transport: asyncio.Transport) -> None:
        """Whose answer has ended; if it has been read already, nothing happens. Its time begins anew."""
        self.forget(transport)
        if left := unread_bytes(transport):
            look = asyncio.get_running_loop().call_later(self._look_s, self._look, transport)
            one = self._unread[transport] = _Unread(left, transport.get_write_buffer_size(), look)
            self._buffered += one.buffered
            if self._buffered > self._most_bytes:
                self._make_room()

    def forget(self, transport: asyncio.Transport) -> None:
        """Its connection has ended."""
        if (one := self._unread.pop(transport, None)) is not None:
            one.look.cancel()
            self._buffered -= one.buffered

    def _look(self, transport: asyncio.Transport) -> None:
        left = unread_bytes(transport)
        if left and self._unread[transport].left - left < PROGRESS:
            self.forget(transport)
            transport.abort()
        else:
            self.watch(transport)

    def _make_room(self) -> None:
        for transport, one in self._unread.items():
            one.buffered = transport.get_write_buffer_size()
        self._buffered = sum(one.buffered for one in self._unread.values())
        while self._buffered > self._most_bytes and len(self._unread) > 1:
            largest = max(self._unread, key=lambda transport: self._unread[transport].buffered)
            self.forget(largest)
            largest.abort()


def unread_bytes(transport: asyncio.Transport) -> int:
    """In the transport's buffer and, while there are any, in the kernel's: that one holds megabytes, and takes more in
    steps of which a slow reader needs less than one between two looks."""
    waiting = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket") if waiting and sys.platform == "linux" else None
    if connection is None or connection.fileno() < 0:
        return waiting
    return waiting + int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
