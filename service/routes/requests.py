"""Reading a request within its limits: the query, the body, and work that is given up when nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from time import perf_counter
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

from starlette.requests import Request

from service.call import call_of
from service.errors import BodyTooLarge, ClientClosed, InvalidParameter, MalformedRequest, UnsupportedMediaType
from service.routes.service import Service

T = TypeVar("T")

INLINE_JSON_BYTES = 1 << 16  # about a millisecond of parsing; more goes to a thread
_MOST_QUERY_FIELDS = 32  # no route has so many; a head has room for tens of thousands
_WATCH_AFTER_S = 0.02  # watching a client costs a task; an answer that is faster than this never pays for it


def read_query(request: Request, allowed: Collection[str]) -> dict[str, str]:
    """The query's parameters, each at most once.

    Raises:
        InvalidParameter: one that is not in `allowed`, or twice, or far too many.
    """
    raw = request.scope["query_string"]
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_QUERY_FIELDS)
    except ValueError as error:
        raise InvalidParameter(f"The query has more than {_MOST_QUERY_FIELDS} fields.") from error
    query = dict(pairs)
    unknown = next((name for name in query if name not in allowed), None)
    if unknown is not None:
        there_are = f"there are {', '.join(allowed)}" if allowed else "this route has none"
        raise InvalidParameter(f"Unknown query field {unknown[:40]!r}; {there_are}.")
    if len(query) != len(pairs):
        raise InvalidParameter("A query field comes twice; give each once.")
    return query


async def read_body(
    request: Request, service: Service, on_failure: Callable[[str, float, float], None] | None = None
) -> bytes:
    """As `read_optional_body`. `on_failure` is called with "read" and when it began and ended where the body was not
    read whole, be it for the deadline. Raises MalformedRequest as well: there is nothing in it."""
    started = perf_counter()
    try:
        body = await read_optional_body(request, service)
    except BaseException:
        if on_failure is not None:
            on_failure("read", started, perf_counter())
        raise
    if not body:
        raise MalformedRequest("The body is empty; send what this route takes in it, to /generate at least {}.")
    return body


async def read_optional_body(request: Request, service: Service) -> bytes:
    """The whole body, which counts as inside the service until the request has its answer.

    Raises:
        BodyTooLarge: more than `max_body_bytes`, by Content-Length or by count. UnsupportedMediaType: it is compressed.
        QueueFull: with the other bodies it is more than may be inside. ClientClosed: the client has left.
    """
    max_bytes = service.settings.max_body_bytes
    codings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    framing = request.headers.get("transfer-encoding", "chunked").strip().lower()
    if framing != "chunked" or any(coding.strip() not in ("identity", "") for coding in codings):
        raise UnsupportedMediaType("Send the body without compression.")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise BodyTooLarge(f"At most {max_bytes} bytes a request, not {announced}.")
    body, more = await _next_chunk(request, service)
    if more:
        # One growing block goes back to the system as a whole; many small ones would leave the heap full of holes.
        block = bytearray(body)
        while more and len(block) <= max_bytes:
            chunk, more = await _next_chunk(request, service)
            block += chunk
        body = bytes(block)
    if len(body) > max_bytes:
        raise BodyTooLarge(f"At most {max_bytes} bytes a request.")
    return body


async def _next_chunk(request: Request, service: Service) -> tuple[bytes, bool]:
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientClosed("The client left before the body was complete.")
    chunk: bytes = message.get("body", b"")
    service.metrics.received.inc(len(chunk))
    service.take_in(call_of(request.scope), len(chunk))
    return chunk, message.get("more_body", False)


async def finish(futures: Sequence[asyncio.Future[Any]], request: Request) -> list[Any]:
    """The results of the futures, which are given up when the request ends first: its deadline, or its client gone."""
    loop = asyncio.get_running_loop()
    watch: list[asyncio.Task[None]] = []
    watcher = loop.call_later(_WATCH_AFTER_S, lambda: watch.append(loop.create_task(_end_when_gone(request))))
    try:
        return [await future for future in futures]
    finally:
        watcher.cancel()
        for unfinished in (*watch, *futures):
            unfinished.cancel()


async def read_json_here_or_in_thread(read: Callable[[], T], size: int, request: Request, service: Service) -> T:
    """The result of `read`, which runs here where it has at most `INLINE_JSON_BYTES` to read."""
    if size <= INLINE_JSON_BYTES:
        return read()
    (result,) = await finish([service.in_thread(read, size)], request)
    return cast(T, result)


async def _end_when_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    call = call_of(request.scope)
    call.client_left = True
    call.timer.reschedule(asyncio.get_running_loop().time())
