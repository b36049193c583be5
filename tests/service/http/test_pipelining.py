"""Clients that pipeline: how many of their requests wait, and who hears that they have left. And those of HTTP/1.0."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from service.http.head_bounds import LARGEST_HEAD, Unbegun
from service.http.pipelining import MOST_PIPELINED, _Flow
from service.http.protocol import HEADS, UNREAD, OnePacket
from service.http.refusal import Heads
from service.http.unread import UnreadAnswers
from service.telemetry.metrics import Metrics
from tests.conftest import PICTURES
from tests.service.serving import post

DIGIT = (PICTURES / "digit_7.png").read_bytes()
PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def everything(connection: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_pipelined_requests_are_answered_in_order(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        ids = [f"id-{number}" for number in range(5)]
        sent = [post("/encode", DIGIT, "Content-Type: image/png", f"X-Request-ID: {one}") for one in ids]
        connection.sendall(b"".join(sent))
        received = b""
        while received.count(b"codebook_size") < len(ids):
            received += connection.recv(65536)
        assert [line.split(b": ")[1].decode() for line in received.split(b"\r\n") if b"x-request-id" in line] == ids


def test_as_many_requests_as_may_wait_are_answered_and_the_connection_stays(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        for _ in range(3):
            connection.sendall(PROBE * (1 + MOST_PIPELINED))
            received = b""
            while received.count(b'{"status":"ok"}') < 1 + MOST_PIPELINED:
                received += connection.recv(65536)
            assert received.count(b"HTTP/1.1 200") == 1 + MOST_PIPELINED and b"connection: close" not in received


@pytest.mark.parametrize("sent", [PROBE * (2 + MOST_PIPELINED), PROBE * 500_000], ids=["one more", "without end"])
def test_too_many_pipelined_requests_end_the_connection_with_the_answers_that_are_due(
    address: tuple[str, int], sent: bytes
) -> None:
    """They were all parsed and kept: one client took gigabytes, and the others waited for seconds."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(sent)  # all of it is read: with some left the answers would be lost
        *answers, last, nothing = everything(connection).split(b'{"status":"ok"}')
        assert len(answers) == MOST_PIPELINED and nothing == b""
    assert b"connection: close" in last and not any(b"connection: close" in one for one in answers)


@asynccontextmanager
async def answering(app: ASGIApp, unread_s: float = 10) -> AsyncIterator[tuple[str, int]]:
    """`app` behind the protocol in this event loop, and its address."""
    config, state = Config(app), ServerState()
    shared = {HEADS: Heads(10, Metrics()), UNREAD: UnreadAnswers(unread_s)}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: OnePacket(config, state, shared), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()
        for connection in state.connections:
            cast(OnePacket, connection).transport.abort()
        while state.connections:
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_large_heads_that_wait_for_their_turn_end_the_connection_sooner() -> None:
    """Each of the sixteen might have 64 KiB. Two have more than one may have, and the third is not read."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    asked = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        begun.set()
        await go_on.wait()
        await Response()(scope, receive, send)

    large = b"GET / HTTP/1.1\r\nHost: x\r\nPadding: " + b"p" * (LARGEST_HEAD * 9 // 10) + b"\r\n\r\n"
    async with answering(app) as address, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(PROBE + large + large + PROBE)
        await begun.wait()
        await asyncio.sleep(0.2)
        go_on.set()
        assert (await reader.read()).count(b"HTTP/1.1 200") == 3
        writer.close()
        for _ in range(30):  # with answers between them, waiting heads add up to nothing
            reader, writer = await asyncio.open_connection(*address)
            writer.write(large + large)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.write(large)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            for _ in range(2):
                writer.write(large + large)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()
    assert asked == 3 + 30 * 7


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.asyncio
async def test_a_connection_that_has_ended_does_not_wait_for_the_garbage_collector(reset: bool) -> None:
    """It and its transport kept each other, with up to 64 KiB that it had sent, and after a reset for as long as an
    idle one may live: 20,000 connections in succession took more than a container's gigabyte."""

    gc.collect()
    gc.disable()
    try:
        async with answering(Response(status_code=404)) as address, asyncio.timeout(20):
            for _ in range(20):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65000\r\n\r\n" + bytes(60_000))
                await reader.readuntil(b"\r\n\r\n")
                if reset:  # which the server hears as an error
                    client = writer.get_extra_info("socket")
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                else:
                    writer.close()
                    await writer.wait_closed()
            while sum(type(one) is OnePacket for one in gc.get_objects()) > 1:
                await asyncio.sleep(0.1)
    finally:
        gc.enable()


