"""uvicorn's HTTP protocol, for requests that ask for another protocol: the wish is ignored.

In: the bytes of a connection. Out: the parser has read all of them; it stops after a head that has such a wish.
"""

from __future__ import annotations

import httptools

from service.http.head_bounds import HeadBounds

FRAMING = (b"content-length", b"transfer-encoding")  # headers that say where a body ends


class Upgrades(HeadBounds):
    """Reads on with another parser (RFC 9110, 7.8)."""

    _interrupted = False  # the parser has stopped after such a head; its body still comes

    def _feed(self, data: bytes) -> None:
        """Raises httptools.HttpParserError."""
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                self._stay_with_http()

    def _stay_with_http(self) -> None:
        """Another parser reads, first, where there is one, the body."""
        self.parser = httptools.HttpRequestParser(self)
        if self._interrupted:
            framing = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] in FRAMING)
            self._repeating = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)
            self._interrupted = self._repeating = False
