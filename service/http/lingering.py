"""uvicorn's HTTP protocol, for connections that end while the client still sends.

A connection that is closed with unread bytes is reset, and the client may never read its answer. So it stays, says that
no more will be written, and drops what comes until nothing does.
"""

from __future__ import annotations

from service.http.pipelining import Pipelining

_LINGER_S = 1.0  # of silence end it
MOST_LINGER_S = 30.0


class Lingering(Pipelining):
    """`_deaf` is for whoever reads: then whatever comes is dropped, and noted as `_heard`."""

    _deaf = False
    _heard = False

    def _linger(self, most_s: float = 0.0) -> None:
        """End it after a second of silence, or the first second that begins after so many."""
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self._end_if_silent, self.loop.time() + most_s)

    def _end_if_silent(self, end: float) -> None:
        if self._heard and self.loop.time() < end:
            self._heard = False
            self.loop.call_later(_LINGER_S, self._end_if_silent, end)
        else:
            self.transport.close()