@pytest.mark.parametrize("ends", [False, True], ids=["the client leaves", "an answer ends the connection"])
@pytest.mark.asyncio
async def test_requests_that_never_begin_do_not_wait_for_the_garbage_collector(ends: bool) -> None:
    """Each kept its connection, and what had come of its body, and the collector seldom comes."""

    async def body_waits() -> None:
        while not any(type(one) is _Flow and one.waiting_bytes for one in gc.get_objects()):
            await asyncio.sleep(0.01)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if ends:
            await body_waits()
            await Response(status_code=503, headers={"connection": "close"})(scope, receive, send)
        else:
            while (await receive())["type"] != "http.disconnect":
                pass

    waiting = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65000\r\n\r\n" + bytes(20_000)
    gc.collect()
    gc.disable()
    try:
        async with answering(app) as address, asyncio.timeout(20):
            for _ in range(20):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(2 * PROBE + waiting)
                if ends:
                    await reader.read()
                else:
                    await body_waits()
                writer.close()
                await writer.wait_closed()
                while any(type(one) is OnePacket and one.parser is not None for one in gc.get_objects()):
                    await asyncio.sleep(0.01)
            alive = sum(type(one) in (OnePacket, RequestResponseCycle) for one in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 3  # of the last connection


@pytest.mark.asyncio
async def test_an_idle_connection_keeps_nothing_of_its_last_request() -> None:
    async with answering(Response()) as address, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(2):
            writer.write(b"GET /long HTTP/1.1\r\nHost: x\r\nPadding: pppp\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.05)
            (protocol,) = (one for one in gc.get_objects() if type(one) is OnePacket and one.parser is not None)
            assert (protocol.url, protocol.headers, protocol.scope, protocol.cycle.scope) == (b"", [], {}, {})
        writer.close()


@pytest.mark.asyncio
async def test_heads_that_have_not_come_whole_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was bounded, and held for a minute: a thousand took more than a gigabyte. The largest go."""

    monkeypatch.setattr("service.http.refusal.Unbegun", lambda: Unbegun(100_000))
    async with answering(Response()) as address, asyncio.timeout(10):
        opened = [await asyncio.open_connection(*address) for _ in range(4)]
        for (_, writer), size in zip(opened, (10, 40_000, 30_000, 40_000), strict=True):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nPadding: " + b"p" * size)
            await asyncio.sleep(0.1)
        assert (await opened[1][0].read()).startswith(b"HTTP/1.1 431")
        for reader, writer in (opened[0], opened[2], opened[3]):
            writer.write(b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        for _ in range(10):  # those that came whole count no more
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nPadding: " + b"p" * 40_000)
            await asyncio.sleep(0.02)
            writer.write(b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            opened.append((reader, writer))
        for _, writer in opened:
            writer.close()


@pytest.mark.asyncio
async def test_headers_count_with_the_memory_that_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("no head came whole")

    monkeypatch.setattr("service.http.refusal.Unbegun", lambda: Unbegun(30_000))
    async with answering(app) as address, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 220)
        assert (await reader.read()).startswith(b"HTTP/1.1 431")
        writer.close()


@pytest.mark.asyncio
async def test_a_head_that_has_begun_to_come_outlives_the_answer_before_it() -> None:
    """What is kept of a request that has its answer is dropped, but not what is read of the next."""
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await Response()(scope, receive, send)

    async with answering(app) as address, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(PROBE + PROBE[:-2])
        while not any(type(one) is OnePacket and one._within_head for one in gc.get_objects()):
            await asyncio.sleep(0.01)
        go_on.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.asyncio
async def test_a_client_that_has_fallen_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer ended the connection before its request did: it may send on, for half a minute, but not be silent."""

    monkeypatch.setattr("service.http.lingering._LINGER_S", 0.1)
    async with answering(Response(headers={"connection": "close"})) as address, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + bytes(10))
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.write(bytes(10))
        while any(type(one) is OnePacket and one.parser is not None for one in gc.get_objects()):
            await asyncio.sleep(0.02)
        writer.close()


@pytest.mark.asyncio
async def test_the_rest_of_a_request_that_has_its_answer_is_not_awaited_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.http.lingering._LINGER_S", 0.1)
    monkeypatch.setattr("service.http.protocol.MOST_LINGER_S", 0.5)
    async with answering(Response(status_code=404)) as address, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 404")
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_a_pipelined_client_that_leaves_is_noticed_by_the_request_that_is_answered() -> None:
    """Only the newest one, which had not begun, heard of it: the work went on to its end or its deadline."""
    paths, heard = [], asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        while (await receive())["type"] != "http.disconnect":
            pass
        heard.set()

    async with answering(app) as address:
        _, writer = await asyncio.open_connection(*address)
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(3)))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        async with asyncio.timeout(5):
            await heard.wait()
    assert paths == ["/0"]


