"""What happens to every request, as plain ASGI: no task, no thread and no queue of its own.

From the outside in: `Observe` (identity, headers, metrics, timing, log), `Problems` (exceptions become answers),
`Admission` (drain and concurrency), `ApiKeys`, `Direct` (the handlers of most routes; the router behind it has the
others). Tracing and CORS, where they are asked for, stand between the first two.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from time import perf_counter

from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.bundle import BundleError
from service.call import Call, RequestIds, Stage, call_of, noted_stages, remember, server_timing
from service.errors import (
    SHUTTING_DOWN,
    TOOK_TOO_LONG,
    ClientClosed,
    DeadlinePassed,
    MalformedRequest,
    MethodNotAllowed,
    NotReady,
    Problem,
    QueueFull,
    UnknownRoute,
    internal_error,
    problem_response,
)
from service.inference.overload import Door
from service.inference.sessions import DeviceError
from service.routes.endpoints import Handler
from service.telemetry.logs import FIELDS
from service.telemetry.metric_files import CountsError
from service.telemetry.metrics import Metrics
from service.threads import NoThread

log = logging.getLogger(__name__)

# Probes and the scraper are not told to wait and need no key: they must see a service that is full or draining.
ALWAYS_OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
OTHER = "other"  # every other route
_LOGGED_PATH = 1000  # characters: a stranger's may have 64 KiB, and twice as many with their escapes
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# Else a cache in front may keep what one caller got with a key, and give it to others.
NO_STORE = (b"cache-control", b"no-store")
# W3C Trace Context: version ff is forbidden, version 00 ends with the flags, later ones may go on.
_TRACEPARENT = re.compile(
    rb"(?:(?=.{55}$)00|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


@dataclass(frozen=True)
class Routes:
    """How metrics and spans name routes: by patterns, so that names stay few. What CORS answers (OPTIONS) has none."""

    patterns: Mapping[Handler, str]
    paths: Collection[str]  # without parameters: known even where a request is refused before it has a handler

    def of(self, scope: Scope) -> str:
        if "endpoint" in scope:
            return self.patterns.get(scope["endpoint"], OTHER)
        return scope["path"] if scope["path"] in self.paths and scope["method"] != "OPTIONS" else OTHER


class Observe:
    """Gives each request its id, measures it, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, metrics: Metrics, deadline_s: float, access_log: bool, routes: Routes) -> None:
        self._app = app
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._access_log = access_log
        self._routes = routes
        self._ids = RequestIds()
        self._seconds: dict[str, Histogram] = {}
        self._requests: dict[tuple[str, int], Counter] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, _one_sentence(send))
            return
        call = self._identify(scope)
        remember(scope, call)
        extra = (*SECURITY_HEADERS, (b"x-request-id", call.request_id.encode()))
        status, sent_bytes = 500, 0
        silent = scope["method"] == "HEAD"  # the server drops its body
        asked = call.stages is not None  # a trace below may note stages too, which is not the sender's business

        async def send_observed(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = [*message["headers"], *extra]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append(NO_STORE)
                if asked and call.stages:
                    headers.append((b"server-timing", server_timing(call.stages)))
            elif not (silent or call.client_left or status == ClientClosed.status):
                sent_bytes += len(message.get("body", b""))
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_observed)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.sent.inc(sent_bytes)
            self._record(scope, call, call.failed_status or status)

    def _identify(self, scope: Scope) -> Call:
        given, trace = b"", b""
        stages: list[Stage] | None = None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = given or value  # the first one, as in `service.http.refusal`
            elif name == b"traceparent":
                trace = value
            elif name == b"x-server-timing" and value == b"1":
                stages = []
        noted_stages.set(stages)  # also None: a pipelined request inherits the context of the one before it
        parent = _TRACEPARENT.fullmatch(trace) if trace else None
        timer = asyncio.timeout(self._deadline_s)  # counts from here, entered by `Problems`
        return Call(self._ids.of(given), parent[1].decode() if parent else None, perf_counter(), timer, stages=stages)

    def _record(self, scope: Scope, call: Call, status: int) -> None:
        route = self._routes.of(scope)
        seconds = perf_counter() - call.started
        if route not in self._seconds:
            self._seconds[route] = self._metrics.request_seconds.labels(route)
        if (route, status) not in self._requests:
            self._requests[route, status] = self._metrics.requests.labels(route, str(status))
        self._seconds[route].observe(seconds)
        self._requests[route, status].inc()
        if self._access_log:
            fields = {
                "request_id": call.request_id,
                "trace_id": call.trace_id,
                "key": call.key_name,
                "method": scope["method"],
                "path": scope["path"][:_LOGGED_PATH],
                "status": status,
                "ms": round(seconds * 1e3, 3),
            }
            log.info("request", extra={FIELDS: fields})


