"""Refusing early. In: the head of a request, while as many are inside as may be. Out: the bytes of a 429.

What the middleware refuses has had a scope, a task and a response made for it: a service that is offered several times
what it can answer would do little but refuse. Here nothing is made but the answer, by the protocol itself. The
middleware refuses the rest: what has a large body, or one of unknown length. Also here: the 431 for a head that is too
large, which no app ever sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from time import perf_counter

import orjson
from prometheus_client import Counter, Histogram

from service.call import RequestIds
from service.errors import MEDIA_TYPE, HeadTooLarge, Problem, QueueFull, problem_body
from service.metrics import Metrics
from service.middleware import SECURITY_HEADERS, full

LARGEST_BODY = 1 << 16  # bytes that are read and dropped, so that the connection can be used again
LARGEST_HEAD = 1 << 16  # bytes of URL and headers
Headers = Sequence[tuple[bytes, bytes]]
_FIXED = b"".join(b"%b: %b\r\n" % pair for pair in (*SECURITY_HEADERS, (b"content-type", MEDIA_TYPE.encode())))


class EarlyRefusal:
    """`routes` are the paths without parameters that have to wait their turn, and how metrics name them."""

    def __init__(self, most: int, metrics: Metrics, routes: Mapping[str, str]) -> None:
        self._most = most
        self._ids = RequestIds()
        self._reasons = metrics.refused.labels(QueueFull.slug)
        self._sent = metrics.sent
        self._routes: dict[bytes, tuple[Counter, Histogram]] = {
            path.encode(): (
                metrics.requests.labels(route, str(QueueFull.status)),
                metrics.request_seconds.labels(route),
            )
            for path, route in routes.items()
        }

    def takes(self, inside: int, url: bytes, headers: Headers) -> bool:
        """Whether the request whose head is this is to be refused now. Header names are in lower case."""
        return inside >= self._most and url.partition(b"?")[0] in self._routes and _is_small(headers)

    def answer(self, url: bytes, headers: Headers, keep_alive: bool) -> bytes:
        """The whole answer; the request is counted as every other is."""
        started = perf_counter()
        request_id = self._ids.of(next((value for name, value in headers if name == b"x-request-id"), b""))
        head, body = _answer(full(self._most), request_id, keep_alive)
        requests, seconds = self._routes[url.partition(b"?")[0]]
        requests.inc()
        seconds.observe(perf_counter() - started)
        self._reasons.inc()
        self._sent.inc(len(body))
        return head + body


def head_too_large() -> bytes:
    """The answer to a head of more than `LARGEST_HEAD` bytes, complete or not."""
    problem = HeadTooLarge(f"At most {LARGEST_HEAD} bytes of URL and headers; put what is large into the body.")
    return b"".join(_answer(problem, RequestIds().of(b""), keep_alive=False))


def _answer(problem: Problem, request_id: str, keep_alive: bool) -> tuple[bytes, bytes]:
    """Its head, with the headers that every answer has, and its body."""
    body = orjson.dumps(problem_body(problem, request_id))
    lines = {**problem.headers, "x-request-id": request_id, "content-length": str(len(body))}
    if not keep_alive:
        lines["connection"] = "close"
    first = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
    rest = "".join(f"{name.lower()}: {value}\r\n" for name, value in lines.items())
    return b"%b%b%b\r\n" % (first.encode(), _FIXED, rest.encode()), body


def _is_small(headers: Headers) -> bool:
    """A body of a known, small size that comes without being asked for."""
    size = 0
    for name, value in headers:
        if name == b"content-length":
            size = int(value) if value.isdigit() else LARGEST_BODY + 1
        elif name in (b"transfer-encoding", b"expect", b"upgrade"):
            return False
    return size <= LARGEST_BODY
