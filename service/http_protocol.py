"""uvicorn's HTTP protocol, with the head and the body of an answer in one packet, and refusals that cost little.

In: what the app sends, in two messages at least. Out: one system call for an answer that is sent at once, instead of
two, of which the first wakes the client for a head without a body. Streams go out at the next turn of the event loop.
When too many requests are inside, the protocol refuses the next one itself (`service.refusal`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.refusal import EarlyRefusal

REFUSAL = "refusal"  # where the state that the app's lifespan yields holds its `EarlyRefusal`, if it has one


class JoiningTransport:
    """A transport that keeps what is written until `flush`, at the latest at the next turn of the event loop."""

    __slots__ = ("_loop", "_transport", "_waiting")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(data)

    def flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._transport.writelines(waiting)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class OnePacket(HttpToolsProtocol):
    """`transport` is a `JoiningTransport`; a complete answer does not wait for the next turn."""

    _refusing = False  # the message that is being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        self.transport.flush()  # type: ignore[attr-defined]
        super().on_response_complete()

    def on_headers_complete(self) -> None:
        self._refusing = self._to_be_refused()
        if not self._refusing:
            super().on_headers_complete()

    def _to_be_refused(self) -> bool:
        refusal: EarlyRefusal | None = self.app_state.get(REFUSAL)
        if refusal is None or not refusal.takes(len(self.tasks), self.url, self.headers):
            return False
        idle = self.cycle is None or self.cycle.response_complete  # else it is pipelined, and answers keep their order
        return idle and self.parser.get_method() != b"HEAD"  # whose answer has no body

    def on_body(self, body: bytes) -> None:
        if not self._refusing:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refusing:
            super().on_message_complete()
            return
        self._refusing = False
        keep_alive = self.parser.should_keep_alive()
        self.transport.write(self.app_state[REFUSAL].answer(self.url, self.headers, keep_alive))
        if keep_alive:
            self.on_response_complete()
        else:
            self.transport.close()