# What prevents the start, and says why in a sentence.
START_FAULTS = (BundleError, DeviceError, CountsError, NoThread)


def _one_sentence(send: Send) -> Send:
    """Where one of them prevents the start, `service.app.open_service` has said why: the server gets nothing to log,
    which would be the whole traceback."""

    async def send_short(message: Message) -> None:
        # Starlette sends this while it handles what the lifespan has raised.
        if message["type"] == "lifespan.startup.failed" and isinstance(sys.exception(), START_FAULTS):
            message = {"type": message["type"]}
        await send(message)

    return send_short


class Problems:
    """Turns every exception into a problem document, and ends a request at its deadline.

    What is not a `Problem` is logged and answered with a bare 500.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, protocol_prefix: str) -> None:
        self._app = app
        self._metrics = metrics
        self._protocol_prefix = protocol_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, ended, call = False, False, call_of(scope)
        problem: Problem | None = None

        async def send_watched(message: Message) -> None:
            nonlocal started, ended
            await send(message)  # may wait until the client has read the answers before, and end there
            started, ended = True, message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            async with call.timer:
                await self._app(scope, receive, send_watched)
        except Problem as caught:
            problem = caught
        except asyncio.CancelledError:  # by the server, at the end of its grace
            if started and not ended:
                raise
            problem = NotReady(SHUTTING_DOWN, {"Connection": "close"})
        except Exception as error:  # noqa: BLE001 - the last place where a fault can still become an answer
            problem = self._of(error, call, scope["path"])
        if (problem := call.answered_with or problem) is None:  # to the app the first is a client that has left
            return
        self._metrics.refused.labels(problem.slug).inc()
        # Its frames lead to the body and what was made of it, and from this frame back to it: only the garbage
        # collector would free them.
        problem.__traceback__ = problem.__cause__ = problem.__context__ = None
        if started:  # half an answer cannot be taken back; the server closes the connection
            call.failed_status = problem.status
        else:
            protocol = scope["path"].startswith(self._protocol_prefix)
            await problem_response(problem, call.request_id, protocol)(scope, receive, send)

    def _of(self, error: Exception, call: Call, path: str) -> Problem:
        if isinstance(error, TimeoutError) and call.timer.expired():
            if call.client_left:
                return ClientClosed("The client closed the connection.")
            return DeadlinePassed(TOOK_TOO_LONG)
        fields = {"request_id": call.request_id, "trace_id": call.trace_id, "path": path[:_LOGGED_PATH]}
        log.error("unhandled error", exc_info=error, extra={FIELDS: fields})
        return internal_error()


def http_problem(error: HTTPException) -> Problem:
    """What the router and the framework raise, as one of ours."""
    if error.status_code == 404:
        return UnknownRoute("There is no such route; GET /openapi.json lists them.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method").split(", ")
        return MethodNotAllowed(f"This route takes {' or '.join(sorted(allowed))}.", error.headers)
    return MalformedRequest(str(error.detail))


class Admission:
    """Lets in whom the door is open to, and nobody while the service drains."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS_OPEN:
            await self._app(scope, receive, send)
            return
        service = scope["app"].state.service
        if service.draining:
            raise NotReady(SHUTTING_DOWN, {"Connection": "close"})
        path, query = scope["path"], scope["query_string"]
        reason = self._door.why_closed(self._inside, path, query)
        self._door.note(reason, path, query)
        if reason is not None:
            raise QueueFull.for_now(reason)
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1
            service.let_go(call_of(scope))


class Direct:
    """Calls the handler of a path without parameters. Everything else goes on to the framework's layers and its router,
    which would take longer than the rest of the service takes for a small picture."""

    def __init__(self, app: ASGIApp, handlers: Mapping[tuple[str, str], Handler]) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        scope["endpoint"] = handler
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)
