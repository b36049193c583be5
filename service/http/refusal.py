"""Refusing early. In: the head of a request, while the door (`service.inference.overload`) is closed. Out: a 429.

What the middleware refuses has had a scope, a task and a response made for it: a service that is offered several times
what it can answer would do little but refuse. Here nothing is made but the answer, by the protocol itself, and most
requests need not even be parsed: they come whole in one read, and a few of their bytes say that they can be dropped.
The middleware refuses the rest: what has a large body, or one of unknown length. Also here: the answers to heads that
are too large or too slow, which no app ever sees.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from time import perf_counter

import orjson
from prometheus_client import Counter, Histogram
from starlette.types import Scope

from service.call import RequestIds, answered_below
from service.errors import (
    MEDIA_TYPE,
    HeadTooLarge,
    HeadTooSlow,
    MalformedRequest,
    Problem,
    QueueFull,
    problem_body,
)
from service.http.head_bounds import LARGEST_HEAD, MOST_HEADERS, Unbegun
from service.http.middleware import NO_STORE, OTHER, SECURITY_HEADERS
from service.http.upgrades import FRAMING
from service.inference.overload import WHY_SHORT, Door
from service.telemetry.logs import FIELDS
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

LARGEST_BODY = 1 << 16  # bytes that are read and dropped, so that the connection can be used again
_PLACE = "a-request-id"  # stands where the ids of requests will
Headers = Sequence[tuple[bytes, bytes]]
_REQUEST_LINE = re.compile(rb"[A-Z]+ (/[^ ?#\r\n]*)(?:\?([^ \r\n]*))? HTTP/1\.1\r\n")
_TELLING = re.compile(  # headers that decide where the request ends, what becomes of the connection, or the answer
    rb"\r\n(content-length|transfer-encoding|expect|upgrade|connection|x-request-id)[ \t]*:[ \t]*([^\r\n]*)", re.I
)
_HEAD_END = b"\r\n\r\n"
_FIXED = b"".join(
    b"%b: %b\r\n" % pair for pair in (*SECURITY_HEADERS, NO_STORE, (b"content-type", MEDIA_TYPE.encode()))
)


class EarlyRefusal:
    """`routes` are the paths without parameters that have to wait their turn, and how metrics name them."""

    def __init__(
        self, door: Door, metrics: Metrics, routes: Mapping[str, str], draining: Callable[[], bool] = lambda: False
    ) -> None:
        self._door = door
        self._draining = draining  # then the middleware has another answer
        self._ids = RequestIds()
        self._reasons = metrics.refused.labels(QueueFull.slug)
        self._sent = metrics.sent
        self._templates = {reason: _Template(QueueFull.for_now(reason)) for reason in (door.why_full, WHY_SHORT)}
        self._routes: dict[bytes, tuple[Counter, Histogram]] = {
            path.encode(): (
                metrics.requests.labels(route, str(QueueFull.status)),
                metrics.request_seconds.labels(route),
            )
            for path, route in routes.items()
        }

    def of_whole(self, inside: int, data: bytes) -> bytes | None:
        """The answer, where `data` is one whole request, from its first byte to its last, and has to be refused; None
        where the parser has to look."""
        if not self._door.may_be_closed(inside):
            return None
        line = _REQUEST_LINE.match(data)
        if line is None or line[1] not in self._routes or data.startswith(b"HEAD") or self._draining():
            return None
        path, query = line[1], line[2] or b""
        reason = self._door.why_closed(inside, path.decode(), query)
        if reason is None:
            return None
        end = data.find(_HEAD_END)
        # A bare CR or LF is an error to the parser, but ends a line for some proxies.
        if not data.count(b"\n", 0, end) == data.count(b"\r", 0, end) == data.count(b"\r\n", 0, end):
            return None
        told = _TELLING.findall(data, line.end() - 2, end)  # no end: nothing is found, and the size does not fit
        given = {name.lower(): value.strip() for name, value in told}
        if len(given) != len(told) or given.pop(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        request_id, size = given.pop(b"x-request-id", b""), given.pop(b"content-length", b"0")
        body_bytes = len(data) - end - len(_HEAD_END)
        if given or size != str(body_bytes).encode():
            return None
        return self._answered(path, query, self._ids.of(request_id), perf_counter(), reason)

    def why(self, inside: int, url: bytes, headers: Headers) -> str | None:
        """Why the request whose head is this is to be refused now, if it is. Header names are in lower case."""
        path, _, query = url.partition(b"?")
        if self._draining() or path not in self._routes:
            return None
        reason = self._door.why_closed(inside, path.decode(), query)
        if reason is None:
            self._door.expect(path.decode())
        return reason if _is_small(headers) else None

    def answer(self, reason: str, url: bytes, headers: Headers, keep_alive: bool) -> bytes:
        """The whole answer, of what `why` has told; the request is counted as every other is."""
        started = perf_counter()
        request_id = self._ids.of(_given_id(headers))
        path, _, query = url.partition(b"?")
        return self._answered(path, query, request_id, started, reason, keep_alive=keep_alive)

    def _answered(
        self, path: bytes, query: bytes, request_id: str, started: float, reason: str, *, keep_alive: bool = True
    ) -> bytes:
        if keep_alive:
            head, body = self._templates[reason].filled(request_id)
        else:
            head, body = _head_and_body(QueueFull.for_now(reason), request_id, keep_alive=False)
        self._door.note(reason, path.decode(), query)
        requests, seconds = self._routes[path]
        requests.inc()
        seconds.observe(perf_counter() - started)
        self._reasons.inc()
        self._sent.inc(len(body))
        return head + body


class _Template:
    """An answer that keeps the connection, made once: all but the request's id and the length that follows from it."""

    def __init__(self, problem: Problem) -> None:
        head, body = _head_and_body(problem, _PLACE, keep_alive=True)
        place, length = _PLACE.encode(), str(len(body)).encode()
        self._body = body.replace(place, b"%b")
        self._fixed_bytes = len(body) - len(place)
        self._head = head.replace(b"x-request-id: " + place, b"x-request-id: %b").replace(
            b"content-length: " + length, b"content-length: %d"
        )

    def filled(self, request_id: str) -> tuple[bytes, bytes]:
        """Head and body, as `_head_and_body` makes them."""
        given = request_id.encode()
        return self._head % (given, self._fixed_bytes + len(given)), self._body % given


