"""Reading a request within its limits: the query, the body, and work that is given up when nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.types import Receive

from service.errors import BodyTooLarge, ClientClosed, DeadlinePassed, InvalidParameter, MalformedRequest

_WATCH_AFTER_S = 0.02  # watching a client costs a task; an answer that is faster than this never pays for it


def read_query(request: Request, allowed: Collection[str]) -> dict[str, str]:
    """The query's parameters, each at most once.

    Raises:
        InvalidParameter: one that is not in `allowed`, or twice.
    """
    raw = request.scope["query_string"]
    if not raw:
        return {}
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True)
    query = dict(pairs)
    unknown = [name[:40] for name in query if name not in allowed]
    if unknown or len(query) != len(pairs):
        raise InvalidParameter(f"This route takes {', '.join(allowed)}, each once; not {unknown or 'several'}.")
    return query


async def read_body(request: Request, max_bytes: int, deadline: float) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: more than `max_bytes`, by Content-Length or by count. MalformedRequest: nothing in it.
        DeadlinePassed, ClientClosed: it has not come whole in time.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise BodyTooLarge(f"At most {max_bytes} bytes a request, not {announced}.")
    message = await _first(request.receive, deadline)
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        body = await _rest(request.receive, body, max_bytes, deadline)
    if len(body) > max_bytes:
        raise BodyTooLarge(f"At most {max_bytes} bytes a request.")
    if not body:
        raise MalformedRequest("The body is empty; send a picture or codes in it.")
    return body


async def _rest(receive: Receive, start: bytes, max_bytes: int, deadline: float) -> bytes:
    chunks, size, more = [start], len(start), True
    while more:
        message = await _first(receive, deadline)
        chunk = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(f"At most {max_bytes} bytes a request.")
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _first(receive: Receive, deadline: float) -> Any:
    try:
        async with asyncio.timeout_at(deadline):
            message = await receive()
    except TimeoutError:
        raise DeadlinePassed("The body did not arrive in time; send it faster.", {"Connection": "close"}) from None
    if message["type"] == "http.disconnect":
        raise ClientClosed("The client left before the body was complete.")
    return message


async def finish(futures: Sequence[asyncio.Future[Any]], receive: Receive, deadline: float) -> list[Any]:
    """The results of the futures. None of them goes on when the deadline passes or the client leaves.

    Raises:
        DeadlinePassed, ClientClosed, and whatever the futures raise.
    """
    loop = asyncio.get_running_loop()
    watch: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout_at(deadline) as timer:
            watcher = loop.call_later(
                _WATCH_AFTER_S, lambda: watch.append(loop.create_task(_when_gone(receive, timer)))
            )
            try:
                return [await future for future in futures]
            finally:
                watcher.cancel()
    except TimeoutError:
        if watch and watch[0].done():
            raise ClientClosed("The client closed the connection.") from None
        raise DeadlinePassed("The answer took longer than the deadline allows; send less, or try later.") from None
    finally:
        for unfinished in (*watch, *futures):
            unfinished.cancel()


async def _when_gone(receive: Receive, timer: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    timer.reschedule(asyncio.get_running_loop().time())
