"""uvicorn's HTTP protocol, with bounds for the URL and the headers of a request, and for all that are not whole.

In: the pieces of a head, as the parser finds them. Out: a head that is too large stops the parser; where those that
have not come whole are too large together, the largest of them are refused.
"""

from __future__ import annotations

from typing import Protocol

from service.http.lingering import Lingering

LARGEST_HEAD = 1 << 16  # bytes of URL and headers
MOST_HEADERS = 256
_HEADER_BYTES = 144  # of memory, even of an empty one
MOST_OF_HEADS = 1 << 26  # bytes of memory for all heads of a process that have not come whole
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
    """Whose head has not come whole."""

    def refuse_large_head(self) -> None:
        """End it with an answer that says so."""


class UnfinishedHeads:
    """Those of a process."""

    def __init__(self, most_bytes: int = MOST_OF_HEADS) -> None:
        self._most_bytes = most_bytes
        self._sizes: dict[Connection, int] = {}
        self._total = 0

    def keep(self, connection: Connection, size: int) -> None:
        """Its head takes so many bytes, and is not whole."""
        self.forget(connection)
        self._sizes[connection] = size
        self._total += size
        while self._total > self._most_bytes:
            largest = max(self._sizes, key=self._sizes.__getitem__)
            self.forget(largest)
            largest.refuse_large_head()

    def forget(self, connection: Connection) -> None:
        """Its head is whole, or it has ended."""
        self._total -= self._sizes.pop(connection, 0)
