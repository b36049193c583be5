"""Answers that are complete here and not read there: each waits in memory for its client, bounded in time and in sum.

In: transports with bytes in their buffers. Out: those of clients that do not read are aborted.
"""

from __future__ import annotations

import asyncio

PROGRESS = 1 << 16  # bytes that a client has to read between two looks
MOST_BYTES = 1 << 28  # of all such answers of a process


class UnreadAnswers:
    """Looks at each every `look_s` seconds; where all together are more than `most_bytes`, the largest go at once."""

    def __init__(self, look_s: float, most_bytes: int = MOST_BYTES) -> None:
        self._look_s = look_s
        self._most_bytes = most_bytes
        self._left: dict[asyncio.Transport, int] = {}  # bytes at the last look

    def watch(self, transport: asyncio.Transport) -> None:
        """Whose answer is complete; if it has been read already, nothing happens."""
        size = transport.get_write_buffer_size()
        if not size:
            return
        if transport not in self._left:
            asyncio.get_running_loop().call_later(self._look_s, self._look, transport)
        self._left[transport] = size
        self._make_room()

    def forget(self, transport: asyncio.Transport) -> None:
        """Its connection has ended."""
        self._left.pop(transport, None)

    def _look(self, transport: asyncio.Transport) -> None:
        before = self._left.pop(transport, 0)
        now = transport.get_write_buffer_size() if before else 0
        if now and before - now < PROGRESS:
            transport.abort()
        elif now:
            self.watch(transport)

    def _make_room(self) -> None:
        sizes = {transport: transport.get_write_buffer_size() for transport in self._left}
        total = sum(sizes.values())
        while total > self._most_bytes:
            largest = max(sizes, key=sizes.__getitem__)
            total -= sizes.pop(largest)
            self.forget(largest)
            largest.abort()