@pytest.mark.asyncio
async def test_an_answer_that_ends_the_connection_is_the_last_whatever_waits() -> None:
    """As while the service drains. Too many wait, so that the connection ends later; it ends with this answer still."""
    asked = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        await Response(status_code=503, headers={"connection": "close"})(scope, receive, send)

    async with answering(app) as address, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(PROBE * 100_000)
        assert (await reader.read()).count(b"HTTP/1.1 503") == 1
        writer.close()
    assert asked == 1


@pytest.mark.asyncio
async def test_an_answer_that_breaks_off_reaches_a_client_that_sends_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the first", "more_body": True})
        while not any(type(one) is _Flow and one.read_paused for one in gc.get_objects()):
            await asyncio.sleep(0.02)

    async with answering(app) as address, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n" + bytes(30_000_000))
        await writer.drain()
        assert b"the first" in await reader.read()
        writer.close()


@pytest.mark.asyncio
async def test_an_answer_that_is_given_up_does_not_wait_for_its_reader_either() -> None:
    """A stream whose deadline had passed kept its connection, and what it had not sent, until the client left."""
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1 << 24), "more_body": True})
        await asyncio.sleep(0.05)  # the write has begun by then
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await send({"type": "http.response.body", "body": b"the last"})
        ended.set()

    async with answering(app, unread_s=0.2) as address, asyncio.timeout(10):
        with socket.create_connection(address) as client:
            client.sendall(PROBE)
            await ended.wait()
            await asyncio.sleep(0.5)
            client.settimeout(5)
            assert len(await asyncio.to_thread(everything, client)) < 1 << 24  # what had left for the kernel


@pytest.mark.parametrize("keep", ["", "Connection: keep-alive"])
def test_a_stream_to_http_1_0_ends_with_the_connection(address: tuple[str, int], keep: str) -> None:
    """It came in chunks, of which HTTP/1.0 knows nothing (RFC 9112, 6.1)."""
    headers = ["Content-Type: application/json", "Accept: text/event-stream", *filter(None, [keep])]
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(post("/generate", b'{"n": 1}', *headers).replace(b"HTTP/1.1", b"HTTP/1.0"))
        lines, _, body = everything(connection).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in lines and b"connection: close" in lines
    events = body.removesuffix(b"\n\n").split(b"\n\n")
    names = [one.split(b"\n")[0] for one in events]
    assert names == [b"event: row"] * 7 + [b"event: done"]


def test_an_answer_of_known_length_to_http_1_0_has_it(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(PROBE.replace(b"HTTP/1.1", b"HTTP/1.0"))
        lines, _, body = everything(connection).partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in lines and body == b'{"status":"ok"}'
