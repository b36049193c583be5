"""A full process refuses before anything is made for a request, with the same answer as the middleware gives."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import BinaryIO, cast

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from service.app import early_refusal
from service.errors import QueueFull
from service.http.protocol import HEADS, REFUSAL, UNREAD, OnePacket
from service.http.refusal import LARGEST_BODY, EarlyRefusal, Heads, _head_and_body
from service.http.unread import UnreadAnswers
from service.inference.overload import WHY_SHORT, Door
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.conftest import PICTURES
from tests.service.conftest import Generating
from tests.service.serving import serving, until

DIGIT = (PICTURES / "digit_7.png").read_bytes()
MOST = 2
FULL = Door(MOST).why_full
Address = tuple[str, int]
Inside = list[tuple[socket.socket, BinaryIO]]


@pytest.fixture(scope="module")
def address(generating: Generating) -> Iterator[Address]:
    with serving(*generating.folders, VQSERVE_MAX_CONCURRENT_REQUESTS=str(MOST)) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


@pytest.fixture
def full(address: Address) -> Iterator[Inside]:
    """The requests inside: their connections, each with the last byte of its body unsent."""
    with ExitStack() as stack:
        inside = [stack.enter_context(connected(address)) for _ in range(MOST)]
        for connection, _ in inside:
            connection.sendall(post("/encode", DIGIT)[:-1])
        until(lambda: ask(address, b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 429)
        yield inside
    until(lambda: ask(address, b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200)


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Content-Type: image/png", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read_answer(stream: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    status = int(stream.readline().split()[1])
    lines = iter(lambda: stream.readline().decode().strip(), "")
    headers = dict(line.split(": ", 1) for line in lines)
    return status, headers, stream.read(int(headers["content-length"]))


@contextmanager
def connected(address: Address) -> Iterator[tuple[socket.socket, BinaryIO]]:
    with socket.create_connection(address, timeout=10) as connection, connection.makefile("rb") as stream:
        yield connection, stream


def ask(address: Address, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    with connected(address) as (connection, stream):
        connection.sendall(sent)
        return read_answer(stream)


def metric(address: Address, line: str) -> float:
    text = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")[2].decode()
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_answer_is_that_of_the_middleware(address: Address, full: Inside) -> None:
    early = ask(address, post("/encode", DIGIT, "X-Request-ID: one"))
    late = ask(address, post("/encode", bytes(LARGEST_BODY + 1), "X-Request-ID: one"))
    assert early[0] == late[0] == 429
    assert json.loads(early[2]) == json.loads(late[2])
    assert json.loads(early[2])["type"] == "urn:vqserve:problem:queue-full"
    assert early[1]["retry-after"] == "1"
    own = ("date", "connection")  # the second one may have its answer before it has come whole
    assert early[1].items() >= {(name, value) for name, value in late[1].items() if name not in own}
    assert early[1]["cache-control"] == "no-store"


@pytest.mark.parametrize("request_line", [b"GET /v2", b"POST /v2/repository/index"])
def test_a_client_of_the_protocol_reads_why(address: Address, full: Inside, request_line: bytes) -> None:
    """The early refusal had no `error`: tritonclient said that it could not decode the answer."""
    status, _, body = ask(address, request_line + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    problem = json.loads(body)
    assert status == 429 and problem["error"] == problem["detail"]


def test_the_connection_stays_and_is_answered_later(address: Address, full: Inside) -> None:
    with connected(address) as (connection, stream):
        connection.sendall(post("/encode", DIGIT) * 3)  # pipelined
        assert [read_answer(stream)[0] for _ in range(3)] == [429, 429, 429]
        for one, answers in full:
            one.sendall(DIGIT[-1:])
            assert read_answer(answers)[0] == 200
        until(lambda: ask(address, b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200)
        connection.sendall(post("/encode", DIGIT))
        assert read_answer(stream)[0] == 200


def test_a_client_that_wants_the_connection_closed_gets_its_answer_first(address: Address, full: Inside) -> None:
    with connected(address) as (connection, stream):
        connection.sendall(post("/encode", DIGIT, "Connection: close"))
        status, headers, _ = read_answer(stream)
        assert (status, headers["connection"]) == (429, "close")
        assert stream.read(1) == b""


def test_what_a_refusal_would_have_to_read_for_long_is_left_to_the_middleware(address: Address, full: Inside) -> None:
    chunked = b"POST /encode HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    waits = b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    assert [ask(address, one)[0] for one in (chunked, waits)] == [429, 429]


def test_the_answer_to_head_has_no_body(address: Address, full: Inside) -> None:
    with connected(address) as (connection, stream):
        connection.sendall(b"HEAD /models HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        lines = [stream.readline() for _ in range(2)]
        assert lines[0].startswith(b"HTTP/1.1 429")
        while lines[-1] != b"\r\n":
            lines.append(stream.readline())
        assert stream.readline().startswith(b"HTTP/1.1 200")


def test_probes_are_answered_and_refusals_are_counted(address: Address, full: Inside) -> None:
    counted = 'vqserve_requests_total{route="/encode",status="429"}'
    reason = 'vqserve_refused_requests_total{reason="queue-full"}'
    before = metric(address, counted), metric(address, reason)
    assert ask(address, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200
    for _ in range(5):
        assert ask(address, post("/encode?fit=pad", DIGIT))[0] == 429
    assert (metric(address, counted), metric(address, reason)) == (before[0] + 5, before[1] + 5)


@pytest.mark.parametrize(
    ("headers", "takes"),
    [
        ([], True),
        ([(b"content-length", b"65536")], True),
        ([(b"content-length", b"65537")], False),
        ([(b"content-length", b"-1")], False),
        ([(b"transfer-encoding", b"chunked")], False),
        ([(b"expect", b"100-continue")], False),
        ([(b"upgrade", b"websocket")], False),
    ],
)
def test_only_small_bodies_of_known_length_are_refused_early(headers: list[tuple[bytes, bytes]], takes: bool) -> None:
    refusal = EarlyRefusal(Door(MOST), Metrics(), {"/encode": "/encode"})
    assert (refusal.why(MOST, b"/encode?model=a", headers) == FULL) is takes
    assert refusal.why(MOST - 1, b"/encode", headers) is None
    assert refusal.why(MOST, b"/healthz", headers) is None


def test_while_the_service_drains_the_middleware_answers() -> None:
    """With 429 and a second to wait, clients came back to a service that was about to end."""
    refusal = EarlyRefusal(Door(MOST), Metrics(), {"/encode": "/encode"}, lambda: True)
    assert refusal.why(MOST, b"/encode", []) is None
    assert refusal.of_whole(MOST, SMALL) is None


SMALL = b"POST /encode?fit=pad HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        (SMALL, True),
        (SMALL.replace(b"Host: x", b"connection: Keep-Alive\r\nX-Request-ID: mine"), True),
        (b"GET /encode HTTP/1.1\r\nHost: x\r\n\r\n", True),
        (SMALL[:-1], False),  # the rest comes later
        (SMALL + b"P", False),  # the next one has begun
        (SMALL[:30], False),
        (SMALL.replace(b"/encode", b"/healthz"), False),
        (SMALL.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (SMALL.replace(b"POST", b"HEAD"), False),
        (SMALL.replace(b"Host: x", b"Connection: close"), False),
        (SMALL.replace(b"Host: x", b"Expect: 100-continue"), False),
        (SMALL.replace(b"Host: x", b"transfer-encoding: chunked"), False),
        (SMALL.replace(b"Host: x", b"Upgrade: h2c"), False),
        (SMALL.replace(b"Host: x", b"Content-Length: 3"), False),
        (SMALL.replace(b"Length: 3", b"Length: 03"), False),
        (SMALL.replace(b"Host: x", b"Host: x\nTransfer-Encoding: chunked"), False),  # two lines to some proxies
        (SMALL.replace(b"Host: x", b"Host: x\rTransfer-Encoding: chunked"), False),
        (SMALL.replace(b"Length: 3", b"Length: " + b"9" * 5000), False),
        (b"", False),
    ],
)
def test_a_request_that_came_whole_needs_no_parser(data: bytes, refused: bool) -> None:
    refusal = EarlyRefusal(Door(MOST), Metrics(), {"/encode": "/encode"})
    answer = refusal.of_whole(MOST, data)
    assert (answer is not None) is refused
    assert refusal.of_whole(MOST - 1, data) is None
    if answer is not None:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert f"content-length: {len(body)}".encode() in head
        assert (b"mine" in body) is (b"mine" in data)


@pytest.mark.parametrize("keep_alive", [True, False])
def test_the_answer_is_the_same_however_it_is_made(keep_alive: bool) -> None:
    refusal = EarlyRefusal(Door(MOST), Metrics(), {"/encode": "/encode"})
    problem = QueueFull.for_now(FULL)
    expected = b"".join(_head_and_body(problem, "my-id", keep_alive=keep_alive))
    assert refusal.answer(FULL, b"/encode", [(b"x-request-id", b"my-id")], keep_alive=keep_alive) == expected
    whole = refusal.of_whole(MOST, SMALL.replace(b"Host: x", b"X-Request-Id: my-id"))
    assert whole == (expected if keep_alive else b"".join(_head_and_body(problem, "my-id", keep_alive=True)))


def test_the_bytes_of_a_refusal_are_counted() -> None:
    metrics = Metrics()
    refusal = EarlyRefusal(Door(MOST), metrics, {"/encode": "/encode"})
    _, _, body = refusal.answer(FULL, b"/encode", [], keep_alive=True).partition(b"\r\n\r\n")
    assert metrics.registry.get_sample_value("vqserve_sent_bytes_total") == len(body) > 0


def test_requests_that_come_whole_and_in_pieces_take_turns(address: Address, full: Inside) -> None:
    with connected(address) as (connection, stream):
        for _ in range(3):
            connection.sendall(post("/encode", DIGIT))
            assert read_answer(stream)[0] == 429
        whole = post("/encode", DIGIT)
        for part in (whole[:50], whole[50:-5], whole[-5:]):
            connection.sendall(part)
            time.sleep(0.05)
        assert read_answer(stream)[0] == 429
        connection.sendall(whole)
        assert read_answer(stream)[0] == 429


def test_refusals_that_nobody_reads_do_not_pile_up(generating: Generating) -> None:
    """Each gave the client new time to read: without a bound of their own they were kept until memory ran out."""
    settings = {"VQSERVE_MAX_CONCURRENT_REQUESTS": "1", "VQSERVE_HEAD_TIMEOUT_S": "0.4"}
    with serving(*generating.folders, **settings) as (_, url), ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        here = (host, int(port))
        stack.enter_context(connected(here))[0].sendall(post("/encode", DIGIT)[:-1])
        until(lambda: ask(here, b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 429)
        deaf = stack.enter_context(socket.socket())
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(10)
        deaf.connect(here)
        end = time.monotonic() + 8
        with pytest.raises(ConnectionError):
            while time.monotonic() < end:
                deaf.sendall(SMALL)


class Unread:
    """A transport whose client does not read."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def writelines(self, chunks: list[bytes]) -> None:
        self.written += chunks

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None:
        """It has no socket."""

    def pause_reading(self) -> None:
        """Nothing is read."""

    resume_reading = close = pause_reading