class Heads:
    """What becomes of a head, complete or not, that is too large, takes longer than `timeout_s`, or is none.

    Also of a body whose framing is broken. Each takes the headers that have come, for the request's id.
    """

    def __init__(self, timeout_s: float, metrics: Metrics, access_log: bool = False) -> None:
        self.timeout_s = timeout_s
        self._ids = RequestIds()
        self._refused = metrics.refused
        self._requests = metrics.requests
        self._sent = metrics.sent
        self._access_log = access_log
        self.unbegun = Unbegun()

    def too_large(self, headers: Headers) -> bytes:
        """A 431, after which the connection ends, as after each of these."""
        most = f"At most {LARGEST_HEAD} bytes of URL and headers, and {MOST_HEADERS} headers"
        return self._answer(HeadTooLarge(f"{most}; put what is large into the body."), headers)

    def too_slow(self, headers: Headers) -> bytes:
        """A 408."""
        return self._answer(HeadTooSlow(f"URL and headers may take {self.timeout_s:g} s to come."), headers)

    def malformed(self, headers: Headers) -> bytes:
        """A 400."""
        text = "The head is none of HTTP/1.1: check its method, its target, its one Host, and how it frames the body."
        return self._answer(MalformedRequest(text), headers)

    def malformed_body(self, scope: Scope, headers: Headers) -> bytes:
        """A 400. Not counted here: the app does it, when it hears that the connection has ended."""
        problem = MalformedRequest("The body is not framed as HTTP/1.1 says.")
        return b"".join(_last(problem, answered_below(scope, problem, self._ids.of(_given_id(headers)))))

    def _answer(self, problem: Problem, headers: Headers) -> bytes:
        self._refused.labels(problem.slug).inc()
        self._requests.labels(OTHER, str(problem.status)).inc()
        request_id = self._ids.of(_given_id(headers))
        if self._access_log:  # the rest is null, even where it had come
            unknown = dict.fromkeys(("trace_id", "key", "method", "path", "ms"))
            log.info("request", extra={FIELDS: {"request_id": request_id, "status": problem.status, **unknown}})
        head, body = _last(problem, request_id)
        self._sent.inc(len(body))
        return head + body


def _last(problem: Problem, request_id: str) -> tuple[bytes, bytes]:
    """As `_head_and_body`, of the last answer of a connection, whose request may be one of /v2."""
    return _head_and_body(problem, request_id, keep_alive=False, protocol=True)


def _head_and_body(problem: Problem, request_id: str, keep_alive: bool, protocol: bool = False) -> tuple[bytes, bytes]:
    """Its head, with the headers that every answer has, and its body, with `protocol` as of `problem_body`."""
    body = orjson.dumps(problem_body(problem, request_id, protocol))
    lines = {**problem.headers, "x-request-id": request_id, "content-length": str(len(body))}
    if not keep_alive:
        lines["connection"] = "close"
    first = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
    rest = "".join(f"{name.lower()}: {value}\r\n" for name, value in lines.items())
    return b"%b%b%b\r\n" % (first.encode(), _FIXED, rest.encode()), body


def _given_id(headers: Headers) -> bytes:
    return next((value for name, value in headers if name == b"x-request-id"), b"")


def has_body(headers: Headers) -> bool:
    """Whether these headers announce a body of more than nothing."""
    return any(name in FRAMING and value.strip(b"0 ") for name, value in headers)


def _is_small(headers: Headers) -> bool:
    """A body of a known, small size that comes without being asked for."""
    size = 0
    for name, value in headers:
        if name == b"content-length":
            size = int(value) if value.isdigit() else LARGEST_BODY + 1
        elif name in (b"transfer-encoding", b"expect", b"upgrade"):
            return False
    return size <= LARGEST_BODY
