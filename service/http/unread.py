"""Answers that have ended here and are not read there: each waits in memory for its client, bounded in time and in sum.

In: transports with bytes in their buffers. Out: those of clients that do not read are aborted.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios

PROGRESS = 1 << 16  # bytes that a client has to read between two looks
MOST_BYTES = 1 << 28  # of all such answers of a process, or of one


class UnreadAnswers:
    """Looks at each every `look_s` seconds; where all together are more than `most_bytes`, the largest go at once.

    One alone may be larger: its request was within its limits, and how long it waits is bounded.
    """

    def __init__(self, look_s: float, most_bytes: int = MOST_BYTES) -> None:
        self._look_s = look_s
        self._most_bytes = most_bytes
        self._left: dict[asyncio.Transport, int] = {}  # bytes at the last look
        self._looks: dict[asyncio.Transport, asyncio.TimerHandle] = {}

    def watch(self, transport: asyncio.Transport) -> None:
        """Whose answer has ended; if it has been read already, nothing happens. Its time begins anew."""
        self.forget(transport)
        if unread := unread_bytes(transport):
            self._left[transport] = unread
            self._looks[transport] = asyncio.get_running_loop().call_later(self._look_s, self._look, transport)
            self._make_room()

    def forget(self, transport: asyncio.Transport) -> None:
        """Its connection has ended."""
        if self._left.pop(transport, None) is not None:
            self._looks.pop(transport).cancel()

    def _look(self, transport: asyncio.Transport) -> None:
        unread = unread_bytes(transport)
        if unread and self._left[transport] - unread < PROGRESS:
            self.forget(transport)
            transport.abort()
        else:
            self.watch(transport)

    def _make_room(self) -> None:
        sizes = {transport: transport.get_write_buffer_size() for transport in self._left}
        total = sum(sizes.values())
        while total > self._most_bytes and len(sizes) > 1:
            largest = max(sizes, key=sizes.__getitem__)
            total -= sizes.pop(largest)
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
