"""Server-sent events. In: an async iterator of events. Out: a `text/event-stream` response that ends cleanly.

It ends with the iterator; with an event `error` when the iterator fails, the deadline passes, or the service shuts
down; and at once when the client leaves. A client that stays and does not read gets no event after its deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.call import call_of
from service.errors import SHUTTING_DOWN, TOOK_TOO_LONG, DeadlinePassed, NotReady, Problem, internal_error, problem_body
from service.routes.requests import finish

MEDIA_TYPE = "text/event-stream"
_LAST_EVENT_S = 1.0  # for a client that does not read: its deadline may have passed, and nothing else ends the sending


def event(name: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY))


class EventStream(Response):
    """A response whose body is `events`, each sent as soon as it is there.

    `on_end` is called when it ends, also where it ends before the iterator begins, whose own `finally` never runs then.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        request: Request,
        events: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        # x-accel-buffering: nginx would otherwise hold events back.
        super().__init__(headers={"x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._request = request
        self._events = events
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._respond(send)
        finally:
            self._on_end()

    async def _respond(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = b""
        try:
            await finish([asyncio.get_running_loop().create_task(self._send_all(send))], self._request)
        except Problem as problem:
            last = self._error(problem)
            raise
        except asyncio.CancelledError:
            last = self._error(self._why_cancelled())
            raise
        except Exception:
            last = self._error(internal_error())
            raise
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_EVENT_S if last else None):
                    await send({"type": "http.response.body", "body": last})

    async def _send_all(self, send: Send) -> None:
        try:
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            await self._events.aclose()

    def _why_cancelled(self) -> Problem:
        if call_of(self._request.scope).timer.expired():
            return DeadlinePassed(TOOK_TOO_LONG)
        return NotReady(SHUTTING_DOWN)

    def _error(self, problem: Problem) -> bytes:
        return event("error", problem_body(problem, call_of(self._request.scope).request_id))
