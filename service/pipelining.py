"""uvicorn's HTTP protocol, for clients that pipeline: they send requests before the one before has its answer.

In: the bytes of a connection. Out: at most `MOST_PIPELINED` requests wait for their turn, and the one whose turn it is
hears that its client has left: uvicorn tells only the newest. Also here: answers of unknown length to HTTP/1.0, which
has no chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

MOST_PIPELINED = 16  # behind the one that is being answered; each is kept with its head, and a read brings thousands


class Pipelining(HttpToolsProtocol):
    """One request is answered, and those of `pipeline` wait."""

    _answering: RequestResponseCycle | None = None  # the last one that began

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in (self._answering, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app if cycle.scope["http_version"] == "1.1" else _without_chunks(app, cycle))


def _without_chunks(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """`app`, whose answers of unknown length end with the connection: HTTP/1.0 has no chunks (RFC 9112, 6.1)."""

    async def run(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        unknown = False

        async def send_plain(message: ASGISendEvent) -> None:
            nonlocal unknown
            if message["type"] == "http.response.start":
                unknown = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if unknown:
                    cycle.chunked_encoding = cycle.keep_alive = False
            elif unknown and message["type"] == "http.response.body":
                cycle.expected_content_length = len(message.get("body", b""))  # of what was announced: each piece fits
            await send(message)

        await app(scope, receive, send_plain)

    return run
