"""Calls of `AsyncClient` that are cancelled, at every turn of the event loop: nothing of them stays in its pool."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from tests.client.scripted import DONE
from tests.client.test_streams import ROWS, events
from vqserve import AsyncClient

TURNS = 40  # more than a call takes here
MODELS = json.dumps({"default": "mnist", "models": []}).encode()
EVENTS = events(*ROWS, ("done", DONE)).encode()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Each request of a connection; a stream comes in two pieces."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            is_stream = head.startswith(b"POST")
            if is_stream:
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                await reader.readexactly(length)
            body, kind = (EVENTS, b"text/event-stream") if is_stream else (MODELS, b"application/json")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)))
            writer.write(body[:20])
            await asyncio.sleep(0)
            writer.write(body[20:])
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has gone
    finally:
        writer.close()


async def models(client: AsyncClient) -> None:
    await client.models()


async def stream(client: AsyncClient) -> None:
    async for _ in client.stream(n=1, seed=7):
        pass


async def left_by(call: Callable[[AsyncClient], Awaitable[None]], url: str, turns: int, kept: bool) -> tuple[int, bool]:
    """Requests in the pool after a call that is cancelled after so many turns, and whether all connections are idle."""
    async with AsyncClient(url) as client:
        if kept:
            await client.models()
        task = asyncio.ensure_future(call(client))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.01)
        pool = client._http._transport._pool  # type: ignore[attr-defined]
        return len(pool._requests), all(one.is_idle() for one in pool.connections)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("call", [models, stream])
def test_a_cancelled_call_leaves_nothing_in_the_pool(
    call: Callable[[AsyncClient], Awaitable[None]], kept: bool
) -> None:
    """Of one under `asyncio.timeout` a connection could stay there, which nothing used or closed any more, or what it
    had sent: of 8,000 calls 36 connections and 11 pictures."""

    async def sweep() -> dict[int, tuple[int, bool]]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            return {turns: await left_by(call, url, turns, kept) for turns in range(TURNS)}
        finally:
            server.close()
            await asyncio.sleep(0.1)  # the last connections end

    left = asyncio.run(sweep())
    assert {turns: one for turns, one in left.items() if one != (0, True)} == {}
