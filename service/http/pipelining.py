"""uvicorn's HTTP protocol, for clients that pipeline: they send requests before the one before has its answer.

In: the bytes of a connection. Out: at most `MOST_PIPELINED` requests wait for their turn, and the one whose turn it is
hears that its client has left: uvicorn tells only the newest. Of what waits little is read, and none begins while the
client does not read the answers before. A request that is answered before it has come whole is the connection's last.
Also here: HTTP/1.0, which has no chunks for answers of unknown length and no `100 Continue`, HTTP/1.1, which has one
`Host`, targets in absolute form without a path, and those with a fragment, which are none.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

MOST_PIPELINED = 16  # behind the one that is being answered; each is kept with its head, and a read brings thousands


_AUTHORITY_ALONE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]+(?=\?|$)")
# of RFC 3986, 3.2.2: a name, also an empty one, or an address in brackets; and a port
_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[\w:.~!$&'()*+,;=-]+\])(?::[0-9]*)?")
_REST_COMES_S, _SHORT_REST = 0.05, 1 << 18  # how long, and for how many bytes, an answer waits for its request's rest


class _HeadError(Exception):
    """Stops the parser."""


class _Flow(FlowControl):
    """Does not read on while the bodies in `pipeline` are large: each answer, and each request that asks for its own
    body, lets uvicorn read on, into the body of the newest."""

    def __init__(self, transport: asyncio.Transport, pipeline: deque[tuple[RequestResponseCycle, ASGI3Application]]):
        super().__init__(transport)
        self._pipeline = pipeline

    @property
    def waiting_bytes(self) -> int:
        return sum(len(cycle.body) for cycle, _ in self._pipeline)

    def resume_reading(self) -> None:
        if self.waiting_bytes <= HIGH_WATER_LIMIT:
            super().resume_reading()


class Pipelining(HttpToolsProtocol):
    """One request is answered, and those of `pipeline` wait."""

    _answering: RequestResponseCycle | None = None  # the last one that began
    _within = False  # a message: its first byte has been read and not its last
    flow: _Flow

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._waiting_heads: dict[RequestResponseCycle, int] = {}  # bytes of memory, of those that have not begun
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)

    def connection_lost(self, exc: Exception | None) -> None:
        answering = self._answering
        if answering is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()
        for waiting in self._waiting_heads:  # they never begin: only the garbage collector would free them and this
            waiting.on_response = lambda: None
        self.pipeline.clear()
        self._waiting_heads.clear()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        if b"#" in self.url:  # RFC 9112, 3.2
            raise _HeadError
        alone = _AUTHORITY_ALONE.match(self.url)
        if alone is not None:  # `http://host?x=1` has the path / (RFC 9112, 3.2.2)
            self.url = b"%b/%b" % (alone[0], self.url[alone.end() :])
        hosts = [value for name, value in self.headers if name == b"host"]
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # such a client takes that for the answer (RFC 9110, 10.1.1)
            hosts = hosts or [b""]  # it need not name one
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):  # RFC 9112, 3.2
            raise _HeadError
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        answering = app if cycle.scope["http_version"] == "1.1" else _without_chunks(app, cycle)

        async def run(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            task = cast("asyncio.Task[None]", asyncio.current_task())
            try:
                if self.flow.write_paused:  # it would be inside until its client reads the answers before
                    self.tasks.discard(task)
                    await self.flow.drain()
                    self.tasks.add(task)
                self._has_begun(cycle)
                if not cycle.disconnected:
                    await answering(scope, receive, _closing(receive, send, cycle) if cycle.more_body else send)
            except asyncio.CancelledError:  # at the end; uvicorn would wait until the client reads a 500
                cycle.disconnected = True
                self.transport.abort()
            finally:
                # At once: the client's next request may be read before the task's end is told, and those that are
                # inside are counted by their tasks.
                self.tasks.discard(task)
                self._drop_head(cycle)

        super()._start_asgi_task(cycle, run)

    def _has_begun(self, cycle: RequestResponseCycle) -> None:
        """From now on its request is inside, which is bounded elsewhere."""
        self._waiting_heads.pop(cycle, None)

    def _drop_head(self, cycle: RequestResponseCycle) -> None:
        """Of a request that has its answer: the connection may be idle for long."""
        if cycle.response_complete:
            cycle.body.clear()
            if cycle is self.cycle and not self._within:
                self.scope.clear()  # type: ignore[attr-defined]
                self.headers, self.url = [], b""


def _closing(receive: ASGIReceiveCallable, send: ASGISendCallable, cycle: RequestResponseCycle) -> ASGISendCallable:
    """`send`, whose answer says that the connection ends where the request has not come whole (RFC 9110, 10.1.1). What
    is under way, as a body is that follows its head in a packet of its own, may come first."""

    async def send_last(message: ASGISendEvent) -> None:
        if cycle.more_body and not cycle.response_started:
            await _let_it_come(receive, cycle)
            cycle.keep_alive = cycle.keep_alive and not cycle.more_body
        await send(message)

    return send_last


async def _let_it_come(receive: ASGIReceiveCallable, cycle: RequestResponseCycle) -> None:
    """Wait for the rest of a short request, for a moment."""
    task = cast("asyncio.Task[None]", asyncio.current_task())
    if cycle.waiting_for_100_continue or task.cancelling():  # it waits for us; the server waits no longer
        return
    came = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_REST_COMES_S):
            while cycle.more_body and not cycle.disconnected and came <= _SHORT_REST:
                message = await receive()
                came += len(message["body"]) if message["type"] == "http.request" else 0


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