@pytest.mark.parametrize("pieces", [1, 2], ids=["whole", "in pieces"])
@pytest.mark.asyncio
async def test_where_the_client_does_not_read_the_app_refuses_and_waits(pieces: int) -> None:
    asked = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])

    refusal = EarlyRefusal(Door(0), Metrics(), {"/encode": "/encode"})
    shared = {HEADS: Heads(10, Metrics()), UNREAD: UnreadAnswers(10), REFUSAL: refusal}
    protocol, transport = OnePacket(Config(app), ServerState(), shared), Unread()
    protocol.connection_made(cast(asyncio.Transport, transport))
    sent = (SMALL,) if pieces == 1 else (SMALL[:30], SMALL[30:])
    for piece in sent:
        protocol.data_received(piece)
    assert len(transport.written) == 1
    protocol.pause_writing()
    for piece in sent:
        protocol.data_received(piece)
    await asyncio.sleep(0)
    assert len(transport.written) == 1 and asked == []
    protocol.resume_writing()
    await asyncio.sleep(0.01)
    assert asked == ["/encode"]
    protocol.connection_lost(None)


@pytest.mark.asyncio
async def test_a_request_lives_longer_than_an_idle_connection_does() -> None:
    """The time of an idle connection began with the answer to a request before it that ended in the same read, and the
    second one was cut off."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1)
        await Response()(scope, receive, send)

    refusal = EarlyRefusal(Door(0), Metrics(), {"/encode": "/encode"})
    shared = {HEADS: Heads(10, Metrics()), UNREAD: UnreadAnswers(10), REFUSAL: refusal}
    config, state = Config(app, timeout_keep_alive=0), ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: OnePacket(config, state, shared), "127.0.0.1", 0)
    async with server, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(SMALL + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        received = await reader.read()
        writer.close()
    assert received.startswith(b"HTTP/1.1 429") and b"HTTP/1.1 200" in received


@pytest.mark.parametrize(
    "settings",
    [{"cors_origins": "https://a.example"}, {"access_log": True}, {"otlp_endpoint": "http://localhost:4318"}],
)
def test_layers_that_add_to_a_refusal_keep_it(settings: dict[str, object]) -> None:
    assert early_refusal(Settings(), Metrics(), Door(MOST)) is not None
    assert early_refusal(Settings(**settings), Metrics(), Door(MOST)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("clients", [1, 4])
def test_as_many_clients_as_may_be_inside_are_never_refused(generating: Generating, clients: int) -> None:
    """Each asks again as soon as it has its answer. The request that had just been answered was still counted: a third
    got 429."""
    statuses: list[int] = []

    def ask_again_and_again(address: Address) -> None:
        with connected(address) as (connection, stream):
            for _ in range(150):
                connection.sendall(post("/encode", DIGIT))
                statuses.append(read_answer(stream)[0])

    with serving(*generating.folders, VQSERVE_MAX_CONCURRENT_REQUESTS=str(clients)) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        threads = [Thread(target=ask_again_and_again, args=((host, int(port)),)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * (150 * clients)


def test_a_refusal_ends_a_connection_of_http_1_0(address: Address, full: Inside) -> None:
    """As every answer does; such a client waits for the end."""
    with connected(address) as (connection, stream):
        connection.sendall(b"GET /models HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        status, headers, _ = read_answer(stream)
        assert (status, headers["connection"], stream.read()) == (429, "close", b"")


class Busy:
    """Queues with so many pictures in hand."""

    enough = 4

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures

    def in_hand(self, query: bytes) -> int:
        return self.pictures * (query != b"model=idle")

    def give_up_waiting(self) -> None:
        pass


def under_overload(pictures: int) -> EarlyRefusal:
    door = Door(MOST, adapts=True)
    door.open_to(Busy(pictures))
    door._overload.lasts = True
    return EarlyRefusal(door, Metrics(), {"/encode": "/encode", "/models": "/models"})


def test_what_an_overloaded_model_is_asked_is_refused_early() -> None:
    async def work() -> None:
        refusal = under_overload(4)
        given = SMALL.replace(b"Host: x", b"X-Request-Id: my-id")
        expected = b"".join(_head_and_body(QueueFull.for_now(WHY_SHORT), "my-id", keep_alive=True))
        assert refusal.of_whole(0, given) == expected
        assert refusal.answer(WHY_SHORT, b"/encode", [(b"x-request-id", b"my-id")], keep_alive=True) == expected
        assert refusal.why(0, b"/encode?fit=pad", []) == WHY_SHORT
        for other in (b"/encode?model=idle", b"/models"):
            assert refusal.of_whole(0, given.replace(b"/encode?fit=pad", other)) is None
            assert refusal.why(0, other, []) is None
            assert refusal.of_whole(MOST, given.replace(b"/encode?fit=pad", other)) is not None

    asyncio.run(work())


def test_those_that_come_in_one_turn_count_before_they_wait() -> None:
    async def work() -> None:
        refusal = under_overload(2)
        assert [refusal.why(0, b"/encode", []) for _ in range(4)] == [None, None, WHY_SHORT, WHY_SHORT]
        await asyncio.sleep(0)
        assert refusal.why(0, b"/encode", []) is None
        await asyncio.sleep(0)
        assert [refusal.why(0, b"/encode", []) for _ in range(2)] == [None, None]

    asyncio.run(work())
