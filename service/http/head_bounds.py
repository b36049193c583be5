"""uvicorn's HTTP protocol, with bounds for the URL and the headers of a request, and for all that wait.

In: the pieces of a head, as the parser finds them. Out: a head that is too large stops the parser; where heads that
have not come whole, and requests before their turn, are too large together, the largest of them go.
"""

from __future__ import annotations

from typing import Protocol

from service.http.lingering import Lingering

LARGEST_HEAD = 1 << 16  # bytes of URL and headers
MOST_HEADERS = 256
_HEADER_BYTES = 144  # of memory, even of an empty one
LARGEST_KEPT = LARGEST_HEAD + MOST_HEADERS * _HEADER_BYTES  # bytes of memory
# bytes of memory of a process for all heads that have not come whole, and heads and bodies before their request's turn
MOST_UNBEGUN = 1 << 26
_LINE_BYTES = 4  # of a header beside its name and value: ": " and the end of the line


class _HeadTooLargeError(Exception):
    """Stops the parser."""


class HeadBounds(Lingering):
    """Counts what is kept of the message that is being read: its URL, headers and trailers."""

    _head_bytes = 0
    _header_count = 0
    _within_head = False
    _repeating = False  # the head that a new parser needs to read a body

    def on_message_begin(self) -> None:
        self._head_bytes = self._header_count = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._repeating:
            return
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers are counted and dropped: what a proxy has checked is the head (RFC 9110, 6.5.1)."""
        if self._repeating:
            return
        self._header_count += 1
        self._count(len(name) + len(value) + _LINE_BYTES)
        if self._within_head:
            super().on_header(name, value.rstrip(b" \t"))  # llhttp leaves what follows it (RFC 9112, 5.1)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_is_too_large:
            raise _HeadTooLargeError

    @property
    def _kept_bytes(self) -> int:
        return self._head_bytes + _HEADER_BYTES * self._header_count

    @property
    def _head_is_too_large(self) -> bool:
        return self._head_bytes > LARGEST_HEAD or self._header_count > MOST_HEADERS


class Connection(Protocol):
    """Of which a head has not come whole, or a request waits for its turn."""

    def give_up(self) -> None:
        """End it."""


class Unbegun:
    """What a process keeps of requests that have not begun."""

    def __init__(self, most_bytes: int = MOST_UNBEGUN) -> None:
        self._most_bytes = most_bytes
        self._sizes: dict[Connection, int] = {}
        self._total = 0

    def keep(self, connection: Connection, size: int) -> None:
        """Of it so many bytes wait."""
        self.forget(connection)
        if not size:
            return
        self._sizes[connection] = size
        self._total += size
        while self._total > self._most_bytes:
            largest = max(self._sizes, key=self._sizes.__getitem__)
            self.forget(largest)
            largest.give_up()

    def forget(self, connection: Connection) -> None:
        """Its requests have begun, or it has ended."""
        self._total -= self._sizes.pop(connection, 0)
