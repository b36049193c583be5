"""Clients that pipeline and do not read their answers: what waits is bounded, and not inside."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import problem_type
from service.http.head_bounds import Unbegun
from service.http.middleware import Observe, Problems, Routes
from service.http.protocol import OnePacket
from service.telemetry.metrics import Metrics
from tests.conftest import Tiny
from tests.service.http.test_pipelining import PROBE, answering
from tests.service.serving import serving

LARGE = 1 << 24  # bytes of an answer: more than the kernel takes
READ = 1 << 18  # bytes that one read brings, at most
BODY = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"


async def large_and_small(scope: Scope, receive: Receive, send: Send) -> None:
    """A large answer at /large, which is not read; others have none."""
    size = LARGE if scope["path"] == "/large" else 0
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    await send({"type": "http.response.body", "body": bytes(size)})


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def protocols() -> list[OnePacket]:
    return [one for one in gc.get_objects() if type(one) is OnePacket and one.parser is not None]


@asynccontextmanager
async def sending(address: tuple[str, int], *pieces: bytes) -> AsyncIterator[socket.socket]:
    """A client that sends each piece, or what of it the server takes, and reads nothing."""
    loop = asyncio.get_running_loop()
    with socket.create_connection(address) as client:
        client.setblocking(False)
        for piece in pieces:
            try:
                async with asyncio.timeout(0.5):
                    await loop.sock_sendall(client, piece)
            except TimeoutError:
                break
        yield client


@pytest.mark.parametrize("asks", [False, True], ids=["answers alone", "requests that read bodies"])
@pytest.mark.asyncio
async def test_little_is_read_of_a_body_before_its_turn(asks: bool) -> None:
    """Each answer before it, and each request before it that asked for its own body, let another read into it: a
    client without a key had the service keep 5 MB a connection."""
    most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal most
        if asks and scope["path"] == "/":
            await receive()
        await asyncio.sleep(0.05)
        most = max(most, *(one.flow.waiting_bytes for one in protocols()))
        await large_and_small(scope, receive, send)

    sent = 12 * get("/") + get("/large") + BODY
    async with answering(app) as address, asyncio.timeout(20), sending(address, sent, bytes(30_000_000)):
        await asyncio.sleep(1)
        assert 0 < max(most, *(one.flow.waiting_bytes for one in protocols())) <= (1 << 16) + READ


@pytest.mark.asyncio
async def test_a_body_that_had_to_wait_comes_whole() -> None:
    bodies = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/body":
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            bodies.append(len(body))
        else:
            await asyncio.sleep(0.1)
        await large_and_small(scope, receive, send)

    async with answering(app) as address, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(3 * get("/") + BODY + bytes(30_000_000))
        for _ in range(4):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
    assert bodies == [30_000_000]


async def come_to_wait(*sizes: int) -> None:
    """Ends when so many bytes wait, by connection."""
    while sorted(one.flow.waiting_bytes for one in protocols()) != list(sizes):
        await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_bodies_before_their_turn_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.refusal.Unbegun", lambda: Unbegun(150_000))
    first, second, third = (2 * get("/large") + BODY + bytes(size) for size in (60_000, 61_000, 62_000))
    async with answering(large_and_small) as address, asyncio.timeout(20):
        async with sending(address, first), sending(address, second):
            await come_to_wait(60_000, 61_000)
            async with sending(address, third):  # the largest goes
                await asyncio.sleep(0.2)
                await come_to_wait(60_000, 61_000)
        await come_to_wait()
        async with sending(address, third):  # those that have left count no more
            await come_to_wait(62_000)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.asyncio
async def test_heads_before_their_turn_are_bounded_together(monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    """Of a header of five bytes 144 more are kept: 31 MB of them took half a gigabyte. The first waits until the answer
    before it is read, the others for their turn."""
    many = get("/")[:-2] + b"a:\r\n" * 250 + b"\r\n"
    monkeypatch.setattr("service.http.refusal.Unbegun", lambda: Unbegun(60_000 * heads))
    async with answering(large_and_small) as address, asyncio.timeout(20):
        async with sending(address, get("/large") + heads * many) as client:
            await asyncio.sleep(0.2)
            (protocol,) = protocols()  # alone it may have them
            async with sending(address, get("/large") + heads * many):
                while len(protocols()) > 1:
                    await asyncio.sleep(0.02)
            with contextlib.suppress(ConnectionResetError):  # it may have been the larger one, by a byte
                while await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                    if not protocol._heads.unbegun._total:
                        break
        while protocol._heads.unbegun._total:
            await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_a_body_counts_no_more_when_its_client_leaves_before_any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    monkeypatch.setattr("service.http.refusal.Unbegun", lambda: Unbegun(100_000))
    async with answering(app) as address, asyncio.timeout(10):
        for size in (60_000, 61_000):
            async with sending(address, get("/") + BODY + bytes(size)):
                await come_to_wait(size)
            await come_to_wait()


@pytest.mark.asyncio
async def test_an_unread_answer_is_forgotten_with_its_connection() -> None:
    async with answering(large_and_small) as address, asyncio.timeout(5):
        async with sending(address, get("/large")):
            while not any(one._unread._unread for one in protocols()):
                await asyncio.sleep(0.02)
            (unread,) = (one._unread for one in protocols())
        while unread._unread:
            await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_a_request_behind_unread_answers_is_not_inside() -> None:
    """It had begun, and waited until its deadline to send: few clients without a key took all places."""
    asked: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        await large_and_small(scope, receive, send)

    sent = get("/large") + 3 * get("/")
    async with answering(app) as address, asyncio.timeout(20), sending(address, sent) as client:
        while asked != ["/large"]:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        (protocol,) = protocols()
        assert asked == ["/large"] and not protocol.tasks
        left = LARGE
        while left > 0:
            left -= len(await asyncio.get_running_loop().sock_recv(client, 1 << 20))
        while len(asked) < 4 or protocol.tasks:
            await asyncio.sleep(0.02)
        assert asked == ["/large", "/", "/", "/"]


@pytest.mark.asyncio
async def test_a_request_behind_an_answer_that_is_never_read_does_not_begin() -> None:
    asked: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        await large_and_small(scope, receive, send)

    async with answering(app) as address, asyncio.timeout(10):
        async with sending(address, get("/large") + get("/")):
            while not any(one._answering and one._answering.scope.get("path") == "/" for one in protocols()):
                await asyncio.sleep(0.02)
        await come_to_wait()
        await asyncio.sleep(0)  # the turn in which it would begin
    assert asked == ["/large"]


@pytest.mark.asyncio
async def test_a_deadline_before_anything_was_sent_has_its_answer() -> None:
    """The head waited for a client that read slowly, and passed for sent: the client got a bare 500 of the server,
    and the log an error."""
    sent = []
    waits = [True]

    async def send(message: dict[str, object]) -> None:
        if waits.pop() if waits else False:
            await asyncio.sleep(60)
        sent.append(message)

    async def handler(request: Request) -> Response:
        return Response(b"late")

    metrics = Metrics()
    inner: ASGIApp = Problems(Starlette(routes=[Route("/", handler)]), metrics, "/v2")
    app = Observe(inner, metrics, 0.1, access_log=False, routes=Routes({}, ()))
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "root_path": ""}

    async def receive() -> dict[str, object]:
        return await asyncio.Event().wait() and {}

    await app(scope, receive, send)  # type: ignore[arg-type]
    assert [message.get("status") for message in sent] == [504, None]
    assert problem_type("deadline-passed").encode() in sent[1]["body"]  # type: ignore[operator]


def test_ctrl_c_twice_ends_the_process_while_a_client_does_not_read(tiny: Tiny) -> None:
    """It waited for that client for up to two minutes."""
    with serving(tiny.grey, VQSERVE_DRAIN_S="0", VQSERVE_GRACE_S="20") as (process, address):
        host, port = address.removeprefix("http://").split(":")
        clients = [socket.socket() for _ in range(4)]
        for client in clients:  # whose kernels take few answers
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            client.connect((host, int(port)))
            client.sendall(16 * b"GET /playground/workbench.js HTTP/1.1\r\nHost: x\r\n\r\n" + PROBE)
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        assert time.monotonic() - started < 15
        for client in clients:
            client.close()
